"""The peak of a real run beside its plan: every response has its full length, no two rewards are alike, and each rank says its peak.

python tests/support/peaks.py train FOLDER model=smollm2 ...    (or under torchrun)
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]


SMALL = ["model=smollm2", "rollout.max_new_tokens=24"]
RUNS = {  # name -> command, overrides, whether two ranks cut the weights
    "tiny": ("train", ["steps=2"]),
    "tiny sharded": ("train", ["steps=2", "parallel=sharded"]),
    "tiny variance": ("variance", ["prompts=2"]),
    "smollm2": (
        "train",
        [*SMALL, "steps=2", "rollout.num_prompts=4", "rollout.group_size=4", "optim.tokens_per_microbatch=512"],
    ),
    "smollm2 sharded": (
        "train",
        [
            *(*SMALL, "steps=2", "rollout.num_prompts=4", "rollout.group_size=4"),
            *("optim.tokens_per_microbatch=512", "parallel=sharded"),
        ],
    ),
    "smollm2 variance": ("variance", [*SMALL, "prompts=2", "responses=16", "group_sizes=[2,4]"]),
}


def score(prompt: object, response: str) -> float:
    """A reward that tells responses apart."""
    return sum(map(ord, response)) % 97 / 97


def peak_mib() -> float:
    """Of this process since it was started; what getrusage says begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def main(command: str, folder: Path, overrides: list[str]) -> None:
    """The run itself, in this process."""
    import opo.rollout.collect
    from opo.cli.compose import composed
    from opo.system.world import World

    opo.rollout.collect.stop_token_ids = lambda policy, stop: ()
    if command == "train":
        from opo.config.load import load_config
        from opo.train.loop import train

        train(load_config(composed("train", overrides)), folder)
    else:
        from analysis.study.config import load_config as load_study
        from analysis.study.run import measure

        with World.join() as world:
            measure(load_study(composed("variance", overrides)), folder, None, world)
    Path(f"{folder}-peak-{os.environ.get('RANK', '0')}").write_text(str(peak_mib()))


def measured_mib(command: str, overrides: list[str], ranks: int, folder: Path) -> float:
    """The largest peak of the ranks of this run, one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    child = [
        sys.executable,
        *launcher,
        str(HERE / "peaks.py"),
        command,
        str(folder / "run"),
        *_whole(command, overrides),
    ]
    done = subprocess.run(child, env=_environment(), cwd=folder, capture_output=True, text=True, check=False)
    peaks = [float(file.read_text()) for file in folder.glob("run-peak-*")]
    assert len(peaks) == ranks, done.stdout[-2000:] + done.stderr[-2000:]
    return max(peaks)


def planned_mib(command: str, overrides: list[str], ranks: int, folder: Path) -> float:
    """What `opo plan` says of the same run, in a process of its own."""
    child = [sys.executable, "-m", "opo", "plan", command, f"ranks={ranks}", *_whole(command, overrides), "--json"]
    done = subprocess.run(child, env=_environment(), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["peak_bytes"] / 2**20


def compare(name: str, ranks: int) -> tuple[float, float]:
    """Planned and measured peak of a rank, MiB."""
    command, overrides = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        planned = planned_mib(command, overrides, ranks, Path(folder))
        return planned, measured_mib(command, overrides, ranks, Path(folder))


def _whole(command: str, overrides: list[str]) -> list[str]:
    alone = ["tracking=off", "checkpoint.every=0"] if command == "train" else []
    return [*overrides, *alone, "threads=1", "device=cpu", "reward.function=peaks:score"]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(PROJECT), str(HERE)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed

        torch.distributed.init_process_group("gloo")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
