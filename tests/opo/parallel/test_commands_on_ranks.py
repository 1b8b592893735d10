"""Prompts that are dealt to ranks: studies, evaluations and the doctor's table are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from ranks import PROJECT
from run_folders import SMALL

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
MODEL = [line for line in SMALL if not line.startswith("rollout.")]
COMMANDS = {
    "variance": ["model=tiny", "prompts=3", "responses=8", "group_sizes=[2,4]", "num_bootstrap=100"],
    "evaluate": ["model=tiny", "prompts=3", "responses=4", "ks=[1,4]", "num_bootstrap=100", "tracking=off"],
    "doctor": ["prompts=3", "responses=4"],
}


@pytest.mark.prove
@pytest.mark.parametrize("name", COMMANDS)
def test_two_ranks_find_what_one_process_finds(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    said = {}
    for folder, launcher in (("one", []), ("two", TORCHRUN)):
        given = [*MODEL, *COMMANDS[name], "rollout.max_new_tokens=8", f"hydra.run.dir={tmp_path / folder}"]
        command = [sys.executable, *launcher, "-m", "opo", name, *given]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        said[folder] = ended.stdout
    one, two = tmp_path / "one", tmp_path / "two"
    if name == "variance":
        for table in ("variance", "prompts", "responses", "audit_terms"):
            assert pl.read_parquet(one / f"{table}.parquet").equals(pl.read_parquet(two / f"{table}.parquet")), table
    elif name == "evaluate":
        found = [json.loads((folder / "eval.json").read_text()) for folder in (one, two)]
        for content in found:
            del (
                content["provenance"],
                content["sha256"],
                content["files"],
            )  # log-probabilities of responses round differently
        assert found[0] == found[1]
        responses = [pl.read_parquet(folder / "responses.parquet").drop("logprob_nats") for folder in (one, two)]
        assert responses[0].equals(responses[1])
    else:
        checks = [[line.split("  ")[0] for line in said[f].splitlines() if " ok" in line] for f in ("one", "two")]
        assert checks[0] == checks[1]
        assert len(checks[0]) > 3
