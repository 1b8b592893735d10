"""Checkpoints that a process saves until it is killed: in a module of its own, since the process imports it by name."""

import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from opo.run.checkpoint import save_checkpoint


def fill_policy(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "weights").mkdir()
    (folder / "weights" / "part-1.bin").write_bytes(bytes(range(256)) * 100)


def save(folder: Path, step: int, keep: int = 0) -> Path:
    tensors = {"optimizer/0/step": torch.tensor(float(step)), "weights": torch.arange(1000.0) * step}
    return save_checkpoint(folder, step, fill_policy, tensors, {"step": step}, keep=keep)


def killed_in_the_policy(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)


def save_once_and_be_killed(folder: Path) -> None:
    save_checkpoint(folder, 2, killed_in_the_policy, {}, {})


def save_for_ever(folder: Path, first: int, saved: Event) -> None:
    for step in range(first, 10**6):
        save(folder, step, keep=1)
        saved.set()
