"""A full disk, a folder that cannot be written: one sentence that names the file or folder."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opo.errors import StoppedRun, UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def storage_faults_in_one_sentence(folder: Path | None = None) -> Iterator[None]:
    """Raises StoppedRun where the disk is full, UserError where something may not be read or written; other errors pass.

    The sentence names the file that the operating system names, or `folder`.
    """
    try:
        yield
    except (UserError, StoppedRun):
        raise
    except Exception as error:
        number = _number(error)
        where = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder or "a file"
        if number in FULL:
            kept = "; what is on disk stays, and the same command resumes from there" if folder else ""
            raise StoppedRun(f"{where}: {os.strerror(number)}{kept}") from error
        if number in CLOSED:
            raise UserError(f"{where}: {os.strerror(number)}; give a place that can be read and written") from error
        raise


def _number(error: Exception) -> int | None:
    """The operating system's number of an error, also where a library (safetensors, polars, shutil) only quotes it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
    return int(quoted[1] or quoted[2]) if quoted else None
