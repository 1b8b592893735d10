"""Rows of the gallery: an algorithm of conf/algo, with overrides of `opo train` where it has some."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from opo.errors import UserError, near

EXPERIMENT = "experiment=zoo"
SGD = ("optim=sgd", "optim.learning_rate=0.05")
OWN_OPTIMIZER = {"harpg": SGD, "n_pg_igt": SGD}  # a gradient of length one: AdamW would undo it

OWN_REWARD = ("rlhs", "rluf")  # PPO again, unless reward.function is one's own: rows only where they are asked for


@dataclass(frozen=True)
class Row:
    """One row: the algorithm's name in conf/algo, and the overrides that go with it."""

    algorithm: str
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`opo`, or `opo + best_worst` where a key of the algorithm is changed."""
        values = [change.partition("=")[2] for change in self.changes if change.startswith("algo.")]
        return " + ".join([self.algorithm, *values])

    def overrides(self, shared: Sequence[str]) -> list[str]:
        """What `opo train` is given for this row, but for seed and length."""
        return [EXPERIMENT, f"algo={self.algorithm}", *OWN_OPTIMIZER.get(self.algorithm, ()), *self.changes, *shared]

    def training(self, shared: Sequence[str], seed: int, tokens: int) -> list[str]:
        """The overrides of one training."""
        return [*self.overrides(shared), f"seed={seed}", f"tokens={tokens}"]


def all_rows() -> list[str]:
    """Every algorithm and preset of conf/algo."""
    return sorted(file.stem for file in Path(import_module("conf").__path__[0], "algo").glob("*.yaml"))


def row_of(words: Sequence[str]) -> Row:
    """`opo algo.filter=best_worst`, in words, as a row. Raises UserError for a name that does not exist."""
    known = all_rows()
    if not words or words[0] not in known:
        wrong = " ".join(words)
        raise UserError(
            f"algorithms: {wrong or 'an empty name'} is none of conf/algo{near(wrong, known)}; `opo algorithms` lists them"
        )
    return Row(words[0], tuple(words[1:]))
