"""The W&B record of a result's folder, described from what is on disk: by the command that made it, and by `opo track` later."""

from pathlib import Path

from analysis.evaluation.result import FILE as EVALUATION
from analysis.evaluation.result import load as load_evaluation
from analysis.report.sources import Sources
from analysis.study.result import load as load_study
from analysis.tracking import evaluation, study, verify
from opo.config.schema import WandbConfig
from opo.errors import UserError
from opo.tracking.result import Result, ResultTracker

STUDY, VERIFY = "result.json", "claims.json"


def describe(folder: Path) -> Result:
    """What W&B holds of a folder that `opo verify`, `opo variance` or `opo evaluate` made. Raises UserError where it is none."""
    if (folder / EVALUATION).is_file():
        return evaluation.result_of(load_evaluation(folder), folder)
    if (folder / STUDY).is_file():
        return study.result_of(load_study(folder), folder)
    if (folder / VERIFY).is_file():
        return verify.result_of(Sources.of(folder))
    raise UserError(f"{folder}: nothing to track (no {STUDY}, no {EVALUATION}, no {VERIFY})")


def record(folder: Path, tracking: WandbConfig) -> None:
    """Record a folder's result; where W&B fails, one sentence says so."""
    with ResultTracker(folder, tracking) as tracker:
        if tracker.works:
            try:
                tracker.record(describe(folder))
            except OSError as error:  # a full disk, a file that was taken away: the result itself is written
                tracker.say_failed(error)
