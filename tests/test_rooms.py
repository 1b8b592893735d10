"""Arrows between rooms point one way: no package needs one that needs it, and each outside library has one door."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what may import a library, by the beginnings of paths
DOORS = {
    "wandb": ("opo/tracking/", "analysis/report/wandb", "analysis/runs/", "analysis/tracking/"),
    "vllm": ("opo/rollout/vllm",),
    "torch.distributed": ("opo/parallel/", "opo/system/world.py"),
}


def imports(file: Path, inside_functions: bool) -> set[str]:
    """Names of the modules that a file imports, at its top or anywhere."""
    tree = ast.parse(file.read_text())
    found: set[str] = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def sources() -> list[Path]:
    return [file for room in ("opo", "analysis") for file in (ROOT / room).rglob("*.py")]


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_rooms_have_no_circles() -> None:
    needs: dict[str, set[str]] = defaultdict(set)
    for file in sources():
        room = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for module in imports(file, inside_functions=False):
            if module.split(".")[0] in ("opo", "analysis") and module.count(".") and room_of(module) != room:
                needs[room].add(room_of(module))
    list(TopologicalSorter(needs).static_order())  # raises CycleError, which names the circle


def test_opo_knows_nothing_of_analysis() -> None:
    for file in (ROOT / "opo").rglob("*.py"):
        names = {name.split(".")[0] for name in imports(file, inside_functions=False)}
        assert "analysis" not in names, file


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_its_door(library: str) -> None:
    users = [
        file.relative_to(ROOT).as_posix()
        for file in sources()
        if any(f"{name}.".startswith(f"{library}.") for name in imports(file, inside_functions=True))
    ]
    assert users
    assert not [user for user in users if not user.startswith(DOORS[library])]
