"""`opo export verl`: what is refused, and the folder: the prompts of the run, a reward that scores as the task does, a command."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from opo.cli import main
from opo.tasks import Prompt
from opo.tasks.arithmetic import Arithmetic, ArithmeticConfig

SMALL = [
    "model.tiny.hidden_size=64",
    "model.tiny.intermediate_size=96",
    "model.tiny.layers=1",
    "model.tiny.heads=2",
    "model.tiny.warmup_steps=30",
    "model.tiny.warmup_rows=4",
    "rollout.num_prompts=4",
    "rollout.group_size=4",
    "evaluate.num_prompts=5",
]

REFUSED = [
    ("algo=gpg", "algo=gpg: verl scales by responses"),
    ("algo=ppo", "algo=ppo: verl's critic"),
    ("algo=copg", "algo=copg: verl has no estimator"),
    ("algo=group_mean", "give algo=dr_grpo"),
    ("algo=grpo algo.std_eps=0.1", "algo.std_eps=0.1: verl adds 1e-06"),
    ("algo=dr_grpo algo.denominator=1.5", "algo.denominator=1.5: verl divides by a whole number"),
    ("optim=sgd", "optim.method=sgd: exported is adamw"),
    ("optim.schedule=linear", "optim.schedule=linear: verl has constant and cosine"),
    ("model.dtype=float64", "model.dtype=float64: verl takes float32"),
    ("gpus=7", "gpus=7: must divide the 128 responses"),
    ("gpus=0", "gpus=0"),
    ("rollout.top_p=0.5", "rollout.top_p=0.5: opo is exactly on-policy"),
    ("threads=1", "threads: unknown key"),
    ("merge=true", "merge: unknown key"),
    ("path=.", "path=.: must be a new or an empty folder"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_verl_would_do_otherwise_is_one_line(given, said, tmp_path, monkeypatch, capfd):
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["export", "verl", *given.split()])
    error = capfd.readouterr().err
    assert (caught.value.code, error.count("\n")) == (2, 1)
    assert said in error
    assert [file.name for file in tmp_path.iterdir()] == ["something"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three steps of the built-in policy, moved to where verl is."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.raises(SystemExit) as caught:
        main(["export", "verl", *SMALL, "steps=3", "task.seed=5", "optim.beta2=0.97", f"path={folder}/export"])
    assert not caught.value.code
    return (folder / "export").rename(folder / "elsewhere")


def reward_of(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_reward", folder / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compute_score


def test_the_data_are_the_prompts_of_every_step_and_the_reward_is_the_task_s(exported: Path) -> None:
    task, score = Arithmetic(ArithmeticConfig(seed=5)), reward_of(exported)
    for file, split, count in (("train", "train", 12), ("val", "eval", 5)):
        rows = pq.read_table(exported / f"{file}.parquet").to_pylist()
        prompts = [task.prompt(index, split) for index in range(count)]
        assert [row["prompt"] for row in rows] == [[{"content": p.text, "role": "user"}] for p in prompts]
        for row, prompt in zip(rows, prompts, strict=True):
            about = (row["data_source"], row["reward_model"]["ground_truth"], row["extra_info"])
            responses = {prompt.answer: 1.0, "x=" + prompt.answer: 1.0, "no": 0.0}
            for response, reward in responses.items():
                assert score(about[0], response, about[1], about[2]) == {"score": reward, "unscored": 0.0}


@pytest.mark.parametrize(("row", "truth"), [({"answer": 2}, "2"), ({"answer": ["a", 1]}, '["a", 1]'), ({}, "")])
def test_a_ground_truth_that_is_no_text_is_written_as_json(row: dict[str, Any], truth: str) -> None:
    from opo.export.verl_files import rows_of

    written = next(rows_of("file", [Prompt(0, "1+1=", "", row)], "train"))
    assert written["reward_model"]["ground_truth"] == truth


def test_the_command_says_every_key_once_and_its_files_lie_beside_it(exported: Path, tmp_path: Path) -> None:
    seen, fake = tmp_path / "seen", tmp_path / "python3"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {seen}\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", exported / "train.sh", "trainer.nnodes=2"], env=environment, check=True, cwd=tmp_path)
    option, module, *lines = seen.read_text().split("\0")[:-1]
    assert (option, module) == ("-m", "verl.trainer.main_ppo")
    told: dict[str, Any] = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(lines)}
    assert len(told) == len(lines) - 1  # trainer.nnodes, which was given behind
    for key in ("data.train_files", "data.val_files", "reward.custom_reward_function.path"):
        assert Path(told[key]).is_file()
    assert Path(told["actor_rollout_ref.model.path"], "model.safetensors").is_file()
    assert told["actor_rollout_ref.actor.optim.betas"] == [0.9, 0.97]
    assert told["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-sum"
    assert (told["trainer.total_training_steps"], told["data.shuffle"]) == (3, False)
    assert "{{ message.content }}" in told["actor_rollout_ref.model.custom_chat_template"]


def test_a_task_s_file_and_a_reward_of_one_s_own_travel_with_the_folder(tmp_path, monkeypatch, capfd):
    from opo.export.config import load_config
    from opo.export.verl_files import write_reward

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{i}+1="}) + "\n" for i in range(40)))
    (tmp_path / "my_exported_reward.py").write_text("def score(prompt, response):\n    return 1 / len(response)\n")
    from opo.cli.compose import composed

    lines = ["task=file", "task.path=rows.jsonl", "reward.function=my_exported_reward:score", "path=new"]
    asked: Any = load_config(composed("export", lines))
    (tmp_path / "new").mkdir()
    write_reward(asked.run, tmp_path / "new")
    moved = (tmp_path / "new").rename(tmp_path / "moved")
    (tmp_path / "rows.jsonl").unlink()
    score = reward_of(moved)
    assert score("file", "1234", "", {"index": 3, "split": "train"}) == {"score": 0.25, "unscored": 0.0}
    assert score("file", "", "", {"index": 3, "split": "train"}) == {"score": 0.0, "unscored": 1.0}
    assert "ZeroDivisionError" in capfd.readouterr().err
