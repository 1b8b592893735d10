"""Questions and answers from a JSONL file, scored by math-verify: equal as mathematics, not as text."""

import json
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal

from pydantic.dataclasses import dataclass

from opo.errors import UserError
from opo.keys import STRICT, Seed
from opo.tasks.base import Prompt, held_out, last_number

BOXED = "\\boxed{"


@dataclass(frozen=True, config=STRICT)
class MathConfig:
    """`path`: one object a line with the keys `question` and `answer` (LaTeX or plain)."""

    path: str = ""  # of the JSONL file
    name: Literal["math"] = "math"
    seed: Seed = 0  # of the order of the questions
    template: Literal["plain", "chat"] = "chat"
    instruction: str = "Think step by step and put the final answer in \\boxed{}."  # follows the question


class Math:
    """Every pass over the file is a new permutation; about an eighth of its questions, by content, is the eval split."""

    name = "math"
    stop: tuple[str, ...] = ()

    def __init__(self, config: MathConfig):
        import math_verify  # half a second, and its parser's first call another: paid at start-up

        self._parse, self._verify = math_verify.parse, math_verify.verify
        self.config = config
        rows = _read(config.path)
        self._rows = {
            "train": [row for row in rows if not held_out(row[0])],
            "eval": [row for row in rows if held_out(row[0])],
        }

    def __reduce__(self):
        return Math, (self.config,)

    def prompt(self, index: int, split: str = "train") -> Prompt:
        rows = self._rows[split]
        if not rows:
            raise UserError(
                f"task.path={self.config.path}: none of its questions falls into the {split} split; give more"
            )
        lap, position = divmod(index, len(rows))
        question, answer = rows[_permutation(self.config.seed, split, lap, len(rows))[position]]
        text = f"{question}\n{self.config.instruction}\n" if self.config.instruction else f"{question}\n"
        return Prompt(index, text, answer, chat=self.config.template == "chat")

    def score(self, prompt: Prompt, response: str) -> float:
        # no limit of its own, on which math-verify answers False: the worker's makes the response unscored
        gold, given = (self._parse(text, parsing_timeout=0) for text in (f"${prompt.answer}$", response))
        return float(self._verify(gold, given, timeout_seconds=0))

    def extract(self, response: str) -> str | None:
        """What stands in the last \\boxed{}, else the last number: as text, for this runs where nothing can be killed."""
        start = response.rfind(BOXED)
        if start < 0:
            return last_number(response)
        depth, body = 1, response[start + len(BOXED) :]
        for i, character in enumerate(body):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return "".join(body[:i].split()) or None
        return None


def _read(path: str) -> list[tuple[str, str]]:
    """(question, answer) of every line. Raises UserError naming the file and line that does not hold them."""
    if not Path(path).is_file():
        raise UserError(f"task.path={path}: no such file; give a JSONL file with the keys question and answer")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append((row["question"], row["answer"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: needs an object with the keys question and answer") from error
        if not all(isinstance(text, str) and text for text in rows[-1]):
            raise UserError(f"{path}:{number}: question and answer must be text and not empty")
    return rows


@lru_cache(maxsize=8)
def _permutation(seed: int, split: str, lap: int, count: int) -> list[int]:
    """The order in which one pass over a split visits its questions."""
    return Random(f"{seed}/{split}/{lap}").sample(range(count), count)
