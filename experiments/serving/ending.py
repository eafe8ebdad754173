"""How `roi serve` ends: with what runs at the first signal, without it at the second."""

from __future__ import annotations

import asyncio
import logging
from types import FrameType
from typing import TYPE_CHECKING, Any

from experiments.commands.endpoints import report

if TYPE_CHECKING:
    import uvicorn

_LOOK = 0.05
"""Seconds between two looks whether there was a second signal."""
_LAST = 2.0
"""Seconds that requests which are cut off have to tell their clients."""


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def make_server(options: uvicorn.Config) -> uvicorn.Server:
    """uvicorn's server, which at a second signal ends the requests that run, settles them and closes the books."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                self.force_exit = True
            else:
                super().handle_exit(sig, frame)

        async def shutdown(self, sockets: Any = None) -> None:
            running = self.server_state.tasks
            if running:
                report(f"Requests that run are ended first, {len(running):,} of them; a second signal cuts them off")
            # Which may wait for connections that are still open, second signal or not (asyncio's own, since Python 3.12).
            ending = asyncio.create_task(super().shutdown(sockets))
            while not (self.force_exit or ending.done()):
                await asyncio.wait([ending], timeout=_LOOK)
            if not self.force_exit:
                return await ending
            if running:
                report(f"{len(running):,} requests were cut off: what was asked of an endpoint costs its reservation")
            logging.getLogger("uvicorn.error").addFilter(_is_wanted)  # a traceback for each of them
            for task in list(running):
                task.cancel()
            await self._last()
            for connection in list(self.server_state.connections):  # of clients that do not read
                connection.transport.abort()
            await self._last()
            await ending
            await self.lifespan.shutdown()

        async def _last(self) -> None:
            if running := list(self.server_state.tasks):
                await asyncio.wait(running, timeout=_LAST)

    return Server(options)
