"""A study as a W&B run: written offline by the real client, sent twice to the stand-in server, and there once with all it holds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from run_folders import fake_policy
from studies import bandit_study, write_run
from tracked import log_steps, wandb_file
from wandb_file import records
from wandb_server import StoredRun, WandbServer

from analysis.claims.files import write_ledgers
from analysis.commands import track
from analysis.plots.answer import ratio_by_policy
from analysis.plots.style import save
from analysis.study.result import Study
from analysis.tracking.origin import Origin
from analysis.tracking.record import record
from opo.config.schema import WandbConfig
from opo.run.checkpoint import save_checkpoint
from opo.tracking.offline_file import read_run
from opo.tracking.result import wandb_id

WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Study]:
    """A tracked training with a checkpoint, and a study of its start and that checkpoint, tracked offline."""
    folder = tmp_path_factory.mktemp("studied")
    run, path = folder / "runs" / "opo-arithmetic-s0", folder / "study"
    log_steps(run, "off", range(1, 3))
    save_checkpoint(run / "checkpoints", 20, fake_policy, {"x": torch.zeros(1)}, {})
    log_steps(run, "offline", range(3, 5))
    study = bandit_study(group_sizes=[2, 8])
    study.save(path)
    write_ledgers(study, path)
    save(ratio_by_policy(study), path / "figures", "ratio")
    (path / "config.yaml").write_text(yaml.safe_dump({"checkpoint": str(run), "prompts": 10}))
    record(path, WandbConfig(tags=["mine"]))
    return run, path, study


def sync(record: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    subprocess.run([WANDB, "sync", record], check=True, capture_output=True, cwd=record.parent)


def held(run: StoredRun, key: str) -> dict:
    """What the summary says of a medium."""
    return json.loads(run.summary)[key]


def test_what_a_study_holds_arrives_once_however_often_it_is_synced(
    studied: tuple[Path, Path, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder, path, study = studied
    with WandbServer() as server:
        for folder in (run_folder, path, path, run_folder):
            sync(wandb_file(folder).parent, server, monkeypatch)
        assert len(server.runs) == 2
        run = server.runs[wandb_id(path)]
        training = next(other for other in server.runs.values() if other is not run)
    assert (run.about["jobType"], run.about["groupName"], run.about["displayName"]) == ("variance", "s", "study")
    assert run.about["groupName"] == training.about["groupName"]
    assert set(run.about["tags"]) == {"opo", "arithmetic", "tiny", "on-policy", "mine"}
    assert "relative gradient variance" in run.about["notes"]
    assert run.exit_code == 0

    assert [row["policy/step"] for row in run.rows if "policy/reward_mean" in row] == [0, 20]
    last = study.select("relative_variance").filter(estimator="length_weighted")["value"][0]
    assert held(run, "relative_variance/length_weighted") == {
        "last": pytest.approx(last),
        "min": pytest.approx(min(row["relative_variance/length_weighted"] for row in run.rows[:2])),
    }
    for name in ("estimators", "ledger", "audits", "completions"):
        assert held(run, name)["_type"] == "table-file", name
    table = json.loads(run.files[held(run, "estimators")["path"]])
    assert len(table["data"]) == 2 * 2 * len(study.estimators)
    assert table["columns"][:5] == ["policy", "step", "group_size", "estimator", "relative_variance"]
    image = held(run, "figures/ratio")
    assert image["_type"] == "image-file"
    assert run.files[image["path"]] == (path / "figures" / "ratio.png").read_bytes()
    charts = set(json.loads(run.about["config"])["_wandb"]["value"]["visualize"])
    assert {"charts/ratio", "charts/against_group_size", "charts/norm_against_length"} <= charts

    (result,) = server.artifacts.of("variance")
    assert result.committed
    assert result.files["result.json"] == (path / "result.json").read_bytes()
    assert {"variance.parquet", "responses.parquet"} <= set(result.files)
    models = server.artifacts.of("model")
    assert [(one.aliases & {"step-000000", "step-000020"}, one.used_by) for one in models] == [
        ({"step-000000"}, [wandb_id(path)]),
        ({"step-000020"}, [wandb_id(path)]),
    ]
    assert {one.made_by for one in models} == {json.loads((run_folder / "run.json").read_text())["wandb_run_id"]}


def test_a_study_that_is_repeated_replaces_its_record_until_it_was_uploaded(
    studied: tuple[Path, Path, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that the same result is left as it is, and another one is another run, since W&B adds to what it has."""
    _, source, _ = studied
    path = Path(shutil.copytree(source, tmp_path / "study"))
    shutil.rmtree(path / "wandb")

    def track(**command: int) -> None:
        (path / "config.yaml").write_text(yaml.safe_dump(command))
        record(path, WandbConfig(notes="my own words"))

    track(prompts=9)
    before = wandb_file(path)
    track(prompts=10)
    after = wandb_file(path)
    assert not before.exists()
    assert before.name == after.name
    (about,) = [record.run for record in records(after) if record.HasField("run")]
    assert about.notes == "my own words"
    assert about.run_group == "study"
    used = [r.artifact for r in records(after) if r.HasField("artifact") and r.artifact.use_after_commit]
    assert [one.name for one in used] == ["model-tiny"]
    with WandbServer() as server:
        sync(after.parent, server, monkeypatch)
        track(prompts=10)
        assert wandb_file(path) == after
        sync(after.parent, server, monkeypatch)
        assert len(server.runs) == 1
        track(prompts=11)
        newest = next(file for file in (path / "wandb").glob("offline-run-*/run-*.wandb") if file != after)
        assert newest.stem == f"run-{wandb_id(path)}"
        sync(newest.parent, server, monkeypatch)
        assert [len([row for row in run.rows if "policy/step" in row]) for run in server.runs.values()] == [2, 2]


