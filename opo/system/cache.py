"""Where things made once are kept: the built-in policy, converted models. `OPO_CACHE` moves it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opo.system.manifest import refuse_damaged, write_manifest


def cache_folder() -> Path:
    """`$OPO_CACHE`, or `~/.cache/opo`."""
    return Path(os.environ.get("OPO_CACHE") or Path.home() / ".cache" / "opo")


def made_once(kind: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make(folder)` fills, kept under the hash of `recipe`; appears whole or not at all.

    Two processes may make it at the same time: the first to finish keeps its own, the other's is dropped. Raises UserError where a
    file of it is no longer as it was made.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    target = cache_folder() / f"{kind}-{digest}"
    if target.is_dir():
        refuse_damaged(target, advice=f"; remove {target} and it is made again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=target.parent))
    try:
        make(making)
        (making / "recipe.json").write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
        write_manifest(making)
        try:
            making.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target
