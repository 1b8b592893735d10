"""The gallery of `opo zoo`: one page with every algorithm, its formula, what it is unbiased for, and what was measured of it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from analysis.plots.style import save
from analysis.plots.zoo import gallery as figure_of_all
from analysis.report.blocks import Block, Section, code, figure, fold, lead, listing, table, text
from analysis.report.page import write_page
from analysis.study.tables import estimate_text
from analysis.zoo.config import ZooConfig
from analysis.zoo.measure import POLICIES
from analysis.zoo.rows import EXPERIMENT, Row
from opo.accounts import Account, accounts
from opo.config.parts import OPTIONS

LINE = "\n".join  # of code
READING = (
    "Each line is one algorithm. Left: how noisy its gradient is, as variance over squared signal, with REINFORCE and the leave-one-out "
    "baseline (RLOO) at 1; left of the line is less noise. Middle: how much of the true gradient of expected reward its mean gradient "
    "misses whatever the step size, 0 for an algorithm that points the right way. Right: the mean reward that training reached. Bars are 95 % intervals; a point without a bar has none. Low noise is worth "
    "something where little is missed: a gradient that is always the same has no noise, and teaches nothing."
)


def write_gallery(config: ZooConfig, folder: Path, rows: Sequence[Row], found: pl.DataFrame) -> Path:
    """Write `gallery.html` and its figure."""
    order = ordered(rows, found)
    sections = [
        answer(config, folder, order, found),
        gradients(order, found),
        trainings(config, order, found),
        each(config, order, found),
        limits(config, found),
    ]
    return write_page(folder / "gallery.html", "Every algorithm, measured", sections)


def ordered(rows: Sequence[Row], found: pl.DataFrame) -> list[Row]:
    """By noise in mid-training, those that miss least first among equals; what was not measured comes last."""
    noise = {
        r["row"]: r["value"]
        for r in found.filter(measure="noise_ratio", policy=shown_policy(found)).iter_rows(named=True)
    }

    def place(row: Row) -> tuple[bool, float, str]:
        value = noise.get(row.name)
        return value is None, value or 0.0, row.name

    return sorted(rows, key=place)


def shown_policy(found: pl.DataFrame) -> str:
    """Mid-training where it was measured."""
    return POLICIES[-1] if not found.filter(policy=POLICIES[-1]).is_empty() else POLICIES[0]


def kind(account: Account, row: Row) -> str:
    """What its estimate is, in the figure's words."""
    said = statement(account, row)
    if said.startswith(("no: O(1/G)", "(1 - 1/G) grad E[r]")) or said == "(1 - 1/G) grad E[c]":
        return "bias of order 1/G"
    if said.startswith("no") or " if " in said:
        return "biased"
    return "unbiased" if said in ("grad E[r]", "grad E[r], averaged over steps") else "of another objective"


def statement(account: Account, row: Row) -> str:
    """What it is unbiased for; parts that the row adds have the last word."""
    added = [change.partition("=")[2] for change in row.changes if change.startswith("algo.")]
    said = [str(parts[name].unbiased_for) for parts in OPTIONS.values() for name in added if name in parts]
    return "; ".join(said).replace("as the algorithm", account.unbiased_for) or account.unbiased_for


def answer(config: ZooConfig, folder: Path, rows: Sequence[Row], found: pl.DataFrame) -> Section:
    policy, all_accounts = shown_policy(found), accounts()
    measured = [row for row in rows if not found.filter(row=row.name, measure="noise_ratio", policy=policy).is_empty()]
    blocks: list[Block] = [lead(_finding(found, policy, all_accounts, measured)), text(READING)]
    if measured:
        rewards = [value for value in found.filter(measure="reward")["value"] if value is not None]
        reach = (max(0.0, min(rewards) - 0.1), max(rewards) + 0.1) if rewards else None
        kinds = [kind(all_accounts[row.algorithm], row) for row in measured]
        drawn = figure_of_all(found, [row.name for row in measured], kinds, policy, reach)
        save(drawn, folder / "figures", "gallery")
        caption = f"Noise and bias of every algorithm's gradient {_where(policy)}, and the reward its training reached; 95 % intervals over batches of prompts, and over seeds."
        blocks.append(figure(drawn, caption))
    return Section("answer", "What was found", blocks)


def _finding(found: pl.DataFrame, policy: str, all_accounts: Mapping[str, Account], rows: Sequence[Row]) -> str:
    ratios = {r["row"]: r for r in found.filter(measure="noise_ratio", policy=policy).iter_rows(named=True)}
    misses = {r["row"]: r for r in found.filter(measure="misses", policy=policy).iter_rows(named=True)}
    if not rows:
        return "Nothing was measured yet."
    true = [row.name for row in rows if kind(all_accounts[row.algorithm], row) in ("unbiased", "bias of order 1/G")]
    less = [n for n in true if (ratios[n]["high"] or 9) < 0.99]
    more = [n for n in true if (ratios[n]["low"] or 0) > 1.01]
    known = [ratios[row.name]["value"] for row in rows if ratios[row.name]["value"] is not None]
    if not known:
        return f"No signal of {len(rows)} algorithms stood out of the noise {_where(policy)}: take more batches, or prompts that the policy answers now and then."
    if all(r["low"] is None or r["low"] == r["high"] for r in ratios.values()):
        return (
            f"{len(rows)} algorithms gave gradients of {min(known):.2g} to {max(known):.2g} times the noise of RLOO's {_where(policy)}, on the same "
            f"responses. {ratios[rows[0].name]['count']} batches are too few for intervals: these are points, and an order that chance may have made."
        )
    off = [row.name for row in rows if (misses[row.name]["low"] or 0) > 0.3]
    words = [
        f"{len(rows)} algorithms gave gradients of {min(known):.2g} to {max(known):.2g} times the noise of RLOO's {_where(policy)}, on the same responses.",
        f"Of those that estimate the gradient of expected reward, up to order 1/G, {_names(less, 'has', 'have')} less noise than RLOO beyond doubt, and {_names(more, 'has', 'have')} more.",
        f"{_names(off, 'misses', 'miss', capital=True)} more than 0.3 of the true gradient whatever the step size.",
    ]
    return " ".join(words)


