"""The folder of a policy's pools: each bears how it was made, and what is damaged or somewhere else is named."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import bandit_pool

from analysis.study.pools import PoolFolder
from opo.errors import UserError

SETTING = {"seed": 0, "responses": 32}


def folder_of(path: Path, setting: dict[str, Any] = SETTING) -> PoolFolder:
    """Two pools of that setting."""
    made = PoolFolder(path, setting)
    made.start()
    for number in range(2):
        made.save(number, bandit_pool(number + 10 * setting["seed"]))
    return made


def test_pools_come_back(tmp_path: Path) -> None:
    made = folder_of(tmp_path / "a")
    assert PoolFolder(tmp_path / "a", SETTING).missing([0, 1, 2]) == [2]
    for number, pool in enumerate(made.load([0, 1])):
        assert np.array_equal(pool.gram_RR, bandit_pool(number).gram_RR)


def test_a_pool_of_another_prompt_policy_or_study_is_named(tmp_path: Path) -> None:
    made, other = folder_of(tmp_path / "a"), folder_of(tmp_path / "b", SETTING | {"seed": 1})
    kept = made.file(1).read_bytes()
    for stranger in (made.file(0), other.file(1)):
        shutil.copy(stranger, made.file(1))
        with pytest.raises(UserError, match=r"prompt-000001.npz: is the pool of another prompt, policy or study"):
            made.load([0, 1])
    made.file(1).write_bytes(kept)
    assert len(made.load([0, 1])) == 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "folder"])
def test_a_damaged_pool_is_one_line(tmp_path: Path, damage: str) -> None:
    made = folder_of(tmp_path / "a")
    file, data = made.file(1), made.file(1).read_bytes()
    half = len(data) // 2
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        flipped = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]
        file.write_bytes({"cut": data[:half], "emptied": b"", "flipped": flipped}[damage])
    with pytest.raises(
        UserError, match=r"prompt-000001.npz: damaged .*; remove it, and the same command measures it again"
    ) as e:
        made.load([0, 1])
    assert "\n" not in str(e.value)


def test_another_setting_is_named_and_a_lost_one_too_and_nothing_is_written(tmp_path: Path) -> None:
    folder_of(tmp_path / "a")
    with pytest.raises(UserError, match="its pools were made with seed=0, not 1"):
        PoolFolder(tmp_path / "a", SETTING | {"seed": 1})
    with pytest.raises(UserError, match="its pools were made with content=None, not "):
        PoolFolder(tmp_path / "a", SETTING | {"content": {"x": "y"}})
    (tmp_path / "a" / "setting.json").unlink()
    with pytest.raises(UserError, match=r"setting.json: missing, so it is not known how the pools beside it were made"):
        PoolFolder(tmp_path / "a", SETTING)
    PoolFolder(tmp_path / "new", SETTING)
    assert not (tmp_path / "new").exists()
