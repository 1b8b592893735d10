"""Checkpoints are complete or absent, and what was written is what is read."""

import json
import multiprocessing
import signal
import time

import pytest
import torch
from saves import fill_policy, save, save_for_ever, save_once_and_be_killed

from opo.errors import UserError
from opo.run.checkpoint import checkpoints, load_checkpoint, remove_incomplete, save_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_what_was_written_is_read_bit_by_bit(tmp_path, dtype):
    tensors = {
        "a": torch.arange(12).to(dtype).view(3, 4).T,
        "scalar": torch.tensor(7).to(dtype),
        "empty": torch.empty(0, dtype=dtype),
    }
    state = {"step": 3, "rng": [1, 2**40], "name": "α", "rate": 0.1 + 0.2}
    path = save_checkpoint(tmp_path, 3, fill_policy, tensors, state)
    read, read_state = load_checkpoint(path)
    assert path.name == "step-000003"
    assert read_state == state
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], tensor)
    assert (path / "policy" / "weights" / "part-1.bin").stat().st_size == 25600


def test_no_tensors_at_all(tmp_path):
    assert load_checkpoint(save_checkpoint(tmp_path, 1, fill_policy, {}, {}))[0] == {}


def test_the_newest_are_kept(tmp_path):
    for step in (1, 9, 10, 100, 1_000_000):
        save(tmp_path, step, keep=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-000100", "step-1000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100", "step-1000000"]


def test_none_is_dropped_unless_asked(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    assert len(checkpoints(tmp_path)) == 5


@pytest.mark.parametrize(
    "name", ["policy/weights/part-1.bin", "policy/config.json", "trainer.safetensors", "trainer.json"]
)
def test_one_wrong_bit_anywhere_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    file = path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: damaged") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "policy" / "config.json").unlink()
    with pytest.raises(UserError, match=r"policy/config\.json: missing"):
        load_checkpoint(path)


def test_no_checkpoint_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        load_checkpoint(tmp_path / "step-000001")


def test_nothing_is_written_over(tmp_path):
    path = save(tmp_path, 1)
    with pytest.raises(FileExistsError, match="step-000001 exists"):
        save(tmp_path, 1)
    load_checkpoint(path)


def test_nan_in_the_state_is_refused_and_leaves_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path, 1, fill_policy, {}, {"reward": float("nan")})
    assert checkpoints(tmp_path) == []


def test_incomplete_ones_are_ignored_then_removed(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").unlink()  # as a copy that was cut short
    (tmp_path / ".step-000003.partial-1" / "policy").mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


FORKSERVER = multiprocessing.get_context(
    "forkserver"
)  # a fork for each kill, of a process that has imported torch once
FORKSERVER.set_forkserver_preload(["opo.run.checkpoint"])


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    save(tmp_path, 1)
    child = FORKSERVER.Process(target=save_once_and_be_killed, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000001"]
    remove_incomplete(tmp_path)
    save(tmp_path, 2)
    assert load_checkpoint(checkpoints(tmp_path)[-1])[1] == {"step": 2}


def test_kills_at_any_moment_lose_nothing_that_was_complete(tmp_path):
    """Saves in a row, killed at a dozen moments; each time the newest checkpoint loads and is what its step wrote."""
    newest = 0
    for kill in range(12):
        saved = FORKSERVER.Event()
        child = FORKSERVER.Process(target=save_for_ever, args=(tmp_path, newest + 1, saved))
        child.start()
        assert saved.wait(120), "the first save did not finish"
        time.sleep(0.0037 * kill)
        child.kill()
        child.join()
        remove_incomplete(tmp_path)
        last = checkpoints(tmp_path)[-1]
        tensors, state = load_checkpoint(last)
        assert state["step"] > newest
        newest = state["step"]
        assert last.name == f"step-{newest:06d}"
        assert torch.equal(tensors["weights"], torch.arange(1000.0) * newest)
        assert json.loads((last / "manifest.json").read_text())["step"] == newest
