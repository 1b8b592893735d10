"""Shared by every subcommand: compose and validate each job before anything is written, then run Hydra.

A job that fails in a multirun is reported at once, the others continue, and the failures are returned as a list.
"""

import itertools
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opo.cli import quoted
from opo.cli.compose import compose_job, composing, parse, plain
from opo.cli.hydra_errors import one_line
from opo.cli.jobs import Announce, Failure, Record, Stopped
from opo.cli.launchers import expect_schemas, in_one_line, refuse_unusable
from opo.errors import StoppedRun, UserError
from opo.system.ranks import rank_and_size
from opo.system.storage import storage_faults_in_one_sentence

MOST_JOBS = 10_000  # of one multirun, each of which is judged before the first starts; OPO_MOST_JOBS raises it


@dataclass(frozen=True)
class Invocation:
    """A command line, taken apart."""

    root: str  # the root config
    overrides: list[str]  # key=value
    flags: list[str]  # the rest, as Hydra takes it
    config_path: str | None = None  # a folder in place of the package `conf`
    multirun: bool = False


def check(invocation: Invocation, judge: Callable[[dict[str, Any]], Any] | None) -> list[str]:
    """Compose and validate every job of the command line; raises UserError before anything is written.

    Returns overrides to add: a sweep's folder as a whole path, and an axis of a sweep file that the command line sets too is dropped there.
    """
    root, lines = invocation.root, invocation.overrides
    with composing(invocation.config_path):
        given = [parse(line) for line in lines]
        fixed = [line for line, override in zip(lines, given, strict=True) if not override.is_sweep_override()]
        whole = compose_job(root, fixed)
        _refuse_lost_package(whole, invocation.flags)
        several = invocation.multirun or _own(whole, "mode") == RunMode.MULTIRUN
        if several and rank_and_size()[1] > 1:
            raise UserError("-m: a sweep starts its jobs in one process; torchrun takes one job")
        if several:
            if judge is not None:  # what is only shown may be for another machine
                refuse_unusable(whole.hydra.runtime.choices["hydra/launcher"], whole.hydra.launcher)
            here = [
                f"hydra.sweep.dir={quoted(str(Path(_own(whole, 'sweep.dir')).absolute()))}"
            ]  # wherever a cluster starts its jobs
        else:
            if len(fixed) < len(given):
                whole = compose_job(root, lines)  # several values without -m are refused here
            if judge is not None:
                judge(plain(whole, root))
                HydraConfig.instance().set_config(whole)
                _own(whole, "run.dir")  # a folder that has no name is refused here
            return []
        if not whole.hydra.sweeper._target_.endswith(".BasicSweeper"):
            if judge is not None:
                judge(
                    plain(whole, root)
                )  # the sweeper chooses its values as it goes; each job is judged when it starts
            return here
        axes = dict(whole.hydra.sweeper.params or {})
        replaced = [key for key in axes if key in {override.key_or_group for override in given}]
        swept = [parse(f"{key}={value}") for key, value in axes.items() if key not in replaced]
        if judge is not None:
            _judge_each(root, _product([*swept, *given]), judge)
    return [*here, *(f"~hydra.sweeper.params.{key}" for key in replaced)]


def _refuse_lost_package(config: DictConfig, flags: Sequence[str]) -> None:
    """Raise UserError where --package names no part of what --cfg shows."""
    given = dict(itertools.pairwise(flags))
    package = given.get("--package", "_global_")
    beside = [str(key) for key in config if key != "hydra" or given.get("--cfg") != "job"]
    if package == "_global_" or (package.partition(".")[0] in beside and _holds(config, package)):
        return
    raise UserError(f"--package {package}: no such part of the config; allowed are {', '.join(beside)} and their keys")


def _holds(config: DictConfig, key: str) -> bool:
    try:
        return OmegaConf.select(config, key) is not None
    except OmegaConfBaseException:  # a value that only Hydra itself can resolve
        return True


def _judge_each(root: str, jobs: Sequence[list[str]], judge: Callable[[dict[str, Any]], Any]) -> None:
    folders: dict[str, list[list[str]]] = {}
    for number, job in enumerate(jobs):
        config = compose_job(root, [*job, f"hydra.job.num={number}"])
        judge(plain(config, root))
        HydraConfig.instance().set_config(config)
        folder = _own(config, "sweep.subdir")
        if len(jobs) > 1:
            for other in folders.setdefault(folder, []):
                apart = [sorted({*other} - {*job}), sorted({*job} - {*other})]
                if not all(line.startswith("shard=") for side in apart for line in side or [""]):
                    first, second = map(" ".join, apart)
                    raise UserError(
                        f"{first or 'a job'} and {second or 'its double'}: two jobs for the folder {folder}"
                    )
            folders[folder].append(job)


