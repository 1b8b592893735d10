"""`opo report`: one HTML file that holds everything, for a verify folder, a variance study or any folder of runs.

The page makes no request: figures are SVG in the text, styles are in the head. It opens with the finding and its spread, and
ends with what cannot be concluded from it and how to repeat it.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from analysis.report import answer, cite, completions, several
from analysis.report import evaluation as report_evaluation
from analysis.report import runs as report_runs
from analysis.report import study as report_study
from analysis.report.blocks import Section, listing
from analysis.report.sources import Sources
from opo.system.atomic import write_text


def write_report(folder: Path) -> Path:
    """Write `report.html` from what is in the folder. Raises UserError where there is nothing to report on."""
    sections = sections_of(folder)
    title = (
        "OPO and other algorithms, measured"
        if (folder / "claims.json").exists()
        else f"Report on {folder.resolve().name}"
    )
    return write_page(folder / "report.html", title, sections)


def write_page(file: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write sections as one HTML file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    write_text(file, environment.get_template("report.html").render(title=title, sections=sections))
    return file


def sections_of(folder: Path) -> list[Section]:
    """The answer, then variance, training, audits and completions as far as the folder has them, the limits, and what to cite."""
    sources = Sources.of(folder)
    study, runs = sources.study, sources.runs
    if sources.several:
        return several.sections(sources.several)
    sections = [answer.section(sources)]
    if study is not None:
        sections.append(report_study.variance(study))
    if runs is not None:
        sections.append(report_runs.section(runs))
    if study is not None:
        sections.append(report_study.assumptions(study))
    if sources.evaluation is not None:
        sections.append(report_evaluation.section(sources.evaluation, said=study is None and runs is None))
    if shown := completions.section(sources):
        sections.append(shown)
    limits = (report_study.limits(study) if study else []) + (report_runs.limits(runs) if runs else [])
    limits += report_evaluation.limits(sources.evaluation) if sources.evaluation else []
    sections.append(Section("limits", "What this does not say", [listing(limits, limits=True)]))
    return [*sections, cite.section(sources)]
