"""An answer's progress, and what happens when its client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..inference.decoding import Event, Finished, Prefilled, Token
from . import reply

T = TypeVar("T")


@dataclass(slots=True)
class Progress:
    """Progress of one answer: its events, counted and timed."""

    arrived: float  # when the request arrived, by time.perf_counter
    stops: reply.Stops
    prefilled: Prefilled | None = None
    tokens: int = 0
    first_s: float = 0.0  # from the request to the first token
    decode_s: float = 0.0
    reason: reply.Reason | None = None

    def follow(self, event: Event) -> str:
        """Count an event and return the text to send for it."""
        match event:
            case Prefilled():
                self.prefilled = event
                return ""
            case Token():
                since_s = time.perf_counter() - self.arrived
                if not self.tokens:
                    self.first_s = since_s
                self.tokens, self.decode_s = self.tokens + 1, since_s - self.first_s
            case Finished():
                self.reason = event.reason
        shown = self.stops.add(event.text)
        if self.stops.met:
            self.reason = "stop"
        return shown + self.stops.finish() if self.reason else shown

    @property
    def tokens_per_s(self) -> float:
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s > 0 else 0.0

    def usage(self) -> reply.Usage:
        assert self.prefilled
        return reply.Usage(self.prefilled.tokens, self.tokens, self.prefilled.cached_tokens)

    def timings(self) -> reply.Timings:
        assert self.prefilled
        prefilled = self.prefilled
        return reply.Timings(
            self.first_s, prefilled.vision_s, prefilled.prefill_s, self.tokens_per_s, prefilled.image_tokens
        )


class Streamed(StreamingResponse):
    """Server-sent events. Closes `events` and calls `leave` however it ends, even if it was never sent."""

    def __init__(self, events: AsyncGenerator[bytes], leave: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
            await self._events.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; raise ClientDisconnect if the client disconnects first."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
