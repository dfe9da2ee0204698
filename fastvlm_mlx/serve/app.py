"""The ASGI application: routes, access checks, answers and the limit on waiting requests."""

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
from ..inference.generate import check_context
from ..inputs.prompt import assemble
from ..inputs.tiling import ImageOptions
from ..vlm import VLM
from . import pictures, reply
from .engine import Engine, Failed, Question, ShuttingDown
from .json_schema import SchemaCompiler
from .metrics import Metrics
from .progress import Progress, Streamed, unless_gone
from .request import ChatRequest, RequestError, chatml, parse

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_BODY_S = 60  # time limit for receiving a whole request
_DECODING = 4  # requests whose pictures are opened at once; a large picture takes hundreds of MB
_MOST_PICTURES = 16  # in one request
_GONE = 499  # the status counted for a client that disconnects
_RETRY_S = (1, 60)  # minimum and maximum of Retry-After
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
    name: str  # the model's name for clients
    queue: int = 64  # maximum number of waiting requests
    max_tokens: int = 512  # default for requests without max_tokens
    api_key: str | None = None
    origins: tuple[str, ...] = ()  # origins allowed by CORS
    hosts: tuple[str, ...] = ()  # accepted names in the Host header; empty accepts any
    body_bytes: int = 50 * 2**20
    limits: pictures.Limits = pictures.Limits()  # noqa: RUF009 - frozen


def application(settings: Settings, vlm: VLM, engine: Engine) -> Starlette:
    """Return the server's application. The caller has started `engine` and closes it."""
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
    handlers = dict.fromkeys((FastVLMError, HTTPException, ClientDisconnect, Exception), _error_response)
    return Starlette(routes=routes, middleware=around, exception_handlers=handlers)


