"""What is asked of git: a patch for everybody, and nothing that a repository's own configuration names is run."""

import subprocess
from pathlib import Path

import pytest

from opo.run.provenance import git_state


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "a.txt").write_text("two\n")
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {"diff.external": "{run}"},
        {"core.fsmonitor": "{run}"},
        {"core.pager": "{run}"},
        {"filter.x.clean": "{run}", "filter.x.required": "true"},
        {"filter.a=b.process": "{run}"},
        {"diff.x.command": "{run}"},
        {"diff.x.textconv": "{run}"},
        {"diff.noprefix": "true", "color.ui": "always", "diff.mnemonicPrefix": "true"},
    ],
)
def test_no_program_of_a_repository_is_run_and_the_patch_is_plain(repository: Path, settings: dict[str, str]) -> None:
    program = repository.parent / f"{repository.name}.sh"
    program.write_text("#!/bin/sh\ntouch ran\ncat\n")
    program.chmod(0o755)
    for key, value in settings.items():
        git(repository, "config", key, value.format(run=program))
        driver, kind = key.split(".")[1], key.split(".")[0]
        if kind in ("filter", "diff"):
            (repository / ".git" / "info" / "attributes").write_text(f"*.txt {kind}={driver}\n")
    state = git_state(repository)
    assert state is not None
    assert state["diff"].startswith("diff --git a/a.txt b/a.txt")
    assert "-one\n+two\n" in state["diff"]
    assert not (repository / "ran").exists()
