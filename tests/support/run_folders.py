"""Running the command line in a folder, and reading what it left."""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SMALL = [
    "model.tiny.hidden_size=64",
    "model.tiny.intermediate_size=96",
    "model.tiny.layers=1",
    "model.tiny.heads=2",
    "model.tiny.warmup_steps=30",
    "model.tiny.warmup_rows=4",
    "rollout.num_prompts=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=24",
    "threads=1",
]


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "opo", "train", *SMALL, f"hydra.run.dir={folder}", *overrides]


def fake_policy(folder: Path) -> None:
    """Files that look like a model's by their names and sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what may differ between two runs of one config."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    varying = ("time/", "memory/")
    return [
        {k: v for k, v in json.loads(x).items() if not k.startswith(varying) and "tokens_per_s" not in k} for x in lines
    ]


def holder(run: Path) -> int | None:
    """The process that trains in this folder: it has the lock open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(run / ".lock"):
                return int(link.parts[2])
        except OSError:  # gone, or another user's
            continue
    return None
