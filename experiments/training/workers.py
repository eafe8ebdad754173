"""Worker processes of long commands, and how such commands end before they are done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Final

from agents.made_for import OtherExams

GRACE_S: Final = 3.5
"""Seconds in which a command that was told to stop may end by itself."""

STOPPED: Final = 130
"""Exit code of a command that was told to stop."""


class WorkerLost(RuntimeError):
    """A worker process ended before its work was done."""


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the one that asked: when the block is left by an exception what they are at is given up at
    once, and where the asker is killed they go too.

    Spawned, not forked: compiled code and its thread pools do not survive a fork.

    :raises WorkerLost: where one ended by itself.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        with _withheld(signal.SIGINT, signal.SIGTERM):
            # Ctrl-C reaches every process of the terminal: whether workers stop is for the one that asked to say.
            for _ in range(workers):  # each starts one
                pool.submit(_nothing)
        yield pool
    except BaseException as error:
        # Private until Python 3.14 (kill_workers).
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)  # its thread sees that they are gone
        if isinstance(error, BrokenProcessPool):
            raise WorkerLost(
                "a worker process was ended from outside (out of memory?) or by the code that it ran; what was done is kept: go "
                "on with --resume RUN, or with the same command"
            ) from error
        raise
    pool.shutdown()


def _nothing() -> None:
    """The first work of a pool: to have it started."""


@contextmanager
def _withheld(*signals: signal.Signals) -> Iterator[None]:
    """Processes that are started inside never get these signals, this one gets them afterwards."""
    held: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, lambda got, _: held.append(got)) for number in signals if main}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _begin() -> None:
    threading.Thread(target=_watch, daemon=True).start()
    warnings.simplefilter("ignore", OtherExams)  # said by the one that asked


def _watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in workers alone"
    parent.join()
    os._exit(1)


@contextmanager
def ends_promptly() -> Iterator[None]:
    """Let this process end at most :data:`GRACE_S` after Ctrl-C or SIGTERM, whatever it is in the middle of.

    Python hears a signal between two of its own instructions: not inside the compiler, and what a callback of C raises is
    lost. Files are replaced whole or not at all, so that a hard end costs nothing that was done.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_after_signal, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _end_after_signal(reader: int) -> None:
    signals = os.fdopen(reader, "rb", buffering=0)  # open to the end: there may be more
    while byte := signals.read(1):
        if byte[0] in (signal.SIGINT, signal.SIGTERM):
            time.sleep(GRACE_S)
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(STOPPED)
    signals.close()  # the block was left without any
