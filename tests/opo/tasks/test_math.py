"""Files of questions as people have them: read whole, or refused with the file and the line."""

import gzip
import json
import pickle
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opo.errors import UserError
from opo.rewards.runner import RewardRunner
from opo.tasks import render
from opo.tasks.math import Math, MathConfig


def task_of(path, **values):
    return Math(MathConfig(path=str(path), **values))


def written(tmp_path, rows, name="q.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fractions(tmp_path):
    return written(
        tmp_path, [{"question": f"What is {a} / {a + 1}?", "answer": f"\\frac{{{a}}}{{{a + 1}}}"} for a in range(1, 61)]
    )


def all_answers(task):
    """Gold answer by question, over both splits."""
    found = {}
    for split in ("train", "eval"):
        for index in range(40):
            try:
                prompt = task.prompt(index, split)
            except UserError:
                break
            found[prompt.text.splitlines()[0]] = prompt.answer
    return found


def test_math_is_equal_as_mathematics(fractions):
    task = task_of(fractions)
    prompt = next(p for p in map(task.prompt, range(60)) if p.answer == "\\frac{1}{2}")
    assert prompt.chat
    for response in ("so \\boxed{\\frac12}", "$0.5$", "the answer is 1/2", "\\boxed{\\frac{2}{4}}"):
        assert task.score(prompt, response) == 1, response
    for response in ("\\boxed{\\frac13}", "", "half of it", "\\boxed{2}", "\\boxed{1/2} no, \\boxed{"):
        assert task.score(prompt, response) == 0, response
    assert task.extract("\\boxed{1}, then \\boxed{ \\frac{1}{2} }.") == "1/2"
    assert task.extract("\\boxed{1") is None
    assert task.extract("it is 1,000") == task.extract("1000.0") == "1000"


def test_workers_score_without_reading_the_file(fractions):
    task = task_of(fractions)
    prompt = task.prompt(0)
    pickled = pickle.dumps(task)
    fractions.unlink()
    assert pickle.loads(pickled).score(prompt, f"\\boxed{{{prompt.answer}}}") == 1


def test_a_wrong_answer_that_cannot_be_computed_is_scored_and_not_lost(fractions):
    task = task_of(fractions)
    with RewardRunner(task, timeout_s=20.0) as runner:
        responses = [f"\\boxed{{{answer}}}" for answer in ("9^{9^{9^{9}}}", "100000000!", "(" * 2000, r"\frac{1}{2")]
        scored = runner.score([task.prompt(0)], [[*responses, f"\\boxed{{{task.prompt(0).answer}}}"]])
    assert not scored.reasons
    assert scored.rewards_PG.tolist() == [[0.0, 0.0, 0.0, 0.0, 1.0]]


def test_math_visits_every_question_once_a_lap(fractions):
    task = task_of(fractions, seed=5)
    count = next(i for i in range(1, 60) if len({task.prompt(j).text for j in range(i + 1)}) == i)
    first, second = ([task.prompt(lap * count + i).text for i in range(count)] for lap in (0, 1))
    assert len(set(first)) == count
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("rows", "values", "answer"),
    [
        ([{"problem": "p?", "solution": "It is $\\boxed{7}$.", "level": 3}], {}, "7"),
        ([{"question": "p?", "answer": "7 apples are 7.\n#### 7"}], {}, "7"),
        ([{"question": "p?", "answer": 7}], {}, "7"),
        ([{"question": "p?", "answer": float("nan"), "solution": "\\boxed{7}"}], {}, "7"),
        ([{"question": "p?", "answer": ["7"]}], {}, "7"),
        ([{"ask": "p?", "gold": "7"}], {"question_key": "ask", "answer_key": "gold"}, "7"),
        ([{"prompt": "p?", "reward_model": {"ground_truth": "7"}}], {}, "7"),
        ([{"question": "p?", "answer": "9", "solution": "\\boxed{7}"}], {"answer_key": "solution"}, "7"),
    ],
)  # fmt: skip
def test_files_as_they_are_found(tmp_path, rows, values, answer):
    rows = [{**row, next(iter(row)): f"p{i}?"} for row in rows for i in range(40)]
    jsonl = all_answers(task_of(written(tmp_path, rows), **values))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert jsonl == all_answers(task_of(tmp_path / "q.parquet", **values)) == {f"p{i}?": answer for i in range(40)}


