"""The generated half of conf/algo/README.md: tables, what was measured, what is left out, and each algorithm's formula and keys."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from opo.accounts import Account, accounts
from opo.errors import UserError
from opo.system.atomic import write_text
from opo.systems import LEFT_OUT

TABLES = "<!-- tables: opo algorithms --readme -->"
EACH = "<!-- each algorithm: opo algorithms --readme -->"
END = "<!-- end -->"
MEASURED = "measured.json"  # copied from the folder of `opo zoo`
COLUMNS = {
    "reward": "reward",
    "entropy": "entropy",
    "kl": "KL",
    "noise_ratio start": "noise, start",
    "noise_ratio middle": "noise, middle",
    "misses start": "missed, start",
    "misses middle": "missed, middle",
}


def folder() -> Path:
    return Path(import_module("conf").__path__[0], "algo")


def write_readme() -> Path:
    """Write the generated parts anew. Raises UserError where the file or its marks are missing."""
    file = folder() / "README.md"
    if not file.is_file():
        raise UserError(f"{file}: not here; `opo algorithms --readme` works in a checkout of the project")
    write_text(file, renewed(file.read_text(encoding="utf-8")))
    return file


def renewed(text: str) -> str:
    """The README with its generated parts as they should be."""
    for mark, lines in ((TABLES, tables()), (EACH, each())):
        if mark not in text:
            raise UserError(f"conf/algo/README.md: the mark {mark} is missing")
        before, _, rest = text.partition(mark)
        _, _, after = rest.partition(END)
        text = "\n".join([before + mark, "", *lines, "", END + after])
    return text


def tables() -> Iterator[str]:
    known = accounts().values()
    yield from _table(
        ("name", "what it is", "unbiased for", "source"),
        [
            (f"`{a.name}`", marked(a), a.unbiased_for, short_source(a))
            for a in known
            if a.base == a.name and not a.parts
        ],
    )
    yield from (
        "",
        "Presets: an algorithm with the parts (`opo/parts/`) or the settings of a paper. Any part goes with any loss by a line of the config:",
        "`algo.filter=best_worst`, `algo.gradient={name: look_ahead, eta: 0.3}`; null is none.",
        "",
    )
    yield from _table(
        ("preset", "around", "parts", "what it is", "unbiased for", "source"),
        [
            (
                f"`{a.name}`",
                f"`{a.base}`",
                ", ".join(k.replace(" ", ": ") for k in a.parts) or "settings",
                marked(a),
                a.unbiased_for,
                short_source(a),
            )
            for a in known
            if a.base != a.name or a.parts
        ],
    )
    yield from ("", "Left out, and why:", "")
    yield from _table(("system", "arXiv", "reason"), [(name, number, why) for name, number, why in LEFT_OUT])
    yield from measured()


def measured() -> Iterator[str]:
    """What `opo zoo` found, where its numbers have been copied here."""
    file = folder() / MEASURED
    if not file.is_file():
        return
    record = json.loads(file.read_text(encoding="utf-8"))
    yield from ("", record["text"], "")
    rows = [[name, *(_cell(cells.get(key)) for key in COLUMNS)] for name, cells in record["rows"].items()]
    yield from _table(["measured", *COLUMNS.values()], rows)


def each() -> Iterator[str]:
    """Formula, defaults and doubts of every file."""
    for a in accounts().values():
        keys = (
            "\n".join(line for line in a.body if not line.startswith("name:"))
            .strip("\n")
            .partition("\n\nupdates_per_rollout")[0]
        )
        yield from (f"### {a.name}", "", f"{a.title[0].upper()}{a.title[1:]}", "", "```text", a.formula, "```", "")
        yield f"{'; '.join(a.properties)}. Source: {a.source or 'in its file'}."
        yield from (f"Unverified: {doubt}." for doubt in a.unverified)
        if not keys.startswith("updates_per_rollout"):
            yield from ("", "```yaml", keys, "```")
        yield ""


def marked(account: Account) -> str:
    """Its title, and whether something of it could not be verified."""
    return f"{account.title} (In part unverified.)" if account.unverified else account.title


def short_source(account: Account) -> str:
    """The arXiv numbers of its source, else its first words."""
    numbers = list(dict.fromkeys(re.findall(r"\d{4}\.\d{4,5}", account.source)))
    return ", ".join(numbers) or re.split(r"[(;]", account.source)[0].strip(" .")


def _cell(found: Any) -> str:
    """`0.61 [0.58, 0.64]`; a bound that is not known is open."""
    if found is None:
        return "-"
    value, low, high = ("open" if x is None else f"{x:.3g}" for x in found)
    return value if low == high == "open" else f"{value} [{low}, {high}]"


def _table(columns: Any, rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def to_measured(lines: Any, text: str) -> Mapping[str, Any]:
    """The estimates of `opo zoo`, one a line, as measured.json keeps them."""
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        key = " ".join(part for part in (line["measure"], line["policy"]) if part)
        if key in COLUMNS:
            digits = [None if line[k] is None else float(f"{line[k]:.3g}") for k in ("value", "low", "high")]
            rows.setdefault(line["row"], {})[key] = digits
    return {"text": text, "rows": dict(sorted(rows.items()))}
