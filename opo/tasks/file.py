"""Prompts from a file, for a reward function of one's own: `task=file task.path=DATA reward.function=my_module:score`."""

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from opo.errors import UserError
from opo.keys import STRICT, Seed
from opo.tasks.base import Prompt, is_messages, shown
from opo.tasks.data import Laps, column, column_name, read_rows
from opo.tasks.own import stripped

PROMPT_KEYS = ("prompt", "question", "problem", "messages", "input")
ANSWER_KEYS = ("answer", "solution", "ground_truth", "reward_model.ground_truth")


@dataclass(frozen=True, config=STRICT)
class FileConfig:
    """`path`: JSONL or parquet with a prompt (text, or messages) in each row; every other column is handed to the reward function."""

    path: str = ""
    eval_path: str | None = None  # a file of its own for the eval split; null: an eighth of the prompts of `path`
    prompt_key: str | None = None  # null: prompt, question, problem, messages or input
    template: Literal["auto", "plain", "chat"] = (
        "auto"  # auto: messages through the tokenizer's chat template, text as it is
    )
    name: Literal["file"] = "file"
    seed: Seed = 0  # of the order of the prompts


class File:
    """The rows as prompts; `Prompt.metadata` holds the other columns, `Prompt.answer` an answer column that is text."""

    name = "file"
    stop: tuple[str, ...] = ()

    def __init__(self, config: FileConfig):
        self.config = config
        self._laps = Laps(config.path, config.eval_path, config.seed, self._read)

    def __reduce__(self):
        return _scorer, (self.config,)

    def prompt(self, index: int, split: str = "train") -> Prompt:
        prompt, columns = self._laps.row(index, split)
        answer = next((value for key in ANSWER_KEYS if isinstance(value := column(columns, key), str)), "")
        if is_messages(prompt):
            return Prompt(index, shown(prompt), answer, columns, chat=True, messages=tuple(prompt))
        return Prompt(index, prompt, answer, columns, chat=self.config.template == "chat")

    def score(self, prompt: Prompt, response: str) -> float:
        raise UserError("task=file: has no reward of its own; give reward.function=my_module:score")

    def extract(self, response: str) -> str | None:
        return stripped(response)

    def _read(self, path: str, key: str) -> list[tuple[str, Any]]:
        rows = []
        for number, row in read_rows(path, key):
            where = f"{path}:{number}"
            name = column_name(row, "task.prompt_key", self.config.prompt_key, PROMPT_KEYS, where)
            prompt = column(row, name)
            if not (is_messages(prompt) or (isinstance(prompt, str) and prompt.strip())):
                raise UserError(
                    f"{where}: {name} must be text or a list of messages with role and content, and not empty"
                )
            if is_messages(prompt) and self.config.template == "plain":
                raise UserError(
                    f"{where}: {name} is a list of messages, which need task.template=auto or chat and a model with a chat template"
                )
            columns = {other: value for other, value in row.items() if other != name}
            rows.append((prompt if isinstance(prompt, str) else shown(prompt), (prompt, columns)))
        return rows


def _scorer(config: FileConfig) -> File:
    """A copy for a worker, which reads no file."""
    task = object.__new__(File)
    task.config = config
    return task