def _own(config: DictConfig, key: str) -> Any:
    """A value of Hydra's own part, interpolations resolved. Raises UserError where one cannot be."""
    try:
        return OmegaConf.select(config, f"hydra.{key}")
    except OmegaConfBaseException as error:
        raise UserError(one_line(error, list)) from error


def _product(overrides: Sequence[Override]) -> list[list[str]]:
    """The jobs of a multirun: every combination of the swept values. Raises UserError where they are too many."""
    most, count = int(os.environ.get("OPO_MOST_JOBS", MOST_JOBS)), 1
    axes: list[list[str]] = []
    for override in overrides:
        values = [override.input_line or ""]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: this sweeper takes values one by one; give them, or range(...)"
                )
            swept = itertools.islice(override.sweep_string_iterator(), most + 1)
            values = [f"{override.get_key_element()}={value}" for value in swept]
        if not values:
            raise UserError(f"{override.input_line}: holds no value, so there is no job to run; give one at least")
        axes.append(values)
        count *= len(values)
        if count > most:
            raise UserError(
                f"{override.input_line}: more than {most} jobs; allowed are fewer, or a higher bound in the environment: "
                f"OPO_MOST_JOBS={10 * most}"
            )
    return [list(job) for job in itertools.product(*axes)]


def _no_folder(error: Exception) -> UserError | None:
    """What to say where Hydra could not make the folder of a job."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{error.filename}: this folder cannot be made; give a place that can be written")
    return None


def launch(
    invocation: Invocation, entry: Callable[[dict[str, Any], Path], None], added: Sequence[str] = ()
) -> tuple[list[Failure], list[Path]]:
    """Run `entry(config, folder)` under hydra.main, once a job; returns the jobs of a multirun that failed, and the folders of all that began.

    Raises what `entry` raised in a single run, StoppedRun where SIGTERM ended a multirun of this process, and UserError where Hydra
    refuses the command line.
    """
    root, ended, launcher = invocation.root, list[Exception](), os.getpid()
    record = Record(
        Path("runs", f".jobs-{uuid.uuid4().hex}.jsonl").absolute()
    )  # where other machines of a cluster see it too
    from opo.cli import processes  # joblib, and
    from opo.train.interrupt import Interrupt  # torch, which a refusal should not wait for

    processes.use()
    where, began = Path.cwd(), list[Path]()

    def task(config: DictConfig) -> bool:
        own = HydraConfig.get()
        if Path.cwd() != where:  # a cluster started the job elsewhere: paths are meant from where the command was given
            os.chdir(where)
        folder, several = Path(own.runtime.output_dir), own.mode == RunMode.MULTIRUN
        began.append(folder)
        refused, Interrupt.any_heard = False, False  # by a job before in this process
        try:
            with storage_faults_in_one_sentence(folder):
                entry(plain(config, root), folder)
        except (UserError, StoppedRun, BrokenPipeError) as error:
            if several and not (Interrupt.any_heard and os.getpid() == launcher):
                raise
            ended.append(error)  # raised outside Hydra, which would add lines of its own
            refused = isinstance(error, UserError)
        if several and Interrupt.any_heard and os.getpid() == launcher:
            raise Stopped(f"{folder}: done")
        return refused  # which the callback is told

    callback = f"++hydra.callbacks.announce={{_target_:{Announce.__module__}.Announce,record:'{record.file}'}}"
    try:
        expect_schemas()
        with _process_state(["opo", *invocation.flags, *invocation.overrides, *added, callback]):
            hydra.main(version_base="1.3", config_path=invocation.config_path or "pkg://conf", config_name=root)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error, list)) from error
    except Stopped as stopped:
        raise StoppedRun(
            f"{ended[0] if ended else stopped}; the sweep ends here, and the same command does its other jobs"
        ) from None
    except Exception as error:
        if not record.fail_lost(error):  # else a launcher lost the process of a job, or of several
            if told := in_one_line(error) or (None if began else _no_folder(error)):
                raise told from error
            raise
    finally:
        failures, folders = record.failures(), record.folders()
        record.file.unlink(missing_ok=True)
    if ended:
        raise ended[0]
    return failures, folders


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
