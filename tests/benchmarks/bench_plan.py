"""What `opo plan` says beside what runs really take: peak memory of a rank, on the built-in policy and SmolLM2-135M.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_plan.py [--only smollm2] [--ranks 1,2]

Every response has its full length, which is what a plan counts with. Two ranks of SmolLM2 need 11 GiB.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from peaks import RUNS, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--ranks", default="1,2")
    options = parser.parse_args()
    print(f"{'run':18}{'ranks':>6}{'planned MiB':>13}{'measured MiB':>14}{'ratio':>8}")
    for name in RUNS:
        for ranks in map(int, options.ranks.split(",")):
            if name.startswith(options.only) and not (ranks == 1 and "sharded" in name):
                planned, measured = compare(name, ranks)
                print(f"{name:18}{ranks:6}{planned:13.0f}{measured:14.0f}{planned / measured:8.2f}", flush=True)


if __name__ == "__main__":
    main()
