"""`conf/wandb_sweep.yaml`: the real agent of W&B runs it against a stand-in server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import SMALL
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
from wandb_server import WandbServer

from opo.cli import take_apart
from opo.cli.launch import check
from opo.config.load import load_config

FILE = Path(__file__).parents[3] / "conf" / "wandb_sweep.yaml"
CHOSEN = {"algo": "rloo", "optim.learning_rate": 0.00031, "seed": 2}


class SearchServer(WandbServer):
    """Leads one search: the run `CHOSEN`, then the end."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.given = config, False

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if operation == "SweepWithRuns":
            sweep = {
                "id": "1",
                "name": "search",
                "method": "bayes",
                "config": yaml.safe_dump(self.config),
                "runs": {"edges": []},
            }
            return {"project": {"sweep": sweep}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "1"}}}
        if operation == "Heartbeat":
            command: dict[str, Any] = {"type": "exit"}
            if not self.given:
                args = {key: {"value": value} for key, value in CHOSEN.items()}
                command = {"type": "run", "run_id": "run1", "program": self.config["program"], "args": args}
                self.given = True
            commands = [] if json.loads(variables["runState"]) else [command]  # one after another
            return {"agentHeartbeat": {"agent": {"id": "1"}, "commands": json.dumps(commands)}}
        return super().answer(operation, variables)


def test_the_command_of_a_search_is_accepted() -> None:
    config = yaml.safe_load(FILE.read_text())
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in CHOSEN.items()}})
    command = [part for word in config["command"] for part in given.get(word[2:-1], [word])]
    configs = []
    check(
        take_apart("train", command[command.index("train") + 1 :])[0],
        lambda values: configs.append(load_config(values)),
    )
    (run,) = configs
    assert (run.algo.name, run.optim.learning_rate, run.seed) == tuple(CHOSEN.values())
    assert run.evaluate.every > 0  # the metric is of held-out prompts


@pytest.mark.prove
def test_the_agent_trains_what_the_search_chooses_and_its_metric_arrives(tmp_path: Path) -> None:
    config = yaml.safe_load(FILE.read_text())
    assert set(CHOSEN) == set(config["parameters"])
    config["command"] = [*config["command"], *SMALL, "steps=1", "evaluate.num_prompts=2"]
    with SearchServer(config) as server:
        environment = os.environ | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        agent = [str(Path(sys.executable).with_name("wandb")), "agent", "me/opo/search"]
        done = subprocess.run(agent, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "search").glob("rloo-arithmetic-s2-*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["learning_rate"] == 0.00031
    assert (folder / "DONE").exists()
    assert json.loads((folder / "run.json").read_text())["wandb_run_id"] == "run1"
    run = server.runs["run1"]
    (row,) = run.rows
    assert row[config["metric"]["name"]] == json.loads((folder / "metrics.jsonl").read_text())[config["metric"]["name"]]
    assert run.exit_code == 0
