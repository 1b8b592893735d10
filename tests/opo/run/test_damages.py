"""Damages of a run folder, met by every command that reads one: named or healed, nothing destroyed, no traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import SMALL, rows

from opo.cli import main

TRAIN = [
    "train",
    *SMALL,
    "model.tiny.warmup_steps=5",
    "tracking=off",
    "checkpoint.every=1",
    "evaluate.every=0",
    "hydra.run.dir=run",
]
ASK = ["threads=1", "prompts=2"]
COMMANDS = {
    "train": [*TRAIN, "steps=3"],
    "evaluate": ["evaluate", "checkpoint=run", "responses=4", "ks=[1]", "num_bootstrap=100", *ASK],
    "variance": ["variance", "checkpoint=run", "responses=4", "group_sizes=[2]", "num_bootstrap=100", *ASK],
    "report": ["report", "path=run"],
    "runs": ["runs", "path=."],
}  # fmt: skip
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "removed": lambda data: None,
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


def call(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0), capfd.readouterr().err


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two steps, and one that the same command took to three."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for steps in (2, 3):
            with pytest.raises(SystemExit) as caught:
                main([*TRAIN, f"steps={steps}"])
            assert not caught.value.code
            shutil.copytree("run", f"kept-{steps}")
        shutil.rmtree("run")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def damaged_and_met(
    name: str, damage: str, commands: list[str], whole: Path, capfd: pytest.CaptureFixture[str]
) -> dict[str, tuple[int, str]]:
    """What each command says of a copy of the run, in the current folder, whose file `name` is damaged."""
    said = {}
    for command in commands:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(whole / "kept-2", "run")
        file = Path("run", name)
        data = DAMAGES[damage](file.read_bytes())
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
        before = files(Path("run"))
        said[command] = status, err = call(COMMANDS[command], capfd)
        assert "Traceback" not in err
        if status:
            assert len(err.splitlines()) == 1, err
            after = files(Path("run"))
            lost = {n for n in before if after.get(n) != before[n] and not n.endswith((".lock", ".log", "FAILED"))}
            assert not lost, f"{command} refused and changed {lost}"
        elif command == "train":
            assert rows(Path("run")) == rows(whole / "kept-3")
    return said


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "metrics.crc32",
        "run.json",
        "DONE",
        "certificate.json",
        "checkpoints/step-000002/trainer.safetensors",
    ],
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_going_on_from_a_damaged_folder(
    name: str,
    damage: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged_and_met(name, damage, ["train", "runs"], whole, capfd)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_file_damaged_in_every_way_under_every_command(
    command: str,
    damage: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for name in sorted(files(whole / "kept-2")):
        if not name.endswith((".lock", ".log")):
            found[name] = damaged_and_met(name, damage, [command], whole, capfd)
    for name, said in found.items():  # whoever reads weights reads the manifest first
        if name.endswith("policy/model.safetensors") and command in ("evaluate", "variance"):
            assert said[command][0] == 2, name
        if name == "metrics.jsonl" and command in ("train", "report"):
            assert said[command][0] == 2
