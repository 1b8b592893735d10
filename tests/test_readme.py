"""What the README files name exists: commands compose, links and paths lead somewhere, modules import, snippets run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from opo.algorithms import ALGORITHMS
from opo.cli import COMMANDS, take_apart
from opo.cli.launch import check
from opo.config.load import load_config

ROOT = Path(__file__).parent.parent
ROOMS = ("opo", "analysis", "conf", "tests", "notebooks")
READMES = sorted([*ROOT.glob("*.md"), *(file for room in ROOMS for file in (ROOT / room).rglob("README.md"))])
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}(\.parquet|\.jsonl)?\b")


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def commands(file: Path) -> Iterator[str]:
    """What stands after `opo` in lines of code blocks and in code spans that begin with it."""
    text = file.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for line in [*(line for block in blocks for line in block.splitlines()), *spans]:
        if found := re.match(r"\s*(?:torchrun .*-m )?(?:\.venv/bin/)?opo ([a-z].*)", line):
            yield re.sub(r"\s+#.*", "", found.group(1))


COMMAND_LINES = sorted({(file, line) for file in READMES for line in commands(file)})


def test_every_room_has_its_readme_and_the_first_is_short() -> None:
    rooms = {"README.md", "opo/README.md", "analysis/README.md", "conf/algo/README.md", "notebooks/README.md"}
    assert {*rooms, "tests/benchmarks/README.md"} <= {name_of(file) for file in READMES}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1800  # what `wc -w` counts


@pytest.mark.parametrize(("file", "line"), COMMAND_LINES, ids=name_of)
def test_a_command_composes_and_one_training_is_accepted(file: Path, line: str) -> None:
    """Lines with a placeholder such as FOLDER, sweeps and other commands compose; one training is judged as well."""
    name, *rest = shlex.split(line)
    if name == "algorithms":  # no Hydra application: its tests are in tests/opo/cli
        return
    assert name in COMMANDS, f"{name_of(file)}: opo {line}"
    if {"NAME", "--help", "--cfg", "algo=group_median"} & set(rest):  # the last is made in a test below
        return
    invocation, _ = take_apart(name, [PLACEHOLDER.sub("some/thing", argument) for argument in rest])
    one_training = name == "train" and not (PLACEHOLDER.search(line) or invocation.multirun or "sweep=" in line)
    installed = find_spec("vllm") or not re.search("vllm|one_gpu", line)
    check(invocation, load_config if one_training and installed else None)


@pytest.mark.parametrize("file", READMES, ids=name_of)
def test_links_and_paths_lead_somewhere(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert re.match(r"https?://", link) or (file.parent / link).exists(), link
    made = {"opo/algorithms/group_median.py", "conf/algo/group_median.yaml"}
    for path in re.findall(r"(?<![\w./-])(?:opo|analysis|conf|tests|notebooks|\.lock)/[\w./-]*", text):
        assert path in made or PLACEHOLDER.search(path) or (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("file", READMES, ids=name_of)
def test_modules_and_functions_exist(file: Path) -> None:
    for dotted in re.findall(r"`((?:opo|analysis)(?:\.\w+)+)", file.read_text(encoding="utf-8")):
        *parts, last = dotted.split(".")
        module = import_module(".".join(parts))
        assert hasattr(module, last) or find_spec(dotted), dotted


def test_the_first_readme_names_every_command_and_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"`opo {name}" not in text]
    rooms = [init.parent for package in ("opo", "analysis") for init in (ROOT / package).glob("*/__init__.py")]
    tree = text[text.index("\nconf/ ") :]
    assert not [room.name for room in rooms if f" {room.name}/ " not in tree]


def test_the_table_of_algorithms_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "conf/algo/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(ALGORITHMS) <= set(rows)
    assert len(rows) == len(set(rows))


def test_an_algorithm_is_added_by_the_letter_of_its_readme(tmp_path: Path) -> None:
    """The two files of the README in a copy of the project, and the command that it gives."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (ROOT / "conf/algo/README.md").read_text(encoding="utf-8")
    for language, path in (("python", "opo/algorithms/group_median.py"), ("yaml", "conf/algo/group_median.yaml")):
        block = re.search(rf"`{path}`.*?```{language}\n(.*?)```", text, re.DOTALL)
        assert block, path
        (tmp_path / path).write_text(re.sub("(?m)^   ", "", block.group(1)), encoding="utf-8")
    command = re.search(r"^ *pytest (.+)$", text, re.MULTILINE)
    assert command
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(command.group(1))],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed.group(1)) > 5
