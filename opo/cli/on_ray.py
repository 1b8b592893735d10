"""One run whose ranks a Ray cluster starts, in place of torchrun: python -m opo.cli.on_ray --ranks 2 train algo=opo seed=0

Ray finds machines for the ranks, opens their process group, and starts all of them again when one dies; the run then goes on from its
last checkpoint, as the same command does. The folder of the command has to be on a file system that all machines see.
"""

import argparse
import json
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opo.cli import fail, guarded, load, run, take_apart
from opo.cli.commands import COMMANDS, ON_RANKS
from opo.errors import StoppedRun, UserError
from opo.system.atomic import write_text
from opo.system.records import read_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, judge the config here, then run it on the cluster; exit statuses are those of `opo`."""
    parser = argparse.ArgumentParser(prog="python -m opo.cli.on_ray", description=__doc__)
    parser.add_argument("--ranks", type=int, required=True, help="processes of the run")
    parser.add_argument("--cpus", type=float, default=1, help="cores of each")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each")
    parser.add_argument(
        "--retries", type=int, default=3, help="times that all ranks are started again; -1: without end"
    )
    parser.add_argument(
        "--address",
        help="of the cluster; auto: one that runs here; local: a new one; left out: $RAY_ADDRESS, auto, or local",
    )
    parser.add_argument("command", choices=ON_RANKS)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="key=value ...")
    guarded(lambda: start(parser.parse_args(arguments)))


def start(asked: argparse.Namespace) -> None:
    """Run the command on the ranks. Raises UserError where it is refused, StoppedRun where it ended before its last step."""
    from opo.cli.launch import check

    invocation, shows_only = take_apart(asked.command, asked.overrides)
    if shows_only or invocation.multirun or asked.ranks < 1:
        raise UserError("on_ray: takes one job and at least one rank; `opo` itself shows configs")
    check(invocation, load(COMMANDS[asked.command].judge))
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise UserError(f"on_ray: {error}; install the extra ray (pip install 'opo-workbench[ray]')") from error
    runs = Path("runs").absolute()
    own = runs / f".ray-{uuid.uuid4().hex}"
    trainer = TorchTrainer(
        run_rank,
        train_loop_config={"folder": str(Path.cwd()), "own": str(own), "arguments": [asked.command, *asked.overrides]},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if asked.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=asked.ranks,
            use_gpu=asked.gpus > 0,
            resources_per_worker={"CPU": asked.cpus} | ({"GPU": asked.gpus} if asked.gpus else {}),
        ),
        run_config=RunConfig(
            storage_path=str(runs), name=own.name, failure_config=FailureConfig(max_failures=asked.retries)
        ),
    )
    ray.init(address=asked.address, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}})
    try:
        trainer.fit()
        ended = read_json(own / "ended.json") if (own / "ended.json").exists() else None
    except TrainingFailedError as error:
        first = (str(error).splitlines() or [""])[0]
        raise StoppedRun(f"on_ray: {first}; the same command goes on from the last checkpoint") from error
    finally:
        ray.shutdown()
        shutil.rmtree(own, ignore_errors=True)
    if ended is not None:
        fail(ended["said"], ended["status"])


def run_rank(asked: dict[str, Any]) -> None:
    """What Ray calls on every rank. A refusal is noted, since Ray starts all ranks again after any error: it would be met again."""
    from opo.system.world import LostRank

    os.chdir(asked["folder"])
    ended = Path(asked["own"], "ended.json")
    if ended.exists():
        return
    try:
        run(asked["arguments"])
    except (UserError, StoppedRun) as error:
        if not isinstance(error, LostRank) and getattr(error, "speaks", True):
            write_text(ended, json.dumps({"said": str(error), "status": 2 if isinstance(error, UserError) else 1}))
        raise


if __name__ == "__main__":
    from opo.cli.on_ray import main as named  # as a module that Ray's workers can import

    named()
