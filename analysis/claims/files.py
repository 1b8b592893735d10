"""The ledger of a study: what it says on each claim about variance and OPO's assumptions, for every policy by itself."""

from pathlib import Path
from typing import Any

from analysis.claims.evidence import Material
from analysis.claims.ledger import judge, save
from analysis.claims.records import evidence_of
from analysis.plots import runs as figures_runs
from analysis.plots.study import write_figures
from analysis.plots.style import save as save_figure
from analysis.study.result import Study
from opo.system.records import read_sealed, refuse_no_file


def write_findings(study: Study, folder: Path) -> None:
    """What a study's tables say: figures/ and ledger/."""
    write_figures(study, folder / "figures")
    write_ledgers(study, folder)


def write_ledgers(study: Study, folder: Path) -> None:
    """`ledger/POLICY/claims.json` and its figure."""
    for policy in study.policies:
        name = policy["name"]
        claims = judge(evidence_of(Material(study.only(name))))
        save(claims, folder / "ledger" / name)
        save_figure(figures_runs.ledger(claims), folder / "figures", f"ledger-{name}")


def read_ledger(folder: Path, policy: str) -> dict[str, Any] | None:
    """What `write_ledgers` left; None where it left nothing."""
    file = folder / "ledger" / policy / "claims.json"
    refuse_no_file(file)
    return read_sealed(file) if file.is_file() else None
