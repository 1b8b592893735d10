"""The table of analysis/variance/README.md: how often 95 % intervals of a variance study hold the truth (`tests/support/interval_coverage.py`).

python tests/benchmarks/bench_coverage.py [prompts in the bank] [replicates]
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from interval_coverage import bank, coverage

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
KINDS = (
    "trace_cov", "signal", "relative_variance", "mse", "mse_rescaled", "bias", "cosine", "ratio of relative variances", "ratio of traces",
)  # fmt: skip


def main() -> None:
    size, replicates = (int(x) for x in (sys.argv[1:] + ["4000", "2000"][len(sys.argv) - 1 :]))
    start = time.process_time()
    print(f"{size} prompts in the bank, {replicates} replicates; coverage in %, lowest to highest estimator")
    print("| number | G | prompts | " + " | ".join(f"s = {s:g}" for s in SCALES) + " |")
    print("|---|---|---|" + "---|" * len(SCALES))
    lines: dict[tuple[str, int, int], list[str]] = {}
    for group_size in (2, 8):
        found = bank(size, group_size)
        for prompts in (24, 48):
            for scale in SCALES:
                held = coverage(found, group_size, prompts, scale, replicates)
                for kind in KINDS:
                    values = sorted(100 * share for (_, what), share in held.items() if what == kind)
                    text = f"{values[0]:.1f}" if len(values) == 1 else f"{values[0]:.1f} to {values[-1]:.1f}"
                    lines.setdefault((kind, group_size, prompts), []).append(text)
    for kind, group_size, prompts in sorted(lines, key=lambda key: (KINDS.index(key[0]), *key[1:])):
        cells = " | ".join(lines[kind, group_size, prompts])
        print(f"| {kind} | {group_size} | {prompts} | {cells} |")
    print(f"{time.process_time() - start:.0f} s on one core")


if __name__ == "__main__":
    main()
