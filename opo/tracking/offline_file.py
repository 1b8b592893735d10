"""A reader of W&B's offline file (`run-ID.wandb`), as it stands on the disk at this moment: also of a run that goes on or was killed.

Seven bytes of header, then LevelDB's log format: blocks of 32 KiB, in them chunks of CRC-32, length, kind (whole, first, middle,
last) and bytes; a record that crosses a block is several chunks. Each record is a protobuf of wandb's own schema. wandb 0.31 has no
reader for Python; `wandb leet inspect --json` reads the same, and the tests compare the two.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opo.errors import UserError

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class TrackedRun:
    """What W&B holds of a run."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(
        default_factory=list
    )  # as logged, nested keys dotted, without wandb's own (`_step`)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None  # null: it goes on, or was killed


def read_run(file: Path) -> TrackedRun:
    """The run in a file; its id is empty where the file holds no record yet. Raises UserError where it is no file of W&B."""
    run = TrackedRun()
    for record in records(file):
        if record.HasField("run"):
            own = record.run
            run.id, run.name, run.group, run.job_type = own.run_id, own.display_name, own.run_group, own.job_type
            run.project, run.tags = own.project, list(own.tags)
            _update(run.config, own.config)
        elif record.HasField("config"):
            _update(run.config, record.config)
        elif record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            run.rows.append({key: value for key, value in items.items() if not key.startswith("_")})
        elif record.HasField("summary"):
            for item in record.summary.update:
                _put(run.summary, list(item.nested_key) or [item.key], json.loads(item.value_json))
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run


def records(file: Path) -> Iterator[Any]:
    """The complete records, in order; a torn one ends the file. Raises UserError where it is no file of W&B."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  made at run time

    data = file.read_bytes()
    if data[:4] != b":W&B":
        raise UserError(f"{file}: is not an offline file of W&B")
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # too little is left of the block for a chunk
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        content = data[place + HEADER : place + HEADER + length]
        if len(content) < length or zlib.crc32(data[place + 6 : place + 7] + content) != checksum:
            return
        parts = content if kind in (WHOLE, FIRST) else parts + content
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
        place += HEADER + length


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys, as an offline file has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _update(config: dict[str, Any], record: Any) -> None:
    """Apply one change of a run's config; wandb's own entry is left out."""
    for item in record.update:
        _put(config, list(item.nested_key) or [item.key], json.loads(item.value_json))
    for item in record.remove:
        *path, last = list(item.nested_key) or [item.key]
        place = config
        for key in path:
            place = place.get(key, {})
        place.pop(last, None)
    config.pop("_wandb", None)


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value