@pytest.mark.parametrize("fault", ["broken", "closed", "off"])
def test_what_fails_in_wandb_is_one_sentence(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = bandit_study(group_sizes=[2])
    study.save(tmp_path)
    if fault == "broken":
        (tmp_path / "wandb.py").write_text("raise OSError(28, 'No space left on device')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if fault == "closed":
        (tmp_path / "wandb").write_text("a file where the folder should be")
    record(tmp_path, WandbConfig("off" if fault == "off" else "offline"))
    said = capfd.readouterr().err
    if fault == "off":
        assert said == ""
        return
    assert said.count("\n") == 1
    assert said.startswith("W&B failed (")
    assert said.endswith("stands\n")


def test_runs_off_policy_are_tagged_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(updates), "grpo", 0, 0.0, updates=updates) for updates in (1, 4)]
    for run in runs:
        (run / "checkpoints").mkdir()
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    assert config["algo"]["updates_per_rollout"] == 4
    assert "off-policy" in Origin.of([str(runs[1])], "tiny", {0}, []).tags
    assert "off-policy" not in Origin.of([str(runs[0])], "tiny", {0}, []).tags


def test_the_command_makes_the_record_of_a_study_anew(
    studied: tuple[Path, Path, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source, _ = studied
    path = Path(shutil.copytree(source, tmp_path / "study"))
    (path / "config.yaml").write_text(yaml.safe_dump({"tracking": {"project": "mine", "tags": ["kept"]}}))
    before = wandb_file(path)
    track.main({"path": str(path), "id": "afresh12"}, tmp_path)
    assert capsys.readouterr().out.startswith(f"{path} as run afresh12 in {path}/wandb, for `wandb sync`")
    made = read_run(
        next(file for file in (path / "wandb").glob("offline-run-*/run-*.wandb") if file.name != before.name)
    )
    assert (made.id, made.project, made.job_type) == ("afresh12", "mine", "variance")
    assert "kept" in made.tags
    assert made.exit_code == 0
