"""The lock of a run folder: one process trains in it."""

from pathlib import Path

from filelock import FileLock, Timeout

from opo.errors import UserError


def hold(path: Path) -> FileLock:
    """Hold the folder against other processes. Raises UserError where one has it."""
    lock = FileLock(path / ".lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{path}: another process is training in this folder; wait for it, or give another folder"
        ) from None
    return lock


def is_held(path: Path) -> bool:
    """Whether a process is training in this folder now."""
    if not (path / ".lock").is_file():
        return False
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return True
    lock.release()
    return False
