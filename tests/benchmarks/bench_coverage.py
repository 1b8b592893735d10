"""The table of analysis/variance/README.md: how often 95 % intervals of a variance study hold the truth (`tests/support/interval_coverage.py`).

python tests/benchmarks/bench_coverage.py [prompts in the bank] [replicates] [population: binary, graded, hard, signed, tail, halves]
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from interval_coverage import bank, misses

SCALES = {"binary": (0.0, 0.25, 0.5, 0.75, 1.0)}
OTHER_SCALES = (0.0, 0.5, 1.0, "gamma", "two")
KINDS = (
    "trace_cov", "signal", "relative_variance", "mse", "mse_rescaled", "bias", "cosine", "ratio of relative variances", "ratio of traces",
)  # fmt: skip


def main() -> None:
    given = sys.argv[1:] + ["4000", "2000", "binary"][len(sys.argv) - 1 :]
    size, replicates, population = int(given[0]), int(given[1]), given[2]
    scales = SCALES.get(population, OTHER_SCALES)
    start = time.process_time()
    print(
        f"{population}: {size} prompts in the bank, {replicates} replicates; coverage in %, lowest to highest estimator"
    )
    print("| number | G | prompts | " + " | ".join(f"s = {s}" for s in scales) + " |")
    print("|---|---|---|" + "---|" * len(scales))
    lines: dict[tuple[str, int, int], list[str]] = {}
    sides: dict[str, list[tuple[float, float]]] = {}
    for group_size in (2, 8):
        found = bank(size, group_size, population=population)
        for prompts in (24, 48):
            for scale in scales:
                missed = misses(found, group_size, prompts, scale, replicates)
                for kind in KINDS:
                    both = [shares for (_, what), shares in missed.items() if what == kind]
                    values = sorted(100 * (1 - below - above) for below, above in both)
                    sides.setdefault(kind, []).extend([] if scale == "two" else both)
                    text = f"{values[0]:.1f}" if len(values) == 1 else f"{values[0]:.1f} to {values[-1]:.1f}"
                    lines.setdefault((kind, group_size, prompts), []).append(text)
    for kind, group_size, prompts in sorted(lines, key=lambda key: (KINDS.index(key[0]), *key[1:])):
        cells = " | ".join(lines[kind, group_size, prompts])
        print(f"| {kind} | {group_size} | {prompts} | {cells} |")
    print(
        "\nmissed in % at most by each end alone, without s = two\n\n| number | lower end | upper end |\n|---|---|---|"
    )
    for kind in KINDS:
        below, above = zip(*sides[kind], strict=True)
        print(f"| {kind} | {100 * max(below):.1f} | {100 * max(above):.1f} |")
    print(f"{time.process_time() - start:.0f} s on one core")


if __name__ == "__main__":
    main()
