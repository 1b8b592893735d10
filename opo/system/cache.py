"""The cache of what is made once: the built-in policy, converted models. `OPO_CACHE` moves it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from opo.system.atomic import replacing
from opo.system.manifest import refuse_damaged, write_manifest


def cache_folder() -> Path:
    """`$OPO_CACHE`, or `~/.cache/opo`."""
    return Path(os.environ.get("OPO_CACHE") or Path.home() / ".cache" / "opo")


def folder_of(kind: str, recipe: dict[str, Any]) -> Path:
    """Where what this recipe makes is kept."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"{kind}-{digest}"


def made_once(kind: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` fills, kept under the hash of `recipe`; appears whole or not at all.

    Of two processes that want it at the same time one makes it and the other waits. Raises UserError where a
    file of it is no longer as it was made.
    """
    target = folder_of(kind, recipe)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            _make(target, recipe, make)
    refuse_damaged(target, advice=f"; remove {target} and it is made again")
    return target


def _make(target: Path, recipe: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Called by the process that holds the lock: what others have left unfinished is of killed ones."""
    if target.is_dir():
        return
    for left in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(left)
    with replacing(target) as making:
        making.mkdir()
        make(making)
        (making / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
        write_manifest(making)