class _Service:
    def __init__(self, settings: Settings, vlm: VLM, engine: Engine) -> None:
        self._settings, self._vlm, self._engine = settings, vlm, engine
        self._metrics = Metrics(engine)
        self.counted = self._metrics.requests
        self._shapes: SchemaCompiler | None = None  # built for the first request with a schema; takes seconds
        self._shapes_lock = Lock()
        self._started = int(time.time())
        self._decoding = CapacityLimiter(_DECODING)
        self._open = 0  # completion requests being received, waiting or answered
        self._answer_s = 1.0  # moving average of the time of an answer
        self._page = resources.files(__package__).joinpath("page.html").read_bytes()

    # --- routes

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
        streaming = accepted = False
        try:
            requested = parse(await self._body(request))
            self._check_model(requested.model)
            question = await to_thread.run_sync(self._question, requested, limiter=self._decoding)
            course = Progress(arrived, reply.Stops(requested.stop))
            head = reply.Head(
                f"chatcmpl-{uuid.uuid4().hex}", self._settings.name, int(time.time()), requested.include_usage
            )
            events = self._events(question)
            accepted = True
            if not requested.stream:
                return JSONResponse(await unless_gone(request, self._whole(requested, head, course, events)))
            # The first event comes before the status is sent: an early error keeps its own status.
            course.follow(await unless_gone(request, anext(events)))
            streaming = True
            return Streamed(self._chunks(requested, head, course, events), lambda: self._leave(arrived))
        finally:
            if not streaming:
                self._leave(arrived if accepted else None)

    # --- answers

    async def _whole(
        self, requested: ChatRequest, head: reply.Head, course: Progress, events: AsyncGenerator[Event]
    ) -> dict[str, Any]:
        text: list[str] = []
        logprobs: list[reply.TokenLogprob] = []
        async with aclosing(events):
            async for event in events:
                text.append(course.follow(event))
                logprobs += self._logprobs(event)
                if course.reason:
                    break
        self._count(course)
        assert course.reason
        shown = None if requested.top_logprobs is None else logprobs
        return head.completion("".join(text), course.reason, course.usage(), course.timings(), shown)

    async def _chunks(
        self, requested: ChatRequest, head: reply.Head, course: Progress, events: AsyncGenerator[Event]
    ) -> AsyncGenerator[bytes]:
        yield reply.sse(head.opening())
        try:
            async with aclosing(events):
                async for event in events:
                    text, logprobs = course.follow(event), self._logprobs(event)
                    if text or logprobs:
                        yield reply.sse(head.piece(text, logprobs or None))
                    if course.reason:
                        break
            self._count(course)
            assert course.reason
            yield reply.sse(head.closing(course.reason))
            if requested.include_usage:
                yield reply.sse(head.usage(course.usage(), course.timings()))
            yield reply.DONE
        except FastVLMError as error:  # the status was sent already
            yield reply.sse(_as_refused(error).body())

    async def _events(self, question: Question) -> AsyncGenerator[Event]:
        """Yield the answer's events from the model's thread. Closing the generator cancels the answer."""
        loop, received = asyncio.get_running_loop(), asyncio.Queue[Event | Failed]()

        def receive(event: Event | Failed) -> None:
            loop.call_soon_threadsafe(received.put_nowait, event)

        ticket = self._engine.submit(question, receive)
        try:
            while True:
                event = await received.get()
                if isinstance(event, Failed):
                    if not isinstance(event.error, FastVLMError):
                        _LOG.error("a question failed", exc_info=event.error)
                    raise _as_refused(event.error)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            ticket.cancelled = True

    def _logprobs(self, event: Event) -> list[reply.TokenLogprob]:
        if not isinstance(event, Token) or event.logprob is None:
            return []
        top = tuple(self._logprob(id, logprob) for id, logprob in event.top_logprobs)
        return [replace(self._logprob(event.id, event.logprob), top=top)]

    def _logprob(self, id: int, logprob: float) -> reply.TokenLogprob:
        spelled = self._vlm.tokenizer.bytes_of(id, skip_special=False)
        return reply.TokenLogprob(spelled.decode(errors="replace"), spelled, logprob)

    # --- requests

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # browsers send other types across origins without asking
            raise RequestError(f"the content type is {kind or 'missing'}; send application/json", 415)
        limit, body = self._settings.body_bytes, bytearray()
        try:
            async with asyncio.timeout(_BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        found = f"the request has more than {limit} bytes; send smaller pictures"
                        raise RequestError(found, 413)
        except TimeoutError:
            raise RequestError(
                f"the request did not arrive within {_BODY_S} s; send smaller pictures", 408
            ) from None
        return bytes(body)

    def _question(self, requested: ChatRequest) -> Question:
        """Fetch and decode the pictures and tokenize. Takes seconds, so it runs in a worker thread."""
        text, links = chatml(requested.messages)
        if len(links) > _MOST_PICTURES:
            found = f"the request has {len(links)} pictures; send at most {_MOST_PICTURES}"
            raise RequestError(found, param="messages", code="too_many_images")
        limits = self._settings.limits
        shown = [
            self._vlm.picture(pictures.open_link(link, limits), ImageOptions(requested.image_size))
            for link in links
        ]
        prompt = assemble(text, shown, self._vlm.tokenizer.encode)
        for picture in shown:
            _ = picture.key  # hash the pixels here, not in the model's thread
        try:
            check_context(self._vlm.config.text.context, [prompt])
        except PromptError as error:
            raise RequestError(str(error), param="messages", code="context_length_exceeded") from None
        form = requested.response_format
        shape = None if form is None else self._shared_shapes().begin(form)
        max_tokens = self._settings.max_tokens if requested.max_tokens is None else requested.max_tokens
        return Question(prompt, max_tokens, requested.sampling, requested.top_logprobs, shape)

    def _shared_shapes(self) -> SchemaCompiler:
        with self._shapes_lock:  # requests are prepared in several threads
            if self._shapes is None:
                self._shapes = SchemaCompiler(self._vlm.tokenizer)
            return self._shapes

    def _check_host(self, request: Request) -> None:
        """Refuse DNS rebinding: a website whose name resolves to this machine sends that name as Host."""
        hosts, host = self._settings.hosts, request.headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:  # such as an open bracket
            found = f"the Host header {host!r} is not a host name; use the server's address"
            raise RequestError(found) from None
        if hosts and name not in hosts:
            raise RequestError(f"this server is not called {host!r}; use its own address", 403)

    def _check_key(self, request: Request) -> None:
        self._check_host(request)
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            found = "the API key is missing or wrong; send Authorization: Bearer …"
            raise RequestError(found, 401, code="invalid_api_key")

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._settings.name:
            found = f"there is no model {name!r} here; use {self._settings.name!r}"
            raise RequestError(found, 404, param="model", code="model_not_found")

    def _models(self) -> dict[str, Any]:
        dtype = str(self._vlm.dtype).removeprefix("mlx.core.")
        return reply.models([self._settings.name], self._started, self._vlm.config.image.size, dtype)

    # --- load and counts

    def _enter(self) -> None:
        places = self._engine.places
        if self._open >= places + self._settings.queue:
            least, most = _RETRY_S
            raise _Busy(min(max(math.ceil(self._answer_s * self._open / places), least), most))
        self._open += 1

    def _leave(self, arrived: float | None) -> None:
        """None: the request was refused, so its time is not averaged into the time of an answer."""
        self._open -= 1
        if arrived is None:
            return
        self._answer_s += (time.perf_counter() - arrived - self._answer_s) / 16

    def _count(self, course: Progress) -> None:
        self._metrics.answer_tokens.inc(course.tokens)
        if course.tokens:
            self._metrics.first_token.observe(course.first_s)
        if course.tokens_per_s:
            self._metrics.speed.observe(course.tokens_per_s)


class _Busy(RequestError):
    def __init__(self, retry_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_s} s", 429, code="queue_full")
        self.retry_s = retry_s


async def _error_response(request: Request, error: Exception) -> Response:
    refused = _as_refused(error)
    headers = {"Retry-After": str(error.retry_s)} if isinstance(error, _Busy) else None
    if refused.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse(refused.body(), refused.status, headers)


def _as_refused(error: Exception) -> RequestError:
    match error:
        case RequestError():
            return error
        case ShuttingDown():
            return RequestError(str(error), 503)
        case FastVLMError():
            return RequestError(str(error))
        case HTTPException():
            return RequestError(f"{error.detail}; see /v1/models and /v1/chat/completions", error.status_code)
        case ClientDisconnect():
            return RequestError("the client disconnected", _GONE)
        case _:
            return RequestError("the server failed on this request; see its log", 500)


class _Counting:
    """Counts responses by status."""

    def __init__(self, app: ASGIApp, metrics: Counter) -> None:
        self._app, self._requests = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)