def _names(names: Sequence[str], one: str, many: str, capital: bool = False) -> str:
    if not names:
        return f"{'None' if capital else 'none'} {one}"
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:6])}{' and others' if len(names) > 6 else ''}"
    return f"{listed} {one if len(names) == 1 else many}"


def _where(policy: str) -> str:
    return "in mid-training" if policy == POLICIES[-1] else "at the start"


def gradients(rows: Sequence[Row], found: pl.DataFrame) -> Section:
    """Noise and what is missed at both policies."""
    cells = {(r["row"], r["policy"], r["measure"]): estimate_text(r) for r in found.iter_rows(named=True)}
    there = [policy for policy in POLICIES if not found.filter(policy=policy).is_empty()]
    measures = [(policy, measure) for measure in ("noise_ratio", "misses") for policy in there]
    lines = [
        [row.name, *(cells.get((row.name, p, m), "-") for p, m in measures), statement(accounts()[row.algorithm], row)]
        for row in rows
    ]
    words = {"noise_ratio": "noise over RLOO’s", "misses": "missed"}
    columns = ["algorithm", *(f"{words[m]}, {p}" for p, m in measures), "unbiased for"]
    caption = (
        "Noise: tr Cov(g) over |E g|². Missed: √(1 − cos²) between E g and the gradient of expected reward. Value [95 % interval over "
        "batches of prompts]; - is not measured."
    )
    return Section("gradients", "The gradients", [table(caption, columns, lines)])


def trainings(config: ZooConfig, rows: Sequence[Row], found: pl.DataFrame) -> Section:
    cells = {(r["row"], r["measure"]): r for r in found.filter(pl.col("policy").is_null()).iter_rows(named=True)}
    lines = [
        [
            row.name,
            str(cells[row.name, "reward"]["count"]),
            *(
                estimate_text(cells[row.name, m]) if (row.name, m) in cells else "-"
                for m in ("reward", "entropy", "kl")
            ),
        ]
        for row in sorted(rows, key=lambda row: -(cells.get((row.name, "reward"), {"value": None})["value"] or -1.0))
        if (row.name, "reward") in cells
    ]
    caption = f"After {config.tokens:,} generated tokens: the last tenth of the steps, mean over seeds [Student’s 95 % interval]. Entropy and KL to the first policy in nats a token."
    blocks = (
        [table(caption, ["algorithm", "seeds", "mean reward", "entropy", "KL"], lines)]
        if lines
        else [text("Nothing was trained yet.")]
    )
    return Section("trainings", "The trainings", blocks)


def each(config: ZooConfig, rows: Sequence[Row], found: pl.DataFrame) -> Section:
    """Every algorithm's own account, folded."""
    return Section(
        "algorithms",
        "Each algorithm",
        [fold(row.name, list(_account(config, row, found))) for row in sorted(rows, key=lambda row: row.name)],
    )


def _account(config: ZooConfig, row: Row, found: pl.DataFrame) -> Iterator[Block]:
    account = accounts()[row.algorithm]
    yield text(account.title[0].upper() + account.title[1:])
    yield code(account.formula)
    facts = [
        f"Unbiased for: {statement(account, row)}",
        f"Source: {account.source or 'see below'}",
        *(f"Unverified: {doubt}" for doubt in account.unverified),
    ]
    yield listing([*facts, "; ".join(account.properties)])
    lines = [
        [r["policy"] or "trained", r["measure"], estimate_text(r)]
        for r in found.filter(row=row.name).iter_rows(named=True)
    ]
    if lines:
        yield table("Measured", ["at", "measure", "value [95 % interval]"], lines)
    yield fold("In its own words", [code(LINE([*account.parts.values(), account.text]))])
    yield fold("Its keys", [code(LINE(account.body))])
    yield code(" ".join(["opo train", *row.overrides(config.overrides)[1:]]))


def limits(config: ZooConfig, found: pl.DataFrame) -> Section:
    said = [
        f"Intervals of gradients are over {config.batches} batches of {config.prompts} prompts; those of rewards over {len(config.seeds)} seeds, which is few.",
        "Every training had the same learning rate (harpg and n_pg_igt: plain steps of their own) and none was tuned; another rate may change the order of the rewards.",
        "The gradients are those of the first update on a batch, where importance ratios are one; what clipping does later in the batch is seen in the trainings alone.",
        "All rows are measured on the same responses, but for those whose sampler draws its own for the same prompts (props, guide_grpo, rlgf).",
        "Not measured as gradients: the choice of prompts (pcl) and averages over steps (harpg, n_pg_igt), whose rows say what one of their batches gives.",
        "Some rows estimate the gradient of another objective on purpose (pass@k, log E[r], preferences, KL rewards); what they miss is missed of E[r], not a mistake.",
        "A low-noise gradient that misses much is no better; and less noise is not better training.",
    ]
    how = code(
        LINE(
            [
                "opo zoo",
                "opo zoo 'algorithms=[NAME]'   # one algorithm more",
                f"opo train {EXPERIMENT}   # the trainings alone, as a sweep",
            ]
        )
    )
    return Section("limits", "What this does not say, and how to repeat it", [listing(said, limits=True), how])
