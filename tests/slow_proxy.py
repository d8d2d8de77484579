"""A TCP proxy on loopback that can be made slow, deaf or cut while connections are open: a bad network, on demand."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SlowProxy:
    """Forwards what comes to a port on loopback, each piece after `delay` seconds. Make it with `slow_proxy`."""

    def __init__(self, port: int) -> None:
        self.delay = 0.0  # seconds, each way
        self.port = 0
        self._behind = port
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End every connection there is, as a reset does."""

        def abort() -> None:
            for writer in list(self._open):
                writer.transport.abort()

        self._loop.call_soon_threadsafe(abort)

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        """Until `ended`."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await ended.wait()
        server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, ahead}
        self._open |= both
        try:
            await asyncio.gather(self._pump(reader, ahead), self._pump(behind, writer))
        finally:
            self._open -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


@contextmanager
def slow_proxy(port: int) -> Iterator[SlowProxy]:
    """A proxy before a port, quick until it is told otherwise."""
    proxy = SlowProxy(port)
    started, ended = threading.Event(), asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(proxy._loop)
        proxy._loop.run_until_complete(proxy.serve(started, ended))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("The proxy did not start.")
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        proxy._loop.close()
