"""The check for a GPU machine runs here with tiny shapes, and needs nothing but torch, transformers, safetensors and numpy."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = ("hydra", "omegaconf", "wandb", "vllm", "pydantic", "polars", "scipy", "pandas", "peft", "rich", "matplotlib")
BARE = f"""
import runpy, sys
for name in {ABSENT!r}:
    sys.modules[name] = None
sys.argv = ["gpu_check.py", *sys.argv[1:]]
runpy.run_path("tests/benchmarks/gpu_check.py", run_name="__main__")
"""


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300
    )


def test_every_part_runs_without_what_a_gpu_machine_may_lack(tmp_path: Path) -> None:
    done = check("--device", "cpu", "--tiny", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["card"] == "no GPU (CPU)"
    parts = ["bodies", "steps", "steps-0.5b", "gram-0.5b", "gram-1.5b", "speed-0.5b", "speed-1.5b"]
    assert all(found[part]["ok"] for part in parts)
    assert found["steps"]["same_batches"] == found["steps"]["steps"]
    assert 0 < found["gram-0.5b"]["float32_error"] < 1e-4
    assert found["speed-0.5b"]["mfu"] > 0


def test_an_unknown_part_is_refused_in_one_line() -> None:
    done = check("--device", "cpu", "--parts", "gram-7b")
    assert done.returncode == 2
    assert "gram-7b is not one of bodies" in done.stderr
