"""A reward function that fails for every response stops the run; one that gives None on purpose, or fails now and then, does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import SMALL, rows

from opo.cli import main


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as caught:
            main(["train", *SMALL, "tracking=off", "steps=1", "hydra.run.dir=run", *overrides])
        return caught.value.code, capfd.readouterr().err

    return run


def test_a_function_that_always_raises_stops_the_run_in_one_sentence(
    train: Callable[..., tuple], tmp_path: Path
) -> None:
    status, said = train("reward.function=own_task:raises")
    assert status == 2
    expected = "reward.function=own_task:raises: failed for all 16 responses of a batch, for the first with exception: KeyError: 'weight'"
    assert said.splitlines()[-1] == expected
    assert not (tmp_path / "run").exists()  # the mended function finds no folder of a run that was none


@pytest.mark.parametrize("function", ["none", "raises_now_and_then"])
def test_responses_without_a_reward_are_counted(function: str, train: Callable[..., tuple], tmp_path: Path) -> None:
    status, _ = train(f"reward.function=own_task:{function}")
    assert status == 0
    (row,) = rows(tmp_path / "run")
    assert row["train/unscorable_count"] == 16
    assert "train/reward_mean" not in row
