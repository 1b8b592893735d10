"""What every subcommand shares: compose and judge each job before anything is written, then hand over to Hydra.

A job that fails in a multirun is announced at once, the others go on, and the failures come back as a list.
"""

import itertools
import json
import os
import re
import sys
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opo.cli.hydra_errors import one_line, unreadable
from opo.errors import StoppedRun, UserError
from opo.parallel.environment import rank_and_size

NOT_IN_NAME = {"algo", "task", "seed", "steps", "study", "sweep", "threads", "device"}
GROUPS_NOT_IN_NAME = {"tracking", "checkpoint", "parallel", "hydra"}
LONGEST_NAME = 200  # file systems allow 255 bytes


@dataclass(frozen=True)
class Invocation:
    """A command line, taken apart."""

    root: str  # the root config
    overrides: list[str]  # key=value
    flags: list[str]  # the rest, as Hydra takes it
    config_path: str | None = None  # a folder in place of the package `conf`
    multirun: bool = False


def run_name(choices: Any, seed: int, overrides: Any) -> str:
    """`<algo>-<task>-s<seed>`, then `-<key>=<value>` for every other override that changes the run, sorted by key.

    Values are as Hydra reads them (1e-3 is 0.001), so that a job of a sweep and the same run alone share a name.
    """
    values: dict[str, str] = {}
    for override in map(parse, overrides):
        key = override.key_or_group
        if key not in NOT_IN_NAME and key.partition(".")[0] not in GROUPS_NOT_IN_NAME:
            values[key] = "" if override.is_delete() else str(override.get_value_element_as_str()).strip("'\"")
    if values.get("model") == "pretrained" and "model.path" in values:
        values["model"] = values.pop("model.path")  # as it was typed
    parts = [choices["algo"], choices["task"], f"s{seed}", *(f"{key}={values[key]}" for key in sorted(values))]
    name = re.sub(r"[^\w.=,+-]+", "_", "-".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{zlib.crc32(name.encode()):08x}"


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def check(invocation: Invocation, judge: Callable[[dict[str, Any]], Any] | None) -> list[str]:
    """Compose every job that the command line means and judge each; raises UserError before anything is written.

    Returns overrides to add: an axis of a sweep file that the command line sets too is dropped there.
    """
    with _composing(invocation):
        given = [parse(line) for line in invocation.overrides]
        fixed = [
            line for line, override in zip(invocation.overrides, given, strict=True) if not override.is_sweep_override()
        ]
        whole = _compose(invocation.root, fixed if len(fixed) < len(given) else invocation.overrides)
        several = invocation.multirun or whole.hydra.mode == RunMode.MULTIRUN
        if several and rank_and_size()[1] > 1:
            raise UserError("-m: a sweep starts its jobs in one process; torchrun takes one job")
        if not several:
            _compose(invocation.root, invocation.overrides)  # several values without -m are refused here
            jobs, added = [invocation.overrides], []
        elif whole.hydra.sweeper._target_.endswith(".BasicSweeper"):
            axes = dict(whole.hydra.sweeper.params or {})
            replaced = [key for key in axes if key in {override.key_or_group for override in given}]
            lines = [f"{key}={value}" for key, value in axes.items() if key not in replaced]
            jobs, added = _product([*map(parse, lines), *given]), [f"~hydra.sweeper.params.{key}" for key in replaced]
        else:
            jobs, added = (
                [fixed],
                [],
            )  # another sweeper chooses its values as it goes; each job is judged when it starts
        if judge is not None:
            _judge_each(invocation.root, jobs, judge)
    return added


def _judge_each(root: str, jobs: Sequence[list[str]], judge: Callable[[dict[str, Any]], Any]) -> None:
    folders: dict[str, list[str]] = {}
    for number, job in enumerate(jobs):
        config = _compose(root, [*job, f"hydra.job.num={number}"])
        judge(plain(config, root))
        if len(jobs) > 1:
            HydraConfig.instance().set_config(config)
            folder = config.hydra.sweep.subdir
            if folder in folders:
                one, other = (
                    " ".join(sorted({*a} - {*b})) for a, b in ((folders[folder], job), (job, folders[folder]))
                )
                raise UserError(f"{one or 'a job'} and {other or 'its double'}: two jobs for the folder {folder}")
            folders[folder] = job


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """The jobs of a multirun: every combination of the swept values."""
    axes: list[list[str]] = []
    for override in overrides:
        if override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([override.input_line or ""])
    return [list(job) for job in itertools.product(*axes)]


def parse(line: str) -> Override:
    """One override, taken apart. Raises UserError where it is none."""
    loaded = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    try:
        return OverridesParser.create(config_loader=loaded).parse_override(line)
    except HydraException as error:
        raise UserError(unreadable(line)) from error


@contextmanager
def _composing(invocation: Invocation) -> Iterator[None]:
    """Hydra's compose API over the same files that hydra.main will see."""
    GlobalHydra.instance().clear()
    where: AbstractContextManager[Any]
    if invocation.config_path is None:
        where = initialize_config_module("conf", version_base="1.3")
    else:
        where = initialize_config_dir(invocation.config_path, version_base="1.3")
    with where:
        try:
            yield
        finally:
            HydraConfig.instance().cfg = None


def _compose(root: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose(root, list(overrides), return_hydra_config=True)
    except ValueError as error:  # Hydra's word for a group without a choice
        empty = [line for line in overrides if line.partition("=")[2].lower() in ("", "null", "none")]
        raise UserError(f"{' '.join(empty) or root}: a choice is needed ({error})") from error
    except (HydraException, OmegaConfBaseException) as error:
        groups = [line for line in overrides if "." not in line.partition("=")[0]]
        raise UserError(one_line(error, lambda: _known_keys(root, groups))) from error


def plain(config: DictConfig, root: str) -> dict[str, Any]:
    """The composed config as dicts without Hydra's own part, interpolations resolved."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, lambda: _known_keys(root, []))) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _known_keys(root: str, groups: Sequence[str]) -> list[str]:
    """Every dotted key of the config under these choices of groups, or of the root's own where they hold the mistake."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")

    for choices in (list(groups), []):
        try:
            return list(walk(OmegaConf.to_container(compose(root, choices)), ""))
        except (HydraException, OmegaConfBaseException):
            continue
    return []


@dataclass(frozen=True)
class Failure:
    """A job of a multirun that did not end well."""

    name: str  # its folder's
    reason: str  # one line


class Announce(Callback):
    """Prints at once that a job of a multirun failed, notes it in the file `record` and lets Hydra go on without a word.

    It runs where the job does, which may be another process; the file brings the failures back together.
    """

    def __init__(self, record: str) -> None:
        self.record = Path(record)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        assert job_return.hydra_cfg is not None
        own = job_return.hydra_cfg.hydra
        if job_return.status is not JobStatus.FAILED or own.mode != RunMode.MULTIRUN:
            return
        error = job_return._return_value  # the property would raise it here
        name, reason = Path(own.runtime.output_dir).name, _reason(error)
        known = isinstance(error, UserError | StoppedRun)
        details = "" if known else "".join(traceback.format_exception(error))
        print(f"FAILED {name}: {reason}\n{details}", end="", file=sys.stderr, flush=True)
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.record.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([name, reason]) + "\n")
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None


def _reason(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, UserError | StoppedRun) else f"{type(error).__name__}: {text}"


def launch(
    invocation: Invocation, entry: Callable[[dict[str, Any], Path], None], added: Sequence[str] = ()
) -> list[Failure]:
    """Run `entry(config, folder)` under hydra.main, once a job; returns the jobs of a multirun that failed.

    Raises what `entry` raised in a single run, and UserError where Hydra refuses the command line.
    """
    root, ended = invocation.root, list[Exception]()
    record = Path(
        "runs", f".failed-{uuid.uuid4().hex}.jsonl"
    ).absolute()  # where other machines of a cluster see it too

    def task(config: DictConfig) -> None:
        try:
            entry(plain(config, root), Path(HydraConfig.get().runtime.output_dir))
        except (UserError, StoppedRun) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            ended.append(error)  # raised outside Hydra, which would add lines of its own

    callback = f"++hydra.callbacks.announce={{_target_:{__name__}.Announce,record:'{record}'}}"
    with _process_state(["opo", *invocation.flags, *invocation.overrides, *added, callback]):
        try:
            hydra.main(version_base="1.3", config_path=invocation.config_path or "pkg://conf", config_name=root)(task)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(error, list)) from error
    if ended:
        raise ended[0]
    if not record.exists():
        return []
    failures = [Failure(*json.loads(line)) for line in record.read_text(encoding="utf-8").splitlines()]
    record.unlink()
    return failures


@contextmanager
def _process_state(argv: list[str]) -> Iterator[None]:
    """What hydra.main reads from the process: its arguments, and that errors are raised instead of printed."""
    before_argv, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before_argv
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
