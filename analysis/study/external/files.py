"""Parquet and JSONL as rows of plain Python, so that a damaged file ends in one line that names the row."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from analysis.study.external.record import Table
from opo.errors import UserError
from opo.system.json_lines import json_lines

KINDS = (".parquet", ".jsonl")


def usable(name: str) -> Path:
    """The file of that name, which is there and of a kind that is read. Raises UserError saying what stands there instead."""
    if fault := _fault(name):
        raise UserError(f"rollouts={name}: {fault}; a local .parquet or .jsonl file is needed (or a list of them)")
    return Path(name)


def _fault(name: str) -> str | None:
    if "://" in name:
        return "an address"
    if os.path.isdir(name):
        return "a folder"
    if not os.path.exists(name):
        return "a link to nothing" if os.path.islink(name) else "no such file"
    if not os.path.isfile(name):
        return "a pipe or device"
    return None if name.lower().endswith(KINDS) else "another kind of file"


def read_table(file: Path) -> Table:
    """The rows of a file. A path is a path: brackets and stars in it are letters. Raises UserError naming the row at fault."""
    try:
        content = usable(str(file)).read_bytes()
    except OSError as error:
        raise UserError(f"rollouts={file}: {error.strerror or error}") from error
    table = _parquet(file, content) if file.suffix.lower() == ".parquet" else _jsonl(file, content)
    if not table.rows:
        raise UserError(f"rollouts={file}: has no rows")
    return table


def _parquet(file: Path, content: bytes) -> Table:
    fault = "cannot be read as parquet"
    try:
        with _quiet():
            frame = pl.read_parquet(io.BytesIO(content), hive_partitioning=False)
            columns = list[list[Any]]()
            for series in frame:
                fault = f"the column {series.name} cannot be read, so leave it out"
                dtype = _float(series.dtype)
                columns.append((series.cast(dtype) if dtype else series).to_list())
    except (Exception, pl.exceptions.PanicException) as error:  # a damaged file or value may raise anything
        line = next(iter(str(error).splitlines()), "damaged")
        raise UserError(f"rollouts={file}: {fault}: {line[:160]}") from error
    rows = [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]
    return Table(file, rows, list(range(1, len(rows) + 1)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the trace that Rust writes to stderr where it gives up: the error that it raises then says why."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _float(kind: pl.DataType) -> pl.DataType | None:
    """What decimals are read as, and lists of them; None: as they are."""
    if isinstance(kind, pl.Decimal):
        return pl.Float64()
    return pl.List(pl.Float64()) if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Decimal) else None


def _jsonl(file: Path, content: bytes) -> Table:
    rows = list(json_lines(content, f"rollouts={file}", lambda number: f"rollouts={file}: row {number}"))
    return Table(file, [row for _, row in rows], [number for number, _ in rows])
