"""A folder's manifest: size and SHA-256 of every file in it, written with the folder and checked by every reader."""

import hashlib
import json
from pathlib import Path
from typing import Any

from opo.errors import UserError

FILE = "manifest.json"


def write_manifest(folder: Path, **facts: Any) -> None:
    """List every file below `folder` in its manifest.json, `facts` beside them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / FILE)
    listed = {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
    (folder / FILE).write_text(json.dumps({**facts, "files": listed}, indent=2) + "\n", encoding="utf-8")


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The files that the manifest lists; None where the folder has none. Raises UserError where it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        files = json.loads(file.read_text(encoding="utf-8"))["files"]
        if not files:
            raise ValueError("lists no file")
        return {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: no readable manifest; remove {folder} or restore the file") from None


def refuse_damaged(folder: Path, only: Path | None = None, advice: str = "") -> None:
    """Raises UserError that names the first file (below `only`, where given) that is missing or not as it was written."""
    for name, (size, digest) in (manifest_of(folder) or {}).items():
        file = folder / name
        if only is not None and not file.is_relative_to(only):
            continue
        if not file.is_file():
            raise UserError(f"{file}: missing from its folder, whose manifest lists it{advice}")
        if file.stat().st_size != size or sha256(file) != digest:
            raise UserError(f"{file}: damaged, its SHA-256 is not the manifest's{advice}")


def refuse_changed(file: Path, digest: str, recorded_in: str) -> None:
    """Raises UserError where a file is missing or its SHA-256 is another."""
    if not file.is_file():
        raise UserError(f"{file}: missing; restore it from a copy")
    if sha256(file) != digest:
        raise UserError(f"{file}: damaged, its SHA-256 is not the one in {recorded_in}; restore it from a copy")


def sha256(file: Path) -> str:
    """Of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
