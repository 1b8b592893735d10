"""Files and folders that appear whole or not at all, also when the machine loses power."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or to make a folder at; on leaving, that is on the disk and is called `path`.

    A file of that name is replaced, and a reader sees the old one or the new. A folder of that name raises OSError unless it is
    empty. After an error nothing is left; what a killed process leaves is called `.<stem>.<process>.partial<suffix>`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    _remove(partial)
    try:
        yield partial
        for part in [*partial.rglob("*"), partial]:
            sync(part)
        partial.replace(path)
    finally:
        _remove(partial)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by one that holds `text`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
