"""`opo verify` for W&B: the ledger of claims and where the trainings ended, its figures and page, and the runs and the study behind it."""

from collections import Counter

from analysis.report.answer import sentence
from analysis.report.runs import ends
from analysis.report.sources import Sources
from analysis.runs.ends import common_tokens, final_values
from analysis.runs.groups import with_groups
from analysis.runs.load import Runs
from analysis.tracking.origin import Origin
from analysis.tracking.study import FILES as STUDY_FILES
from analysis.tracking.tables import files_of, images, ledger
from opo.system.records import read_sealed
from opo.tracking.result import Chart, Result, Table

REWARD = "train/reward_mean"


def result_of(sources: Sources) -> Result:
    """What W&B holds of a verify folder."""
    folder, runs = sources.folder, sources.runs
    assert runs is not None
    claims = read_sealed(folder / "claims.json")["claims"]
    verdicts = Counter(claim["verdict"].replace(" ", "_") for claim in claims)
    origin = Origin.of(list(runs.runs["path"]), "tiny", {*range(int(runs.runs["steps"].max() or 0) + 1)}, [])  # pyright: ignore
    studied = [files_of(sources.study_folder, "variance", STUDY_FILES)] if sources.study_folder else []
    block = ends(with_groups(runs))
    return Result(
        job_type="verify",
        group=origin.studies[0],
        name=folder.resolve().name,
        notes=sentence(sources),
        tags=[],
        config={"claims": len(claims)},
        rows=[{f"claims/{verdict}": float(verdicts[verdict]) for verdict in ("supported", "refuted", "not_resolved")}],
        tables={"ledger": ledger({"": claims}), "trainings": Table(block.columns, block.rows)},
        charts={"charts/final_reward": _rewards(runs)},
        images=images(folder / "figures"),
        made=[files_of(folder, "verify", ("claims.json", "report.html"))],
        measured_on=[*origin.files, *studied],
    )


def _rewards(runs: Runs) -> Chart:
    """Where the reward of each configuration ended, mean over seeds."""
    frame = with_groups(runs)
    tokens = common_tokens(frame)
    rows = []
    for (group,), mine in frame.group_by("group", maintain_order=True):
        values = list(final_values(mine, REWARD, tokens).values())
        rows.append([str(group), sum(values) / len(values) if values else None])
    return Chart("bar", Table(["algorithm", "reward"], rows), "algorithm", "reward", "Final reward at equal tokens")
