"""A reader of W&B's offline file, as it stands on the disk at this moment: also of a run that is going on or was killed.

Seven bytes of header, then LevelDB's log format: blocks of 32 KiB, in them chunks of CRC-32, length, kind (whole, first, middle,
last) and bytes; a record that crosses a block is several chunks. Each record is a protobuf of wandb's own schema.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  made at run time

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> Iterator[Any]:
    """The complete records, in order; a torn one ends the file."""
    data = file.read_bytes()
    assert data[:4] == b":W&B", file
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


def history(file: Path) -> list[dict[str, Any]]:
    """The logged rows, nested keys dotted, without wandb's own (`_step`, `_timestamp`, `_runtime`)."""
    rows = []
    for record in records(file):
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
