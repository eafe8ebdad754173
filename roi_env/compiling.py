"""Where compiled functions are kept, which is settled before any other module is imported.

Numba keeps them beside their modules or in the user's cache, and where it may write neither (a read-only container, a service
without a home) no module that has one can be imported. They go to a temporary folder there, until the process ends.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings

from numba import config, njit


def _nothing() -> None:
    """A function that could be kept."""


try:
    njit(cache=True)(_nothing)
except RuntimeError:  # Numba has no kind of its own for it
    folder = tempfile.mkdtemp(prefix="roi-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = folder  # for this process, and those that it starts
    warnings.warn(
        "compiled functions can be kept neither beside their modules nor in a user's cache, so every start takes longer: name a "
        "folder that may be written by NUMBA_CACHE_DIR",
        stacklevel=2,
    )
