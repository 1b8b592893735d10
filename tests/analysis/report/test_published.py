"""The report in W&B, saved to a stand-in server: the sections of the page, its figures as pictures, the study's runs, the intervals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student
from studies import bandit_study, write_run
from wandb_server import WandbServer

from analysis.commands import report
from analysis.report.page import sections_of
from analysis.report.runs import WINDOW
from analysis.report.wandb import figures_in
from analysis.runs import load
from opo.errors import UserError

# of wandb-workspaces' own code
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbServer, dict[str, Any]]:
    """A study and two configurations of three seeds, published; the server is left, with what it was sent."""
    folder = tmp_path_factory.mktemp("published")
    for seed in range(3):
        write_run(folder / f"opo-{seed}", "opo", seed, 0.02)
        write_run(folder / f"grpo-{seed}", "grpo", seed, 0.01, updates=4)
    bandit_study(group_sizes=[2]).save(folder / "variance")
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        report.main({"path": str(folder), "publish": "wandb"}, folder)
    (saved,) = server.public.reports
    return folder, server, saved


def grids(saved: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in saved["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(saved: dict[str, Any], kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every panel of a kind, and the run set of its grid."""
    for grid in grids(saved):
        (runset,) = grid["runSets"]
        for panel in grid["panelBankSectionConfig"]["panels"]:
            if panel["viewType"] == kind:
                yield panel["config"], runset


def test_every_figure_of_the_page_is_a_picture_that_the_server_has(
    published: tuple[Path, WandbServer, dict[str, Any]],
) -> None:
    """A figure that became its caption has no media panel; one without its file shows nothing."""
    folder, server, saved = published
    figures = [figure for section in sections_of(folder) for figure in figures_in(section.blocks)]
    pictures = list(panels(saved, "Media Browser"))
    assert len(figures) == len(pictures) > 5
    (run_id,) = {name for name, run in server.runs.items() if run.about["jobType"] == "report"}
    summary = json.loads(server.runs[run_id].summary)
    for (picture, runset), figure in zip(pictures, figures, strict=True):
        (key,) = picture["mediaKeys"]
        content = server.runs[run_id].files[summary[key]["path"]]
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
        assert [(f["key"]["name"], f["op"], f["value"]) for f in runset["filters"]["filters"]] == [
            ("name", "=", run_id)
        ]
        assert figure.caption in json.dumps(saved["spec"], ensure_ascii=False)
    assert len({picture["mediaKeys"][0] for picture, _ in pictures}) == len(pictures)


def test_sections_are_those_of_the_page(published: tuple[Path, WandbServer, dict[str, Any]]) -> None:
    folder, _, saved = published
    titles = [block["children"][0]["text"] for block in saved["spec"]["blocks"] if block.get("level") == 1]
    assert titles == [section.title for section in sections_of(folder)]
    assert (saved["type"], saved["displayName"]) == ("runs/draft", f"OPO: {folder.name}")


def test_runs_are_the_studys_grouped_by_configuration_over_tokens(
    published: tuple[Path, WandbServer, dict[str, Any]],
) -> None:
    _, _, saved = published
    lines = list(panels(saved, "Run History Line Plot"))
    assert {config["xAxis"] for config, _ in lines} == {"train/tokens"}
    trainings = [(config, runset) for config, runset in lines if runset["grouping"]]
    assert {metric for config, _ in trainings for metric in config["metrics"]} >= {
        "train/reward_mean",
        "train/kl_init_nats",
    }
    for config, runset in trainings:
        found = [(f["key"]["name"], f["op"], f["value"]) for f in runset["filters"]["filters"]]
        assert found == [("group", "IN", ["s"]), ("jobType", "=", "train")]
        assert [key["name"] for key in runset["grouping"]] == ["algo.value.name", "algo.value.updates_per_rollout"]
        assert (config["groupAgg"], config["groupArea"]) == ("mean", "minmax")


def test_the_ends_of_the_intervals_are_lines_of_the_right_height(
    published: tuple[Path, WandbServer, dict[str, Any]],
) -> None:
    """Against Student's interval of the smoothed rewards of three seeds, computed here."""
    folder, server, saved = published
    (run,) = [run for run in server.runs.values() if run.about["jobType"] == "report"]
    chart = next(
        c
        for c, r in panels(saved, "Run History Line Plot")
        if not r["grouping"] and "train/reward_mean" in c["metrics"][0]
    )
    assert chart["metrics"] == [
        f"train/reward_mean/{g}/{end}" for g in ("grpo_4_updates", "opo") for end in ("mean", "low", "high")
    ]
    marks = {name.partition(":")[2]: mark for name, mark in chart["overrideMarks"].items()}
    assert marks["train/reward_mean/opo/mean"] == "solid"
    assert marks["train/reward_mean/opo/low"] == marks["train/reward_mean/opo/high"] == "dashed"
    metrics = load(folder).metrics.filter(algo="opo")
    rewards_SX = np.stack(
        [run["train/reward_mean"].to_numpy() for _, run in metrics.group_by("seed", maintain_order=True)]
    )
    kernel = np.ones(WINDOW) / WINDOW
    smooth_SX = np.stack([np.convolve(row, kernel, "valid") for row in rewards_SX])
    half = student.ppf(0.975, 2) * smooth_SX.std(0, ddof=1) / np.sqrt(3)
    expected = {"mean": smooth_SX.mean(0), "low": smooth_SX.mean(0) - half, "high": smooth_SX.mean(0) + half}
    for end, values in expected.items():
        name = f"train/reward_mean/opo/{end}"
        logged = {row["train/tokens"]: row[name] for row in run.rows if name in row}
        assert list(logged) == pytest.approx([100.0 * step for step in range(2, 20)])
        assert list(logged.values()) == pytest.approx(values.tolist(), rel=1e-9)


def test_a_server_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "one", "opo", 0, 0.01)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        server.refuses = True
        with pytest.raises(UserError, match=r"^publish=wandb: ") as caught:
            report.main({"path": str(tmp_path), "publish": "wandb"}, tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").exists()
