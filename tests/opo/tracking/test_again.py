"""`opo track`: a W&B record made anew is the run's, offline and online, and a damaged folder is one line."""

import json
import shutil
from pathlib import Path

import pytest
from tracked import log_steps, make_config, rows, scalars, wandb_file
from wandb_file import history, records
from wandb_server import WandbServer

from opo.cli import main
from opo.config.schema import to_dict
from opo.config.track import TrackConfig
from opo.errors import StoppedRun, UserError
from opo.run.folder import RunFolder
from opo.tracking.again import track_again


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was never sent to W&B."""
    path = tmp_path_factory.mktemp("runs") / "opo-arithmetic-s0"
    log_steps(path, "off", range(1, 6))
    (path / "DONE").write_text("5\n")
    return path


def exit_codes(path: Path) -> list[int]:
    return [record.exit.exit_code for record in records(wandb_file(path)) if record.HasField("exit")]


def test_the_command_makes_the_record_and_changes_nothing_else(run, tmp_path, capfd):
    path = Path(shutil.copytree(run, tmp_path / run.name))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(SystemExit) as caught:
        main(["track", f"path={path}"])
    assert not caught.value.code
    logged = history(wandb_file(path))
    assert scalars(logged) == rows(path)
    assert [row["completions.nrows"] for row in logged if "completions.nrows" in row] == [2, 4, 6]
    (about,) = [record.run for record in records(wandb_file(path)) if record.HasField("run")]
    assert (about.run_group, about.display_name, list(about.tags)) == (
        "s",
        run.name,
        ["opo", "arithmetic", "tiny", "on-policy"],
    )
    assert about.run_id == json.loads((path / "run.json").read_text())["wandb_run_id"]
    (code,) = [r.artifact for r in records(wandb_file(path)) if r.HasField("artifact") and r.artifact.type == "code"]
    assert {entry.path for entry in code.manifest.contents} >= {"config.yaml", "run.json"}
    assert not [entry.path for entry in code.manifest.contents if entry.path.endswith(".py")]  # today's, not the run's
    assert exit_codes(path) == [0]
    assert all((path / file.relative_to(run)).read_bytes() == data for file, data in before.items())
    assert capfd.readouterr().out.startswith(f"5 steps of {path} as run {about.run_id} in ")

    (path / "DONE").unlink()  # an unfinished run, again: its record replaces the one before and says that it failed
    with (path / "metrics.jsonl").open("a") as stream:
        stream.write('{"train/step": 6, "train/rew')  # killed here
    assert track_again(TrackConfig(str(path), project="elsewhere")) == (5, about.run_id)
    (about,) = [record.run for record in records(wandb_file(path)) if record.HasField("run")]
    assert about.project == "elsewhere"
    assert len(history(wandb_file(path))) == 5
    assert exit_codes(path) == [1]


def test_online_the_whole_run_arrives(run, tmp_path, monkeypatch):
    path = Path(shutil.copytree(run, tmp_path / run.name))
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        _, run_id = track_again(TrackConfig(str(path), mode="online"))
        assert scalars(server.runs[run_id].rows) == rows(path)
        assert server.runs[run_id].exit_code == 0
        server.refuses = True
        with pytest.raises(StoppedRun, match="W&B failed"):
            track_again(TrackConfig(str(path), mode="online", id="refused1"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.jsonl", '{"train/step": 1}\nnot JSON\n', r"metrics\.jsonl, line 2: not a row"),
        ("metrics.jsonl", '{"train/step": 1}\n{"train/step": 1}\n', "holds step 1 2 times"),
        ("metrics.jsonl", "", "holds no step"),
        ("run.json", "{", r"run\.json"),
        ("run.json", '{"seeds": {}}', "holds no wandb_run_id"),
        ("config.yaml", "algo: [", r"config\.yaml"),
        ("config.yaml", "algo: opo", "is not the config of a run"),
    ],
)
def test_a_damaged_folder_is_one_line_and_nothing_is_written(run, tmp_path, name, text, said):
    path = Path(shutil.copytree(run, tmp_path / run.name))
    (path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        track_again(TrackConfig(str(path)))
    assert not (path / "wandb").exists()


def test_a_folder_that_is_no_run_or_is_being_trained_in_is_refused(tmp_path, capfd):
    for path, said in (("", "give a run folder"), (tmp_path, "not a run folder"), ("x" * 5000, "not a run folder")):
        with pytest.raises(SystemExit) as caught:
            main(["track", f"path={path}"])
        assert caught.value.code == 2
        error = capfd.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    path = tmp_path / "run"
    log_steps(path, "off", range(1, 2))
    with RunFolder.open(path, to_dict(make_config())).held(), pytest.raises(UserError, match="another process"):
        track_again(TrackConfig(str(path)))
