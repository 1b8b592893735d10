"""Parquet and JSONL as rows of plain Python, so that a damaged file ends in one line that names the row."""

import io
from pathlib import Path

import polars as pl

from analysis.study.external.record import Table
from opo.errors import UserError
from opo.system.json_lines import json_lines

KINDS = (".parquet", ".jsonl")


def read_table(file: Path) -> Table:
    """The rows of a file. A path is a path: brackets and stars in it are letters. Raises UserError naming the row at fault."""
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise UserError(f"rollouts={file}: a .parquet or .jsonl file is needed (or a list of them)")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"rollouts={file}: {error.strerror or error}") from error
    table = _parquet(file, content) if kind == ".parquet" else _jsonl(file, content)
    if not table.rows:
        raise UserError(f"rollouts={file}: has no rows")
    return table


def _parquet(file: Path, content: bytes) -> Table:
    try:
        frame = pl.read_parquet(io.BytesIO(content), hive_partitioning=False)
        rows = frame.cast({name: dtype for name, kind in frame.schema.items() if (dtype := _float(kind))}).to_dicts()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), "damaged")
        raise UserError(f"rollouts={file}: cannot be read as parquet: {line}") from error
    return Table(file, rows, list(range(1, len(rows) + 1)))


def _float(kind: pl.DataType) -> pl.DataType | None:
    """What decimals are read as, and lists of them; None: as they are."""
    if isinstance(kind, pl.Decimal):
        return pl.Float64()
    return pl.List(pl.Float64()) if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Decimal) else None


def _jsonl(file: Path, content: bytes) -> Table:
    rows = list(json_lines(content, f"rollouts={file}", lambda number: f"rollouts={file}: row {number}"))
    return Table(file, [row for _, row in rows], [number for number, _ in rows])
