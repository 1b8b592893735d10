"""Any procedural dataset of reasoning-gym (https://github.com/open-thought/reasoning-gym) as a task, scored by its own scorer.

reasoning-gym seeds item i of a dataset with seed + i, so that neighbouring seeds share nearly all items. Here every item is item 0
of a dataset of its own, under a seed drawn from (seed, split, index).
"""

import csv
import io
import os
import random
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.errors import UserError, near
from opo.keys import STRICT, Seed
from opo.tasks.answers import canonical, last_number
from opo.tasks.base import SPLITS, Prompt, held_out

ATTEMPTS = 1000  # draws for a question of the wanted split
TABLE = Path(__file__).with_suffix(".csv")  # what tests/benchmarks/survey_reasoning_gym.py found about every dataset
OPEN_TAG, CLOSE_TAG = "<answer>", "</answer>"


@dataclass(frozen=True, config=STRICT)
class Example:
    """One solved question of a few-shot prompt."""

    question: str
    response: str


@dataclass(frozen=True, config=STRICT)
class ReasoningGymConfig:
    """Which dataset, how its questions are put and how its answers are read."""

    name: Literal["reasoning_gym"] = "reasoning_gym"
    seed: Seed = 0  # of the stream of prompts
    dataset: str = "chain_sum"
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset's own config, without seed and size
    template: Literal["plain", "chat", "few_shot"] = "plain"
    question: str = "{question}"  # str.format over the item: {question}, {metadata[KEY]}
    examples: list[Example] = field(default_factory=list)  # of few_shot
    answer: Literal["number", "text"] = "number"  # the last number, or all of the response; <answer> tags go first
    binary: bool = True  # 1 for the scorer's full mark, else 0; false: the score itself, at most 1
    allow_eval: bool = False  # take a dataset whose scorer runs the answer as code


class ReasoningGym:
    """Items of one dataset. A response's answer is what stands in its last <answer> tag, or its last number, or all of it."""

    def __init__(self, config: ReasoningGymConfig):
        self.name, self.config = config.dataset, config
        self.stop: tuple[str, ...] = ("\n",) if config.template == "few_shot" else ()
        if (config.template == "few_shot") != bool(config.examples):
            raise UserError(f"task.template={config.template}: task.examples is for few_shot, which needs at least one")
        self.warnings = list(_warnings(config))  # raises where answers are executed
        self._scorer = _create(config, 0)
        self._item = lru_cache(maxsize=4096)(self._draw)  # evaluations ask for the same prompts again
        self.prompt(0)  # a question format that does not fit shows here

    def __reduce__(self):
        return ReasoningGym, (self.config,)

    def prompt(self, index: int, split: str = "train") -> Prompt:
        item = self._item(index, split)
        try:
            question = self.config.question.format(**item)
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            reason = f"{error}" if isinstance(error, ValueError) else f"no {error}"
            raise UserError(
                f"task.question={self.config.question}: {reason}; an item of {self.name} has question, answer and "
                f"metadata with {', '.join(item['metadata'])}"
            ) from error
        text = question
        if self.config.template == "few_shot":
            solved = [f"Question: {example.question}\nAnswer: {example.response}\n" for example in self.config.examples]
            text = "".join(solved) + f"Question: {question}\nAnswer:"
        return Prompt(index, text, item["answer"] or "", {"item": item}, chat=self.config.template == "chat")

    def score(self, prompt: Prompt, response: str) -> float:
        item = prompt.metadata["item"]
        try:
            mark = self._scorer.score_answer(self._answer(response), item)
        except (Exception, SystemExit):
            # a malformed answer is a wrong one; where the gold answer raises too, the fault is the item's
            self._scorer.score_answer(prompt.answer, item)
            return 0.0
        return float(mark == 1) if self.config.binary else min(float(mark), 1.0)

    def extract(self, response: str) -> str | None:
        answer = self._answer(response)
        return canonical(answer) if answer is not None and self.config.answer == "number" else answer

    def _answer(self, response: str) -> str | None:
        """What the scorer is given: what stands between the last pair of tags, else the last number, or all of it."""
        for stop in self.stop:
            response = response.partition(stop)[0]
        end = response.rfind(CLOSE_TAG)
        start = response.rfind(OPEN_TAG, 0, max(end, 0))
        if start >= 0:
            return response[start + len(OPEN_TAG) : end].strip()
        if self.config.answer == "text":
            return response.strip() or None
        return last_number(response)

    def _draw(self, index: int, split: str) -> dict[str, Any]:
        rng = random.Random(f"{self.config.seed}/{SPLITS.index(split)}/{index}")
        for _ in range(ATTEMPTS):
            with redirect_stdout(io.StringIO()):  # some print while they make an item
                item = _create(self.config, rng.getrandbits(31))[0]
            if held_out(item["question"]) == (split == "eval"):
                return item
        raise UserError(
            f"task.dataset={self.config.dataset}: too few different questions with these options for the {split} split"
        )


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        return {row["dataset"]: row for row in csv.DictReader(stream)}


