"""Sums of small numbers, for a policy made in a minute: an instrument in which length has something to do with reward.

A sum can be answered at once (short, mostly wrong), through its running sums (long, mostly right) or by wandering (long, mostly
wrong). `demonstrations` mixes these manners at random for the same question, with errors, so that a policy warmed up on them
answers every question in all of them: about half the rewards are one, and responses to one prompt differ in length many times.
"""

import random
import re
from dataclasses import dataclass

from opo.errors import UserError
from opo.tasks.base import SPLITS, Prompt, held_out

ALPHABET = "0123456789+-*/=|;:()?!., " + "abcdefghijklmnopqrstuvwxyz"

# manner of answering: (share of the demonstrations, chance that a sum in it is wrong)
MANNERS = {"direct": (0.45, 0.40), "steps": (0.40, 0.04), "wander": (0.15, 0.25)}


@dataclass(frozen=True)
class ArithmeticConfig:
    """`terms_min`..`terms_max` addends between 1 and `addend_max`; `seed` numbers the stream of prompts."""

    name: str = "arithmetic"
    seed: int = 0
    terms_min: int = 3
    terms_max: int = 5
    addend_max: int = 9

    def __post_init__(self):
        if not 2 <= self.terms_min <= self.terms_max <= 6:
            raise UserError(f"task.terms_min={self.terms_min}, task.terms_max={self.terms_max}: need 2 <= terms_min <= terms_max <= 6")
        if not 3 <= self.addend_max <= 99:
            raise UserError(f"task.addend_max={self.addend_max}: allowed are 3 to 99")


class Arithmetic:
    """Prompts "7+5+9="; reward 1 where the response's last number, after its last "=", is the sum, else 0."""

    name = "arithmetic"
    stop: tuple[str, ...] = ()

    def __init__(self, config: ArithmeticConfig):
        self.config = config

    def prompt(self, index: int, split: str = "train") -> Prompt:
        rng = random.Random(f"{self.config.seed}/{SPLITS.index(split)}/{index}")
        addends = self._addends(rng, split)
        return Prompt(index, _question(addends), str(sum(addends)))

    def score(self, prompt: Prompt, response: str) -> float:
        return float(self.extract(response) == prompt.answer)

    def extract(self, response: str) -> str | None:
        last = response.rpartition("=")[2].strip()
        return last if re.fullmatch(r"\d+", last) else None

    def demonstrations(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        """(prompt, response) pairs over questions of the train split, in the manners and with the errors of `MANNERS`."""
        manners, shares = list(MANNERS), [share for share, _ in MANNERS.values()]
        pairs = []
        for manner in rng.choices(manners, shares, k=count):
            addends = self._addends(rng, "train")
            pairs.append((_question(addends), _demonstration(rng, addends, manner)))
        return pairs

    def _addends(self, rng: random.Random, split: str) -> list[int]:
        while True:
            terms = rng.randint(self.config.terms_min, self.config.terms_max)
            addends = [rng.randint(1, self.config.addend_max) for _ in range(terms)]
            if held_out(_question(addends)) == (split == "eval"):
                return addends


def _question(addends: list[int]) -> str:
    return "+".join(map(str, addends)) + "="


def _demonstration(rng: random.Random, addends: list[int], manner: str) -> str:
    error_rate = MANNERS[manner][1]

    def noisy(value: int) -> int:
        return max(0, value + rng.choice((-10, -2, -1, 1, 2, 10))) if rng.random() < error_rate else value

    if manner == "direct":
        return str(noisy(sum(addends)))
    total, steps = addends[0], []
    for addend in addends[1:]:
        step = f"{total}+{addend}="
        total = noisy(total + addend)
        steps.append(f"{step}{total}")
        if manner == "wander" and rng.random() < 0.5:
            steps.append(f"{total}?")
    return ";".join(steps)
