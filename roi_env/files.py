"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MARK: Final = ".unfinished-"
_SURELY_S: Final = 60.0
"""Age from which on a file that nobody holds is left over: one is held a moment after it is there."""
_swept: set[Path] = set()


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[Path]:
    """Give a temporary neighbour to write; rename it to ``path`` at the end, delete it after an error.

    A reader sees the old file or the whole new one. What a process leaves that is killed here is deleted by the next one that
    writes into the folder.

    :param mode: permissions of the new file.
    :raises OSError: naming the file, where it cannot be written.
    """
    target = Path(path)
    _sweep(target.parent)
    # The suffix stays: writers choose formats by it.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}{_MARK}", suffix=target.suffix)
    temporary = Path(name)
    try:
        with suppress(OSError):  # a file system without locks: what is left over stays
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with writing(target):
            yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, a disk that is full is told of as Python tells it, with the file or folder that was to be written.

    PyTorch's and safetensors' writers say it in words of their own, others name no file.

    :raises OSError: naming the path.
    """
    try:
        yield
    except Exception as error:
        # PyTorch ends its archive, which fails again: the reason is what was raised before.
        chain = [error]
        while isinstance(chain[-1], RuntimeError) and isinstance(chain[-1].__context__, Exception):
            chain.append(chain[-1].__context__)
        told = next((one for one in chain if isinstance(one, OSError)), None)
        if told is not None and told.filename is not None:
            raise
        if told is not None:
            why = told.strerror or " ".join(str(told).split())
            raise OSError(told.errno or errno.EIO, f"cannot be written: {why}", os.fspath(path)) from error
        if any(_CANNOT_WRITE.search(str(one)) for one in chain):
            why = " ".join(str(error).split())
            raise OSError(errno.EIO, f"cannot be written, is the disk full? ({why})", os.fspath(path)) from error
        raise


_CANNOT_WRITE: Final = re.compile(r"No space left|File too large|PytorchStreamWriter|inline_container|I/O error")


def _sweep(folder: Path) -> None:
    """Delete, once a process and folder, temporary files that no process holds."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    for left in folder.glob(f".*{_MARK}*"):
        with suppress(OSError), left.open("rb") as file:
            if time.time() - left.stat().st_mtime > _SURELY_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
