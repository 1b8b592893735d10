"""The folder of `opo export verl`: train.sh, train.parquet, val.parquet, reward.py, and the model where it is built in."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opo.config.schema import RunConfig
from opo.errors import UserError
from opo.export.config import VerlExport
from opo.export.verl import notes, overrides
from opo.rewards.function import truth_of
from opo.system.atomic import replacing
from opo.tasks import Prompt, Task, make_task, render
from opo.tasks.own import is_reference, source_file

CONTENT = "{% for message in messages %}{{ message.content }}{% endfor %}"  # a prompt as it is, without a chat's frame
PLAIN = (CONTENT, "{{ bos_token }}" + CONTENT)
REWARD = '''"""The reward of this training for verl. It needs the project that wrote it beside verl (pip install --no-deps FOLDER)."""

import math
import os
import sys
from functools import cache, lru_cache

HERE = os.path.dirname(os.path.abspath(__file__))
TASK = {task!r}
FILES = {files!r}  # options of the task that name files of this folder
FUNCTIONS = {functions!r}  # of the reward, with their weights


@cache
def task():
    from opo.config.read import read
    from opo.tasks import kind_of, make_task

    sys.path.insert(0, HERE)
    values = TASK | {{key: os.path.join(HERE, name) for key, name in FILES.items()}}
    return make_task(read(kind_of(values), values, "task"), FUNCTIONS)


@lru_cache(maxsize=4096)
def prompt(index, split):
    return task().prompt(index, split)


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """verl's signature; the score of a response, 0 and unscored=1 where it cannot be scored."""
    asked = prompt(int(extra_info["index"]), extra_info["split"])
    try:
        score = float(task().score(asked, solution_str))
    except Exception as error:
        print(f"prompt {{asked.index}} unscored: {{type(error).__name__}}: {{error}}", file=sys.stderr)
        score = math.nan
    known = math.isfinite(score)
    return {{"score": score if known else 0.0, "unscored": 0.0 if known else 1.0}}
