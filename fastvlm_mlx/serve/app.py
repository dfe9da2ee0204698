"""The server as an ASGI application: what requests are answered with, and who is turned away."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib import resources
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import FastVLMError, PromptError
from ..inference.decoding import Event, Finished, Token
from ..inference.generate import refuse_beyond
from ..inputs.prompt import assemble
from ..inputs.tiling import ImageOptions
from ..vlm import VLM
from . import pictures, reply
from .engine import Closing, Engine, Failed, Question
from .json_schema import Shapes
from .metrics import Metrics
from .progress import Course, Streamed, unless_gone
from .request import Asked, Refused, chatml, parse

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_BODY_S = 60  # for all of a request to arrive
_DECODING = 4  # requests whose pictures are opened at a time: a large one takes hundreds of MB
_MOST_PICTURES = 16  # of one request
_GONE = 499  # what a client's hanging up is counted as
_RETRY_S = (1, 60)  # what a client that is turned away may be told, at least and at most
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Settings:
    name: str  # of the model, for clients
    queue: int = 64  # requests that may wait
    max_tokens: int = 512  # of an answer, where the client does not say
    api_key: str | None = None
    origins: tuple[str, ...] = ()  # whose pages may ask, beside our own
    hosts: tuple[str, ...] = ()  # what requests must call the server by; any name without
    body_bytes: int = 50 * 2**20
    limits: pictures.Limits = pictures.Limits()  # noqa: RUF009 - frozen


def application(settings: Settings, vlm: VLM, engine: Engine) -> Starlette:
    """`engine` has been started and is closed by the caller."""
    service = _Service(settings, vlm, engine)
    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/v1/chat/completions", service.completions, methods=["POST"]),
    ]
    around = [Middleware(_Counting, metrics=service.counted)]
    if settings.origins:
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        )
    handlers = dict.fromkeys((FastVLMError, HTTPException, ClientDisconnect, Exception), _refused)
    return Starlette(routes=routes, middleware=around, exception_handlers=handlers)


class _Service:
    def __init__(self, settings: Settings, vlm: VLM, engine: Engine) -> None:
        self._settings, self._vlm, self._engine = settings, vlm, engine
        self._metrics = Metrics(engine)
        self.counted = self._metrics.requests
        self._shapes: Shapes | None = None  # takes seconds to make, and few ask for it
        self._making_shapes = Lock()
        self._began = int(time.time())
        self._decoding = CapacityLimiter(_DECODING)
        self._inside = 0  # requests for completions, from their first byte to their last
        self._usual_s = 1.0  # that an answer takes
        self._page = resources.files(__package__).joinpath("page.html").read_bytes()

    # --- what can be asked for

    async def page(self, request: Request) -> Response:
        self._check_host(request)
        return Response(self._page, media_type="text/html", headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        self._check_host(request)
        engine = self._engine
        return JSONResponse({"status": "ok", "answering": engine.answering, "waiting": engine.waiting})

    async def metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse(self._models())

    async def model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._models()["data"][0])

    async def completions(self, request: Request) -> Response:
        arrived = time.perf_counter()
        self._check_key(request)
        self._enter()
        streaming = asked_well = False
        try:
            asked = parse(await self._body(request))
            self._check_model(asked.model)
            question = await to_thread.run_sync(self._question, asked, limiter=self._decoding)
            course = Course(arrived, reply.Stops(asked.stop))
            head = reply.Head(
                f"chatcmpl-{uuid.uuid4().hex}", self._settings.name, int(time.time()), asked.include_usage
            )
            events = self._events(question)
            asked_well = True
            if not asked.stream:
                return JSONResponse(await unless_gone(request, self._whole(asked, head, course, events)))
            course.follow(await unless_gone(request, anext(events)))  # what fails at once has its status
            streaming = True
            return Streamed(self._chunks(asked, head, course, events), lambda: self._leave(arrived))
        finally:
            if not streaming:
                self._leave(arrived if asked_well else None)

    # --- answers

    async def _whole(
        self, asked: Asked, head: reply.Head, course: Course, events: AsyncGenerator[Event]
    ) -> dict[str, Any]:
        text: list[str] = []
        said: list[reply.Said] = []
        async with aclosing(events):
            async for event in events:
                text.append(course.follow(event))
                said += self._said(event)
                if course.reason:
                    break
        self._count(course)
        assert course.reason
        logprobs = None if asked.top_logprobs is None else said
        return head.completion("".join(text), course.reason, course.usage(), course.timings(), logprobs)

    async def _chunks(
        self, asked: Asked, head: reply.Head, course: Course, events: AsyncGenerator[Event]
    ) -> AsyncGenerator[bytes]:
        yield reply.sse(head.opening())
        try:
            async with aclosing(events):
                async for event in events:
                    text, said = course.follow(event), self._said(event)
                    if text or said:
                        yield reply.sse(head.piece(text, said or None))
                    if course.reason:
                        break
            self._count(course)
            assert course.reason
            yield reply.sse(head.closing(course.reason))
            if asked.include_usage:
                yield reply.sse(head.told(course.usage(), course.timings()))
            yield reply.DONE
        except FastVLMError as error:  # the status has gone out already
            yield reply.sse(_refusal(error).body())

    async def _events(self, question: Question) -> AsyncGenerator[Event]:
        """As the model's thread tells them; whoever stops reading leaves the model's batch."""
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Event | Failed]()

        def tell(event: Event | Failed) -> None:
            loop.call_soon_threadsafe(told.put_nowait, event)

        ticket = self._engine.ask(question, tell)
        try:
            while True:
                event = await told.get()
                if isinstance(event, Failed):
                    if not isinstance(event.error, FastVLMError):
                        _LOG.error("a question failed", exc_info=event.error)
                    raise _refusal(event.error)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            ticket.cancelled = True

    def _said(self, event: Event) -> list[reply.Said]:
        if not isinstance(event, Token) or event.logprob is None:
            return []
        top = tuple(self._told(id, logprob) for id, logprob in event.likeliest)
        return [replace(self._told(event.id, event.logprob), top=top)]

    def _told(self, id: int, logprob: float) -> reply.Said:
        spelled = self._vlm.tokenizer.bytes_of(id, skip_special=False)
        return reply.Said(spelled.decode(errors="replace"), spelled, logprob)

    # --- requests

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of any origin could send others unasked
            raise Refused(f"the content type is {kind or 'missing'}; send application/json", 415)
        most, body = self._settings.body_bytes, bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        found = f"the request has more than {most} bytes; send smaller pictures"
                        raise Refused(found, 413)
        except TimeoutError:
            raise Refused(
                f"the request did not arrive within {_BODY_S} s; send smaller pictures", 408
            ) from None
        return bytes(body)

    def _question(self, asked: Asked) -> Question:
        """Pictures are fetched, decoded and prepared: seconds of work, away from the event loop."""
        text, links = chatml(asked.messages)
        if len(links) > _MOST_PICTURES:
            found = f"{len(links)} pictures in one request; at most {_MOST_PICTURES}; send fewer"
            raise Refused(found, param="messages", code="too_many_images")
        shown = [
            self._vlm.picture(pictures.open_link(link, self._settings.limits), ImageOptions(asked.image_size))
            for link in links
        ]
        prompt = assemble(text, shown, self._vlm.tokenizer.encode)
        for picture in shown:
            _ = picture.key  # worked out here, not in the model's thread
        try:
            refuse_beyond(self._vlm.config.text.context, [prompt])
        except PromptError as error:
            raise Refused(str(error), param="messages", code="context_length_exceeded") from None
        form = asked.form
        shape = None if form is None else self._shapes_of_vocabulary().begin(form)
        most = self._settings.max_tokens if asked.max_tokens is None else asked.max_tokens
        return Question(prompt, most, asked.sampling, asked.top_logprobs, shape)

    def _shapes_of_vocabulary(self) -> Shapes:
        with self._making_shapes:  # requests are prepared in several threads
            if self._shapes is None:
                self._shapes = Shapes(self._vlm.tokenizer)
            return self._shapes

    def _check_host(self, request: Request) -> None:
        """A page of anywhere may have its name point to this machine; it then asks by that name."""
        hosts, asked = self._settings.hosts, request.headers.get("host", "")
        try:
            name = urlsplit(f"//{asked}").hostname
        except ValueError:  # such as an open bracket
            raise Refused(f"no host name {asked!r}; ask by the server's address") from None
        if hosts and name not in hosts:
            raise Refused(f"this server is not called {asked!r}; ask it by an address of its own", 403)

    def _check_key(self, request: Request) -> None:
        self._check_host(request)
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise Refused("a key is needed: Authorization: Bearer …", 401, code="invalid_api_key")

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._settings.name:
            found = f"no model {name!r}; this server has {self._settings.name!r}"
            raise Refused(found, 404, param="model", code="model_not_found")

    def _models(self) -> dict[str, Any]:
        dtype = str(self._vlm.dtype).removeprefix("mlx.core.")
        return reply.models([self._settings.name], self._began, self._vlm.config.image.size, dtype)

    # --- how many

    def _enter(self) -> None:
        places = self._engine.places
        if self._inside >= places + self._settings.queue:
            least, most = _RETRY_S
            raise _Busy(min(max(math.ceil(self._usual_s * self._inside / places), least), most))
        self._inside += 1

    def _leave(self, arrived: float | None) -> None:
        """None: the request was refused, and its time says nothing of an answer's."""
        self._inside -= 1
        if arrived is None:
            return
        self._usual_s += (time.perf_counter() - arrived - self._usual_s) / 16

    def _count(self, course: Course) -> None:
        self._metrics.answer_tokens.inc(course.tokens)
        if course.tokens:
            self._metrics.first_token.observe(course.first_s)
        if course.tokens_per_s:
            self._metrics.speed.observe(course.tokens_per_s)


class _Busy(Refused):
    def __init__(self, retry_s: int) -> None:
        super().__init__(f"too many are waiting already; ask again in {retry_s} s", 429, code="queue_full")
        self.retry_s = retry_s


async def _refused(request: Request, error: Exception) -> Response:
    refusal = _refusal(error)
    headers = {"Retry-After": str(error.retry_s)} if isinstance(error, _Busy) else None
    if refusal.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse(refusal.body(), refusal.status, headers)


def _refusal(error: Exception) -> Refused:
    match error:
        case Refused():
            return error
        case Closing():
            return Refused(str(error), 503)
        case FastVLMError():
            return Refused(str(error))
        case HTTPException():
            return Refused(f"{error.detail}; see /v1/models and /v1/chat/completions", error.status_code)
        case ClientDisconnect():
            return Refused("the client hung up", _GONE)
        case _:
            return Refused("the server failed at this request; its log has more", 500)


class _Counting:
    """Requests by their status."""

    def __init__(self, app: ASGIApp, metrics: Counter) -> None:
        self._app, self._requests = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