def test_a_decimal_column_is_numbers(tmp_path):
    rows = [{"question": f"p{i}?", "answer": Decimal("7.50")} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    task = task_of(tmp_path / "q.parquet")
    assert task.score(task.prompt(0), "\\boxed{\\frac{15}{2}}") == 1.0


def test_messages_go_through_the_chat_template(tmp_path):
    class Tokenizer:
        chat_template = "of its own"

        def apply_chat_template(self, messages, add_generation_prompt, tokenize, **_):
            return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = written(tmp_path, [{"prompt": messages, "answer": "2"}])
    prompt = task_of(path, eval_path=str(written(tmp_path, [{"prompt": "q", "answer": "3"}], "e.jsonl"))).prompt(0)
    assert render(prompt, Tokenizer()) == "<system>Be brief.<user>1+1?<assistant>"
    Tokenizer.chat_template = ""
    with pytest.raises(
        UserError, match=r"prompt 0 is a list of messages, .* has no chat template; choose a model with one"
    ):
        render(prompt, Tokenizer())


def test_lines_that_are_legal(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [
        json.dumps({"question": f"a\u2028b\u0085 {i}", "answer": "1", "x": float("nan")}, ensure_ascii=False)
        for i in range(30)
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode())
    assert len(all_answers(task_of(path))) == 1  # all begin with the same line, a
    assert task_of(path).prompt(0).answer == "1"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "task.path=.*: no such file"),
        (b"", "task.path=.*: holds no rows"),
        (b"not json", ":1: is not JSON"),
        (b"[1]", ":1: is a list; needs one JSON object"),
        (gzip.compress(b"{}", mtime=0), "is gzip; needs plain UTF-8 text"),
        ('{"question": "a"}'.encode("utf-16"), "is UTF-16; needs plain UTF-8 text"),
        ('{"question": "a"}'.encode("utf-32"), "is UTF-32; needs plain UTF-8 text"),
        (b'{"question": "a", "answer": "1", "answer": "2"}', ":1: has the key answer twice"),
        (b'{"question": "a\\ud800", "answer": "1"}', ":1: has half of a surrogate pair"),
        (b'{"question": "a", "answer": "1"}\n\n{"question": "b"}', ":3: has no answer or solution.* task.answer_key=NAME"),
        (b'{"q": "a", "answer": "1"}', ":1: has no question or problem.*its columns are q, answer.*task.question_key=NAME"),
        (b'{"question": "a", "answer": ""}', ":1: the answer ''"),
        (b'{"question": " ", "answer": "1"}', ":1: the question must be text"),
        (b'{"question": "a", "answer": "1"}\n{"question": "b", "answer": "She climbs one floor while he climbs five floors."}', ":2: the answer 'She"),
        (b'{"question": "a", "answer": "1"}\n{"question": "caf\xe9", "answer": "1"}', ":2: is not UTF-8"),
        (b'{"question": "a", "answer": "1"}\n{"question": "b", "ans', ":2: is not JSON"),
        (b'{"question": "a", "answer": NaN}', ":1: has no answer or solution .*; its columns are question, answer"),
        (b'{"question": "a", "answer": Infinity}', ":1: the answer inf is no number"),
        (b'{"question": "a", "answer": true}', ":1: the answer True is no number"),
        (b'{"question": "a", "answer": ["1", "2"]}', r":1: the answer \['1', '2'\] is no number"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", ":1: has an integer of more than 4300 digits; needs it as text"),
    ],
)  # fmt: skip
def test_math_names_the_line_it_cannot_read(tmp_path, content, says):
    path = tmp_path / "q.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        task_of(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([b"caf\xe9"]).view(pa.string()), "the column odd cannot be read .*; leave it out"),
        (pa.array([2**62], pa.int64()).cast(pa.timestamp("us")), "the column odd cannot be read .*; leave it out"),
        (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "the column odd cannot be read .*; leave it out"),
        (pa.array([0], pa.timestamp("us", tz="Mars/Phobos")), "the column odd cannot be read .*; leave it out"),
        (pa.array(["2"]), "has the column answer twice"),
    ],
)  # fmt: skip
def test_math_names_the_column_it_cannot_read(tmp_path, column, says):
    names = ["question", "answer", "answer" if "twice" in says else "odd"]
    pq.write_table(pa.Table.from_arrays([pa.array(["1+1"]), pa.array(["2"]), column], names), tmp_path / "q.parquet")
    with pytest.raises(UserError, match=says) as caught:
        task_of(tmp_path / "q.parquet")
    assert "\n" not in str(caught.value)


def test_answers_that_cannot_be_compared_are_left_out_on_request(tmp_path, capsys):
    rows = [
        {"question": f"q{i}", "answer": "see the figure that is drawn above" if i % 3 == 0 else "1"} for i in range(60)
    ]
    assert len(all_answers(task_of(written(tmp_path, rows), unreadable="skip"))) == 40
    assert "20 of 60 rows left out" in capsys.readouterr().out


def test_an_eval_split_without_questions_is_refused_by_name(tmp_path):
    few = task_of(written(tmp_path, [{"question": "only one 3", "answer": "1"}]))
    split = "eval" if few._laps._rows["train"] else "train"
    with pytest.raises(UserError, match=rf"none of its questions falls into the {split} split.*task.eval_path"):
        few.prompt(0, split)
    own = written(tmp_path, [{"question": f"e{i}", "answer": "2"} for i in range(3)], "eval.jsonl")
    task = task_of(written(tmp_path, [{"question": f"q{i}", "answer": "1"} for i in range(3)]), eval_path=str(own))
    assert {task.prompt(i, "eval").answer for i in range(3)} == {"2"}
    assert {task.prompt(i).answer for i in range(9)} == {"1"}
    with pytest.raises(UserError, match="the eval split has 3 questions and question 4 was asked for"):
        task.prompt(3, "eval")
