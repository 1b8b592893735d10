"""What torchrun, or a cluster, tells a process of its ranks. Neither torch nor a process group is needed."""

import os


def rank_and_size() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) outside torchrun, and where it started one process."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    return (int(os.environ.get("RANK") or 0), size) if size > 1 and "RANK" in os.environ else (0, 1)


def take_ranks_of_submitit() -> None:
    """In a job that submitit started as several tasks, on Slurm or here: the tasks become ranks, in torchrun's words."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
