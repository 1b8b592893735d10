"""Files that appear whole or not at all; a disk that is full or closed, in one sentence."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from run_folders import command, rows

from opo.errors import StoppedRun, UserError
from opo.system.atomic import replacing, write_text
from opo.system.storage import storage_faults_in_one_sentence


def test_a_reader_sees_the_old_or_the_new_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "a.json") as partial:
        partial.write_text((tmp_path / "a.json").read_text() + tmp_path.read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    with replacing(tmp_path / "a.json") as partial:
        partial.write_text("new")
        assert partial.suffix == ".json"  # what writes it may look at that
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "below" / "folder"
    with replacing(target) as partial:
        (partial / "deeper").mkdir(parents=True)
        (partial / "deeper" / "file").write_text("1")
        assert not target.exists()
    assert (target / "deeper" / "file").read_text() == "1"
    assert len(list(target.parent.iterdir())) == 1


def test_what_the_system_says_names_the_file_and_other_errors_pass(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^{tmp_path}/file/x: Not a directory; give"), storage_faults_in_one_sentence():
        (tmp_path / "file" / "x").mkdir()
    full = f"^{tmp_path}: No space left on device; what"
    with (
        pytest.raises(StoppedRun, match=full),
        storage_faults_in_one_sentence(tmp_path),
        open("/dev/full", "w") as disk,
    ):
        disk.write("x")
    with pytest.raises(FileNotFoundError), storage_faults_in_one_sentence(tmp_path):
        (tmp_path / "nowhere").read_text()
    with pytest.raises(StoppedRun, match="No space left"), storage_faults_in_one_sentence(tmp_path):
        raise Exception(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )  # as safetensors does


def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wanted = command(folder, "steps=2", "checkpoint.every=1", "tracking=off")
    full = subprocess.run(wanted, capture_output=True, text=True, preexec_fn=_no_file_above_100_kb)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1), full.stderr
    assert str(folder) in full.stderr
    again = subprocess.run(wanted, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert [row["train/step"] for row in rows(folder)] == [1, 2]


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = subprocess.run(command(tmp_path / "file" / "run", "steps=1"), capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"{tmp_path}/file" in refused.stderr
    cache = os.environ | {"OPO_CACHE": str(tmp_path / "file")}
    refused = subprocess.run(command(tmp_path / "run", "steps=1"), capture_output=True, text=True, env=cache)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert f"{tmp_path}/file" in refused.stderr


def _no_file_above_100_kb() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
