r"""Questions and answers from a file, scored as mathematics: which box counts is `opo.tasks.answers`' affair, equality `opo.tasks.equality`'s.

Files as they are found: MATH (`problem`, `solution` with a box), GSM8K (`question`, `answer` that ends in `#### 7`), verl's parquet
(`prompt` of messages, `reward_model.ground_truth`), or any two columns that `task.question_key` and `task.answer_key` name.
"""

from decimal import Decimal
from functools import cached_property
from math import isfinite
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.errors import UserError
from opo.keys import STRICT, Seed
from opo.system.terminal import say
from opo.tasks import equality
from opo.tasks.answers import BOX, canonical, final_answer
from opo.tasks.base import Prompt, is_messages, shown
from opo.tasks.data import Laps, column, column_name, read_rows

QUESTION_KEYS = ("question", "problem", "prompt")
ANSWER_KEYS = ("answer", "solution", "ground_truth", "reward_model.ground_truth")


@dataclass(frozen=True, config=STRICT)
class MathConfig:
    """`path`: JSONL or parquet with a question (text, or messages) and an answer (LaTeX or plain) in each row."""

    path: str = ""
    eval_path: str | None = None  # a file of its own for the eval split; null: an eighth of the questions of `path`
    question_key: str | None = None  # null: question, problem or prompt
    answer_key: str | None = None  # null: answer, solution, ground_truth or reward_model.ground_truth
    unreadable: Literal["refuse", "skip"] = "refuse"  # rows whose answer cannot be compared
    name: Literal["math"] = "math"
    seed: Seed = 0  # of the order of the questions
    template: Literal["plain", "chat"] = "chat"
    instruction: str = "Think step by step and put the final answer in \\boxed{}."  # follows the question


class Math:
    """Reward 1 where the response's final answer equals the gold answer as mathematics, else 0."""

    name = "math"
    stop: tuple[str, ...] = ()

    def __init__(self, config: MathConfig):
        self.config = config
        _ = self._laps  # what is wrong with the files is said now

    @cached_property
    def _laps(self) -> Laps:
        config = self.config
        return Laps(config.path, config.eval_path, config.seed, lambda path, key: _read(config, path, key))

    def __reduce__(self):
        return _scorer, (self.config,)

    def prompt(self, index: int, split: str = "train") -> Prompt:
        question, answer = self._laps.row(index, split)
        if is_messages(question):
            return Prompt(index, shown(question), answer, chat=True, messages=tuple(question))
        instruction = f"{self.config.instruction}\n" if self.config.instruction else ""
        return Prompt(index, f"{question}\n{instruction}", answer, chat=self.config.template == "chat")

    def score(self, prompt: Prompt, response: str) -> float:
        given = final_answer(response)
        return float(given is not None and equality.equal(prompt.answer, given))

    def extract(self, response: str) -> str | None:
        """The final answer as votes count it: numbers by value."""
        given = final_answer(response)
        return (canonical(given) or None) if given is not None else None


def _scorer(config: MathConfig) -> Math:
    """A copy that reads the files when it is asked for a prompt, which no worker is."""
    equality.warm_up()
    task = object.__new__(Math)
    task.config = config
    return task


def gold(text: str) -> str:
    r"""The answer within a solution: after the last ####, else what is boxed, else all of it."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    if BOX.search(text):
        return final_answer(text) or ""
    return text.strip()


def _text(answer: Any) -> str:
    """An answer as text, also where it is a number or a list of one; "" where it can be none."""
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 else answer
    if isinstance(answer, str):
        return answer
    number = isinstance(answer, int | Decimal) or (isinstance(answer, float) and isfinite(answer))
    return str(answer) if number and not isinstance(answer, bool) else ""


def _read(config: MathConfig, path: str, key: str) -> list[tuple[str, Any]]:
    """(question as text, (question, gold answer)) of every row. Raises UserError naming the file and row that cannot be used."""
    rows, unreadable = [], 0
    for number, row in read_rows(path, key):
        where = f"{path}:{number}"
        question = column(row, column_name(row, "task.question_key", config.question_key, QUESTION_KEYS, where))
        answer = column(row, column_name(row, "task.answer_key", config.answer_key, ANSWER_KEYS, where))
        if not (is_messages(question) or (isinstance(question, str) and question.strip())):
            raise UserError(f"{where}: the question must be text or a list of messages, and not empty")
        given, answer = answer, gold(_text(answer))
        if not equality.readable(answer):
            unreadable += 1
            if config.unreadable == "refuse":
                raise UserError(
                    f"{where}: the answer {(answer[:60] if answer else given)!r:.62} is no number, formula or word that a response "
                    "could be compared with; mend it, or leave such rows out with task.unreadable=skip"
                )
            continue
        rows.append((question if isinstance(question, str) else shown(question), (question, answer)))
    if unreadable:
        say(f"{path}: {unreadable} of {unreadable + len(rows)} rows left out, since their answers cannot be compared")
    return rows