'''


def export_training(asked: VerlExport) -> Path:
    """Write the folder, whole or not at all, and print the command. Raises UserError where verl would see other prompts."""
    config, target = asked.run, Path(asked.path)
    task = make_task(config.task, config.reward.functions)
    if task.stop:
        raise UserError(
            f"task={task.name}: its responses end at {task.stop[0]!r}, where verl's do not; choose a template without that"
        )
    with replacing(target) as partial:
        partial.mkdir()
        model = _model(config, partial)
        told = overrides(config, asked.gpus, asked.machines)
        told |= _data(config, task, partial, model)
        write_reward(config, partial)
        lines = [f"{key}={written(value)}" for key, value in told.items()]
        script = _script(config, lines, model)
        (partial / "train.sh").write_text(script, encoding="utf-8")
    print(script)
    print(
        f"{target}: run it with `bash {shlex.quote(str(target / 'train.sh'))}` where verl 0.9.1 is installed",
        file=sys.stderr,
    )
    return target


def _model(config: RunConfig, folder: Path) -> str:
    """What verl loads: a path, or `model` for a built-in one that is copied into the folder."""
    from opo.model.load import model_source

    source = model_source(config.model)
    if config.model.path is not None:
        return str(Path(source).resolve()) if Path(source).exists() else source
    shutil.copytree(source, folder / "model")
    return "model"


def _data(config: RunConfig, task: Task, folder: Path, model: str) -> dict[str, Any]:
    """Write the prompts of every step in order, and the held-out ones; returns what verl must be told of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from opo.rollout.collect import encode_prompt

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / model if model == "model" else model)
    counts = {"train": config.steps * config.rollout.num_prompts, "eval": config.evaluate.num_prompts}
    longest, template = 0, ""
    for split, count in counts.items():
        prompts = [task.prompt(index, split) for index in range(count)]
        ids = [encode_prompt(tokenizer, render(p, tokenizer), p.chat) for p in prompts]
        longest = max(longest, *map(len, ids))
        template = template or _template(tokenizer, prompts[0], ids[0])
        for p, own in zip(prompts, ids, strict=True):
            if _verl_ids(tokenizer, p, template) != own:
                raise UserError(
                    f"task={task.name}: prompt {p.index} of the {split} stream has other tokens in verl's chat template"
                )
        table = pa.Table.from_pylist(list(rows_of(task.name, prompts, split)))
        pq.write_table(table, folder / ("train.parquet" if split == "train" else "val.parquet"))
    budget = max(config.optim.tokens_per_microbatch, longest + config.rollout.max_new_tokens)
    told: dict[str, Any] = {
        "data.max_prompt_length": longest,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": budget,
    }
    if template != "own":
        told["actor_rollout_ref.model.custom_chat_template"] = template
    return told


def _template(tokenizer: Any, prompt: Prompt, ids: list[int]) -> str:
    """The chat template that gives verl these tokens: `own` for the tokenizer's. Raises UserError where none does."""
    for template in ["own"] if prompt.chat else PLAIN:
        if (template != PLAIN[1] or tokenizer.bos_token) and _verl_ids(tokenizer, prompt, template) == ids:
            return template
    raise UserError(
        "model: verl puts prompts through a chat template, and none gives the tokens that are sampled from here"
    )


def _verl_ids(tokenizer: Any, prompt: Prompt, template: str) -> list[int]:
    """The tokens that verl makes of a row."""
    given = {} if template == "own" else {"chat_template": template}
    return tokenizer.apply_chat_template(_messages(prompt), add_generation_prompt=True, return_dict=False, **given)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [dict(m) for m in prompt.messages] or [{"role": "user", "content": prompt.text}]


def rows_of(name: str, prompts: list[Prompt], split: str) -> Iterator[dict[str, Any]]:
    """verl's columns."""
    for prompt in prompts:
        truth = truth_of(prompt)  # reward.py asks the task, so this is for the reader; a column of a table has one type
        yield {
            "data_source": name,
            "prompt": _messages(prompt),
            "ability": name,
            "reward_model": {
                "style": "rule",
                "ground_truth": truth if isinstance(truth, str) else json.dumps(truth, default=str),
            },
            "extra_info": {"index": prompt.index, "split": split},
        }


def write_reward(config: RunConfig, folder: Path) -> None:
    """reward.py, with the task's files and the user's modules beside it."""
    values, files = asdict(config.task), {}
    for key, value in values.items():
        if isinstance(value, str) and key in ("path", "eval_path") and Path(value).is_file():
            files[key] = f"task_{key}{Path(value).suffix}"
            shutil.copy(value, folder / files[key])
    own = [(reference, "reward.function") for reference in config.reward.functions or ()]
    for reference, key in [*own, (config.task.name, "task")]:
        if is_reference(reference) and (file := source_file(str(reference), key)).parent == Path.cwd():
            shutil.copy(file, folder)  # what the module imports from there in turn is the user's to bring
    text = REWARD.format(task=values, files=files, functions=config.reward.functions)
    (folder / "reward.py").write_text(text, encoding="utf-8")


def _script(config: RunConfig, lines: list[str], model: str) -> str:
    """train.sh: the command, paths taken from the folder it stands in."""
    where = ' \\\n  "actor_rollout_ref.model.path=$HERE/model"' if model == "model" else ""
    lines = lines if model == "model" else [*lines, f"actor_rollout_ref.model.path={written(model)}"]
    files = {
        "data.train_files": "train.parquet",
        "data.val_files": "val.parquet",
        "reward.custom_reward_function.path": "reward.py",
    }
    parts = [shlex.quote(line) for line in lines] + [f'"{key}=$HERE/{name}"' for key, name in files.items()]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# {config.algo.name} on {config.task.name}, for verl 0.9.1. What stays different:",
            *(f"# - {note}" for note in notes(config)),
            "set -euo pipefail",
            'HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)',
            *(["export WANDB_MODE=offline"] if config.tracking.mode == "offline" else []),
            "python3 -m verl.trainer.main_ppo \\\n  " + " \\\n  ".join(parts) + where + ' "$@"',
            "",
        ]
    )


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if (
        isinstance(value, str)
        and not value.startswith("{param")
        and not value.startswith("{eps")
        and not value.replace("-", "").replace("_", "").isalnum()
    ):
        return json.dumps(value)
    return str(value)
