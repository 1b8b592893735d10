"""What makes today's installation next year's: pins that hold everything, and targets that say what they are."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from run_folders import SMALL

ROOT = Path(__file__).parent.parent
LOCKS = {file.stem: file.read_text().splitlines() for file in (ROOT / ".lock").glob("*.txt")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(*files: str) -> dict[str, Requirement]:
    requirements = [Requirement(line) for file in files for line in LOCKS[file]]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("file", sorted(LOCKS))
def test_every_line_of_a_lock_is_one_exact_version(file: str) -> None:
    for requirement in pins(file).values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement


def test_the_locks_hold_what_the_project_asks_for_in_versions_it_accepts() -> None:
    held = pins(*LOCKS)
    extras = {extra: lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "vllm"}
    for line in [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]:
        wanted = Requirement(line)
        (version,) = held[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier.contains(version.version), line


def test_no_lock_draws_in_cuda_builds() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins(*LOCKS).keys()
    assert not [name for name in pins(*LOCKS) if name.startswith("nvidia")]


def test_no_package_is_pinned_twice() -> None:
    names = [canonicalize_name(Requirement(line).name) for lines in LOCKS.values() for line in lines]
    assert len(names) == len(set(names))


def test_make_alone_lists_its_targets() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert [line.split()[1] for line in shown.splitlines()] == phony.group(1).split()


def test_continuous_integration_runs_the_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended by SIGILL"),
    ],
)
def test_an_environment_that_cannot_be_imported_is_not_marked_as_made(tmp_path: Path, broken: str, reason: str) -> None:
    (tmp_path / "transformers.py").write_text(broken)
    check, environment = ROOT / ".lock" / "check.py", {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, check], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith("set-up is not finished: transformers cannot be imported")
    assert reason in line


def test_reasoning_gym_works_where_nothing_can_be_compiled() -> None:
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "pycosat" else found(name, package)
from opo.errors import UserError
from opo.tasks.reasoning_gym import ReasoningGym, ReasoningGymConfig
assert ReasoningGym(ReasoningGymConfig(dataset="chain_sum")).prompt(0).answer
try:
    ReasoningGym(ReasoningGymConfig(dataset="zebra_puzzles"))
except UserError as error:
    sys.exit("needs pycosat" not in str(error))
sys.exit("zebra puzzles were made without their solver")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An interpreter that finds the project's wheel and this environment's packages, but not the checkout; and a folder to run in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("opo", "analysis", "conf"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    # as paths, not by addsitedir: the editable install of the checkout stays out
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (folder / "work").mkdir()
    return environment / "bin" / "python", folder / "work"


def test_the_wheel_trains_reports_and_verifies_in_another_folder(elsewhere: tuple[Path, Path]) -> None:
    python, folder = elsewhere
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_CURRENT_TEST")}

    def run(*arguments: str) -> str:
        ran = subprocess.run([python, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert run("-c", "import opo, analysis, conf; print(opo.__file__)").startswith(str(python.parents[1]))
    run("-m", "opo", "train", "debug=tiny_steps", *(line for line in SMALL if line.startswith("model.")), "threads=1")
    (done,) = (folder / "runs").rglob("DONE")
    run("-m", "opo", "report", f"path={done.parent}")
    (page,) = (folder / "runs").rglob("report.html")
    assert "train/reward_mean" in page.read_text(encoding="utf-8") or "<svg" in page.read_text(encoding="utf-8")
    assert "steps:" in run("-m", "opo", "verify", "--cfg", "job")