def surveyed(dataset: str) -> dict[str, str]:
    """What the survey found about a dataset (the columns are explained in reasoning_gym.md beside the table)."""
    return _table().get(dataset, {})


def _warnings(config: ReasoningGymConfig) -> Iterator[str]:
    """Why the rewards of this dataset, or of a part of a composite, cannot be trusted as they are.

    Raises UserError where the scorer runs the answer as code and `allow_eval` does not take that.
    """
    parts = (
        [spec.get("name", "") for spec in config.options.get("datasets", [])] if config.dataset == "composite" else []
    )
    for name in [config.dataset, *parts]:
        survey = surveyed(name)
        if survey.get("executes") == "yes" and not config.allow_eval:
            raise UserError(
                f"task.dataset={name}: its scorer runs the model's answer as Python code in the reward worker; choose another, or take "
                "that with task.allow_eval=true"
            )
        if survey.get("oracle", "1") not in ("1", ""):
            yield f"task.dataset={name}: its scorer gives the full mark to {survey['oracle']} of its own gold answers"
        if kinds := "; ".join(kind for kind in survey.get("wrong_paid", "").split("; ") if kind != "another item's"):
            yield f"task.dataset={name}: its scorer gives the full mark to wrong answers ({kinds})"
        if survey and not config.binary and float(survey["floor"] or 0) > 0:
            yield f"task.dataset={name}: with task.binary=false a wrong answer earns up to {survey['floor']}"
        if survey and not config.binary and float(survey.get("around") or 0) > 0:
            yield f"task.dataset={name}: with task.binary=false the right answer among other text earns up to {survey['around']}"
        if survey and config.answer == "number" and survey["number"] != "1" and OPEN_TAG not in config.question:
            yield (
                f"task.dataset={name}: its answers are not the last number of a text; set task.answer=text, or ask for {OPEN_TAG} "
                "tags in task.question"
            )


def _without_compiler() -> None:
    """An empty pycosat where there is none: reasoning-gym imports it always and uses it for its zebra puzzles alone."""
    if "pycosat" not in sys.modules and find_spec("pycosat") is None:
        sys.modules["pycosat"] = ModuleType("pycosat")


def _create(config: ReasoningGymConfig, seed: int):
    """The dataset of one item under this seed. Raises UserError for a name or option that reasoning-gym does not have."""
    _without_compiler()
    from reasoning_gym.composite import DatasetSpec  # takes a second to import, which only this task should pay
    from reasoning_gym.factory import DATASETS

    if config.dataset == "zebra_puzzles" and not hasattr(sys.modules["pycosat"], "itersolve"):
        raise UserError("task.dataset=zebra_puzzles: needs pycosat, which pip builds with a C compiler; choose another")
    if config.dataset not in DATASETS:
        raise UserError(
            f"task.dataset={config.dataset}: reasoning-gym has no such dataset{near(config.dataset, DATASETS)}; "
            f"allowed are {', '.join(sorted(DATASETS))}"
        )
    if (
        surveyed(config.dataset).get("same_questions") == "no"
        and os.environ.get("PYTHONHASHSEED", "random") == "random"
    ):
        raise UserError(
            f"task.dataset={config.dataset}: its questions follow Python's hash seed; set PYTHONHASHSEED=0 in the environment"
        )
    dataset, settings = DATASETS[config.dataset]
    options = dict(config.options)
    if reserved := options.keys() & {"seed", "size"}:
        raise UserError(f"task.options.{min(reserved)}: not an option; task.seed numbers the stream, which has no end")
    try:
        if config.dataset == "composite":
            options["datasets"] = [DatasetSpec(**{"config": {}, **spec}) for spec in options.get("datasets", [])]
        return dataset(settings(**options, seed=seed, size=1))
    except (TypeError, ValueError, AssertionError) as error:
        allowed = sorted(settings.__dataclass_fields__.keys() - {"seed", "size"})
        raise UserError(f"task.options: {error}; options of {config.dataset} are {', '.join(allowed)}") from error
