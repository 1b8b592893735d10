"""A ranking of runs as text: for the terminal, a notebook, Markdown and LaTeX."""

import re

from rich.table import Table

from analysis.runs.ranking import Rank, Ranking

FEW_SEEDS = 8  # fewer make intervals that are clearly too short


def ranking_table(ranked: Ranking, where: str) -> Table:
    """For the terminal, or the output of a notebook's cell; `where` are the runs."""
    tasks = f" over {len(ranked.tasks)} tasks" if len(ranked.tasks) > 1 else ""
    title = f"{where}: reward at {ranked.tokens:,.0f} generated tokens, interquartile mean over seeds{tasks} [95 %]"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(columns(ranked)):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for cells in rows(ranked):
        table.add_row(*cells)
    return table


def columns(ranked: Ranking) -> list[str]:
    """What stands above `rows`."""
    return ["algorithm", "seeds", "reward", f"minus {ranked.first} [95 %]", "shared seeds"]


def rows(ranked: Ranking) -> list[list[str]]:
    """An algorithm a row: its interquartile mean, and the paired difference to the first algorithm, each with its interval."""
    return [
        [row.name, str(row.seeds), f"{row.score:.3f} {_interval(row.interval)}", *_difference(row, ranked.first)]
        for row in ranked.rows
    ]


def markdown(ranked: Ranking) -> str:
    """The table in Markdown."""
    lines = [columns(ranked), ["---", *["---:"] * (len(columns(ranked)) - 1)], *rows(ranked)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def latex(ranked: Ranking) -> str:
    """The table in LaTeX; it needs the package booktabs."""
    head, *body = (" & ".join(map(_escaped, cells)) + r" \\" for cells in [columns(ranked), *rows(ranked)])
    kinds = "l" + "r" * (len(columns(ranked)) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])  # fmt: skip


def notes(ranked: Ranking) -> list[str]:
    """What a reader must know of the ranking, a sentence each."""
    found = []
    if any(row.interval is None for row in ranked.rows):
        found.append("one seed: no interval, and nothing can be concluded from the difference")
    few = [row.seeds for row in ranked.rows if row.interval is not None and row.seeds < FEW_SEEDS]
    if few:
        found.append(
            f"intervals over {min(few)} seeds are too short: of 3 seeds they hold the truth in 74 % of all cases, of 5 in 90 %, of 8 in 93 %"
        )
    found += [f"left out ({why}): {run}" for run, why in ranked.left_out.items()]
    return found


def _difference(row: Rank, first: str) -> tuple[str, str]:
    if row.name == first:
        return "", ""
    if row.difference is None:
        return "no seed in common", "0"
    return f"{row.difference:+.3f} {_interval(row.difference_interval, '+')}", str(row.shared)


def _interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    return "[one seed]" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
