"""`opo report`: one HTML file that holds everything, for a verify folder, a variance study or any folder of runs.

The page makes no request: figures are SVG in the text, styles are in the head. It says what was measured and with what spread, and
ends with what cannot be concluded from it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from analysis.claims.files import read_ledger
from analysis.claims.ledger import ALPHA
from analysis.plots.runs import effect_text, threshold_text
from analysis.report import runs as report_runs
from analysis.report import study as report_study
from analysis.report.blocks import Section, code, ledger, listing, text
from analysis.runs.load import load as load_runs
from analysis.study.result import load as load_study
from opo.errors import UserError
from opo.system.atomic import write_text
from opo.system.records import read_json


def write_report(folder: Path) -> Path:
    """Write `report.html` from what is in the folder. Raises UserError where there is nothing to report on."""
    sections = sections_of(folder)
    title = (
        "OPO and other algorithms, measured"
        if (folder / "claims.json").exists()
        else f"Report on {folder.resolve().name}"
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template("report.html").render(title=title, summary=_summary(folder), sections=sections)
    write_text(folder / "report.html", html)
    return folder / "report.html"


def sections_of(folder: Path) -> list[Section]:
    """Ledger, variance and trainings, as far as the folder has them, then the limits and how to repeat it."""
    study_folder = next((f for f in (folder, folder / "variance") if (f / "result.json").is_file()), None)
    study = load_study(study_folder) if study_folder else None
    runs = None
    if any(folder.rglob("run.json")):
        runs = load_runs(folder)
    if study is None and runs is None:
        raise UserError(f"{folder}: nothing to report on (no result.json, no run folder)")
    sections = []
    if (folder / "claims.json").is_file():
        sections.append(_ledger(read_json(folder / "claims.json")))
    elif study is not None and study_folder is not None:
        for policy in study.policies:
            if content := read_ledger(study_folder, policy["name"]):
                sections.append(_ledger(content, f"-{policy['name']}", f": {policy['label']}"))
    if study is not None:
        sections += report_study.sections(study)
    if runs is not None:
        sections += report_runs.sections(runs)
    limits = (report_study.limits(study) if study else []) + (report_runs.limits(runs) if runs else [])
    sections.append(Section("limits", "What this does not say", [listing(limits, limits=True)]))
    commands = _commands(folder)
    if commands:
        sections.append(
            Section(
                "repeat",
                "How to repeat it",
                [text("From the same version of this project:"), code("\n".join(commands))],
            )
        )
    return sections


def _summary(folder: Path) -> str:
    if not (folder / "claims.json").is_file():
        return "Made by `opo report` from what is on disk."
    claims = read_json(folder / "claims.json")["claims"]
    count = {
        verdict: sum(claim["verdict"] == verdict for claim in claims)
        for verdict in ("supported", "refuted", "not resolved")
    }
    return (
        f"{len(claims)} claims about OPO (arXiv 2505.23585) were put to a small policy: {count['supported']} supported, "
        f"{count['refuted']} refuted, {count['not resolved']} not resolved by this much data. The policy is small and the runs are "
        "short: this shows how the claims are tested, and how they fare here, not how they fare on a large model."
    )


def _ledger(content: Mapping[str, Any], suffix: str = "", of: str = "") -> Section:
    claims = [
        claim | {"effect_text": effect_text(claim), "threshold_text": threshold_text(claim)}
        for claim in content["claims"]
    ]
    rule = (
        "Thresholds were fixed beforehand. A claim is supported where the interval of its effect lies inside the claimed region, refuted "
        f"where it lies outside, with Holm's correction at {100 * ALPHA:.0f} % over the {len(claims)} claims; the intervals shown are plain 95 % ones."
    )
    return Section(f"ledger{suffix}", f"The ledger{of}", [text(rule), ledger(claims, "Claims, effects and verdicts")])


def _commands(folder: Path) -> list[str]:
    if (folder / "claims.json").is_file():
        return ["opo verify"]
    return [f"opo report path={folder}"]
