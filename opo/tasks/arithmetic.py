"""Sums of small numbers, for a policy made in a minute: an instrument in which length has something to do with reward.

A sum can be guessed (short, mostly wrong), reduced step by step as in 2+5+3=7+3=10 (long, mostly right), or reduced with detours
(longest, wrong more often). `demonstrations` mixes these manners at random over the same questions, so that a policy warmed up on
them answers every question in all of them: rewards are mixed within a group, and so are lengths, from two characters to some forty.
"""

import random
import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opo.errors import UserError
from opo.keys import STRICT, Seed
from opo.tasks.base import SPLITS, Prompt, held_out

ALPHABET = "0123456789+-*/=|;:()?!., " + "abcdefghijklmnopqrstuvwxyz"

SHARES = {"guess": 0.45, "steps": 0.40, "detours": 0.15}  # of the manners among demonstrations
GUESS_WIDTH = 3  # a guess is uniform within so much of the sum
STEP_ERROR = {"steps": 0.03, "detours": 0.15}  # chance that an addition goes wrong and is carried on
DETOUR = 0.5  # chance that an expression is written again before the next addition


Terms = Annotated[int, Field(ge=2, le=6)]


@dataclass(frozen=True, config=STRICT)
class ArithmeticConfig:
    """`terms_min`..`terms_max` addends between 1 and `addend_max`."""

    name: Literal["arithmetic"] = "arithmetic"
    seed: Seed = 0  # of the stream of prompts
    terms_min: Terms = 3
    terms_max: Terms = 5
    addend_max: Annotated[int, Field(ge=3, le=99)] = 5

    def __post_init__(self):
        if self.terms_min > self.terms_max:
            raise UserError(f"task.terms_min={self.terms_min}: allowed is at most task.terms_max={self.terms_max}")


class Arithmetic:
    """Prompts "2+5+3="; reward 1 where the response's last number, after its last "=", is the sum, else 0."""

    name = "arithmetic"
    stop: tuple[str, ...] = ()

    def __init__(self, config: ArithmeticConfig):
        self.config = config

    def prompt(self, index: int, split: str = "train") -> Prompt:
        rng = random.Random(f"{self.config.seed}/{SPLITS.index(split)}/{index}")
        addends = self._addends(rng, split)
        solution = "=".join(_question([sum(addends[: k + 1]), *addends[k + 1 :]])[:-1] for k in range(1, len(addends)))
        return Prompt(index, _question(addends), str(sum(addends)), {"solution": solution})

    def score(self, prompt: Prompt, response: str) -> float:
        return float(self.extract(response) == prompt.answer)

    def extract(self, response: str) -> str | None:
        last = response.rpartition("=")[2].strip()
        return last if re.fullmatch(r"\d+", last) else None

    def demonstrations(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        """(prompt, response) pairs over questions of the train split, in the manners and with the errors above."""
        pairs = []
        for manner in rng.choices(list(SHARES), list(SHARES.values()), k=count):
            addends = self._addends(rng, "train")
            response = _guess(rng, addends) if manner == "guess" else _reduction(rng, addends, manner)
            pairs.append((_question(addends), response))
        return pairs

    def _addends(self, rng: random.Random, split: str) -> list[int]:
        while True:
            terms = rng.randint(self.config.terms_min, self.config.terms_max)
            addends = [rng.randint(1, self.config.addend_max) for _ in range(terms)]
            if held_out(_question(addends)) == (split == "eval"):
                return addends


def _question(addends: list[int]) -> str:
    return "+".join(map(str, addends)) + "="


def _guess(rng: random.Random, addends: list[int]) -> str:
    return str(max(0, sum(addends) + rng.randint(-GUESS_WIDTH, GUESS_WIDTH)))


def _reduction(rng: random.Random, addends: list[int], manner: str) -> str:
    """The question's expression with its first two terms added up until one is left; detours write expressions twice."""
    terms, expressions = addends, []
    while len(terms) > 1:
        if manner == "detours" and rng.random() < DETOUR:
            expressions.append(terms)
        total = terms[0] + terms[1]
        if rng.random() < STEP_ERROR[manner]:
            total = max(0, total + rng.choice((-10, -2, -1, 1, 2, 10)))
        terms = [total, *terms[2:]]
        expressions.append(terms)
    return "=".join("+".join(map(str, terms)) for terms in expressions)
