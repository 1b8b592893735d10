"""What only a file as a whole says: its kind, its steps, its temperature, and whether a column is JSON."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from foreign import OWN, encoded, model, rows, write

from analysis.config.audit import load_config
from analysis.study.external import RewardChoice, read_groups
from analysis.study.external.audit import answers
from opo.errors import UserError

__all__ = ["model"]  # a fixture

SAID = json.dumps([{"role": "assistant", "content": "9"}])


def made(kind: str, folder: Path) -> str:
    """The name of what is no file of rollouts."""
    place = folder / f"{kind}.jsonl"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "csv":
        place = place.with_suffix(".csv")
        place.write_text("prompt,response,reward\n")
    return str(place)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "a folder"),
        ("pipe", "a pipe or device"),
        ("loop", "a link to nothing"),
        ("csv", "another kind of file"),
        ("absent", "no such file"),
    ],
)
def test_what_is_no_file_of_rollouts_is_named_before_any_is_read(kind: str, says: str, tmp_path: Path) -> None:
    name = made(kind, tmp_path)
    with pytest.raises(UserError, match=rf"^rollouts={name}: {says}; a local .parquet or .jsonl file is needed"):
        load_config({"rollouts": [name]})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://x.org/a.jsonl", "rollouts=https://x.org/a.jsonl: an address; a local"),
        ("/dev/null", "rollouts=/dev/null: a pipe or device"),
        ("", "rollouts: give a .parquet or .jsonl file"),
    ],
)
def test_names_that_are_no_path_of_a_file(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config({"rollouts": name})


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([2**31 - 1]).cast(pl.Date),
        pl.Series([2**62]).cast(pl.Datetime("ms")),
        pl.Series([2**62]).cast(pl.Duration("ms")),
    ],
)
def test_a_value_that_python_does_not_hold_ends_in_one_line(
    column: pl.Series, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.parquet"
    pl.DataFrame(rows()).with_columns(when=column[0:1].new_from_index(0, 12)).write_parquet(file)
    with pytest.raises(UserError, match="the column when cannot be read, so leave it out: ") as caught:
        read_groups([file], OWN)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_dates_that_are_whole_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "own.parquet"
    pl.DataFrame(rows(when=datetime(2026, 1, 1, tzinfo=UTC))).write_parquet(file)
    assert len(read_groups([file], OWN)[0]) == 3


def test_rows_without_a_step_beside_others_are_refused(tmp_path: Path) -> None:
    half = write(tmp_path / "half.jsonl", rows(4, step=lambda p, g: 3 if p < 2 else None))
    with pytest.raises(
        UserError, match=r"8 rows have no step \(the first: .*half.jsonl: row 9\), others are of step 3"
    ):
        read_groups([half], OWN)
    groups, notes = read_groups([half], OWN, [3])
    assert (len(groups), dict(notes.left_out)) == (2, {"without a step": 8})
    groups, notes = read_groups([half], OWN, [])
    assert (len(groups), notes.steps, notes.stepless) == (4, [3], 8)
    assert "of step 3 (unknown for 8 responses)" in notes.read()
    with pytest.raises(UserError, match=r"a\.jsonl and 1 more: 12 rows have no step \(the first: .*b\.jsonl: row 1\)"):
        read_groups([write(tmp_path / "a.jsonl", rows(step=1)), write(tmp_path / "b.jsonl", rows())], OWN)


def test_several_files_of_no_step_are_said_to_be(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{n}.jsonl", rows(prompt_id=lambda p, g, n=n: f"{n}/{p}")) for n in (1, 2))
    assert "of unknown steps, taken as one policy's" in read_groups([one, other], OWN)[1].read()
    assert "unknown" not in read_groups([one], OWN)[1].read()


def test_large_steps_are_written_out(tmp_path: Path) -> None:
    file = write(tmp_path / "own.jsonl", rows(step=lambda p, g: 1234567 + p))
    with pytest.raises(UserError, match="has steps 1234567, 1234568, 1234569, each of another policy"):
        read_groups([file], OWN)


def test_a_temperature_of_some_rows_is_said_to_be_of_some(model: Path, tmp_path: Path) -> None:
    content = rows(temperature=lambda p, g: 0.7 if (p, g) == (0, 0) else None)
    _, notes = encoded(write(tmp_path / "own.jsonl", content), model)
    assert "Temperature of sampling: 0.7 (unknown for 11 responses, taken as the same)" in notes.paragraph()
    _, notes = encoded(write(tmp_path / "all.jsonl", rows(temperature=0.7)), model)
    assert "Temperature of sampling: 0.7;" in notes.paragraph()


@pytest.mark.parametrize("filler", [SAID, "", "[]"])
def test_a_column_of_json_is_of_messages(filler: str, tmp_path: Path) -> None:
    content = rows(response=lambda p, g: SAID if g else filler)
    groups, _ = read_groups([write(tmp_path / "own.jsonl", content)], OWN)
    assert groups[0].records[1].response == [{"role": "assistant", "content": "9"}]


def test_json_among_texts_is_text(tmp_path: Path) -> None:
    content = rows(response=lambda p, g: SAID if (p, g) == (0, 3) else "9")
    groups, _ = read_groups([write(tmp_path / "own.jsonl", content)], OWN)
    assert groups[0].records[3].response == SAID


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"response": lambda p, g: "9" if (p, g) == (0, 3) else SAID},
            "row 4 has a response that is no JSON of messages",
        ),
        (
            {"prompt": "[{'role': 'user', 'content': '1+1='}]"},
            "row 1 has a prompt that is messages as Python writes them",
        ),
        ({"response": [{"role": "user", "content": "9"}]}, "row 1 has a response whose message has the role 'user'"),
        ({"prompt_id": ""}, "row 5 has another prompt than .* the same id ''; an id"),
    ],
)
def test_columns_that_are_not_what_they_should_be(
    columns: dict[str, Any], says: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        encoded(write(tmp_path / "own.jsonl", rows(**columns)), model)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"reward": 1e300}, r"reward.columns: reward has the weight 1e\+300; a number up to 1e\+12 is needed"),
        ({"reward": float("nan")}, "reward has the weight nan"),
        ({"reward": 1.0, "large": 11.0}, r"row 1 has a weighted sum of reward and large of 1.10e\+13"),
    ],
)
def test_weights_are_bounded_like_rewards(weights: dict[str, float], says: str, tmp_path: Path) -> None:
    choice = RewardChoice(columns=weights)
    file = write(tmp_path / "own.jsonl", rows(large=1e12))
    with pytest.raises(UserError, match=says):
        answers(read_groups([file], choice)[0], choice, lambda _: 1)
