"""Parses requests in OpenAI's format.

    requested = parse(body)                     Asked; raises Refused, which names the wrong field
    text, links = chatml(requested.messages)    ChatML with `<image>` for each picture, and the links

docs/serve.md lists the supported, ignored and refused fields; `reply` builds the responses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..config import IMAGE_MARK, STRIDE
from ..errors import ConfigError, FastVLMError
from ..inference.sampling import Sampling
from ..inputs.prompt import system_turn

MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256
MOST_TOP_LOGPROBS = 20
MOST_IMAGE_SIZE = 2048
MOST_SCHEMA_CHARACTERS = 65_536

Role = Literal["system", "user", "assistant"]
T = TypeVar("T")

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_MARKS = (IMAGE_MARK, "<|im_start|>", "<|im_end|>")  # a client's text must not contain them
# Unsupported fields that would change the output: refused unless null or one of these no-ops.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_NEUTRAL_OF_ASSISTANT: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "function_call": (), "audio": ()}
_SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
}


class RequestError(FastVLMError):
    """A refused request: a one-line message, an HTTP status, and the field at fault."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, slots=True)
class Link:
    """A picture of a message: a data URI or an address, not checked yet."""

    url: str
    at: str = ""  # its place in the request, for errors


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    pieces: tuple[str | Link, ...]


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The JSON that an answer must match. Without a schema: any object."""

    schema: str | None = None  # as JSON
    name: str | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str | None
    messages: tuple[Message, ...]  # at most one system message, which is first; the last is the user's
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no log probabilities
    response_format: ResponseFormat | None = None
    image_size: int | None = None


def parse(body: bytes) -> ChatRequest:
    """Parse a completion request. Unknown fields are ignored."""
    request = _Object(_json(body))
    for name, neutral in _NEUTRAL.items():
        request.refuse_unless(name, neutral)
    stream = request.get("stream", bool) or False
    options = request.object("stream_options")
    usage = options is not None and options.get("include_usage", bool)
    return ChatRequest(
        model=request.get("model", str),
        messages=_messages(request),
        stream=stream,
        include_usage=stream and bool(usage),
        max_tokens=_max_tokens(request),
        sampling=_sampling(request),
        stop=_stop(request),
        top_logprobs=_top_logprobs(request),
        response_format=_form(request),
        image_size=_image_size(request),
    )


def chatml(messages: Sequence[Message]) -> tuple[str, tuple[Link, ...]]:
    """Return the prompt as ChatML, with a mark for each picture, and the pictures in order.

    >>> chatml([Message("user", ("What is it?", Link("data:,")))])[0][-57:]
    'user\\n<image>\\nWhat is it?<|im_end|>\\n<|im_start|>assistant\\n'

    Each text and each picture of a turn is a line.
    """
    system = next((_text(message.pieces) for message in messages if message.role == "system"), None)
    turns, links = [system_turn(system)], list[Link]()
    for message in messages:
        if message.role != "system":
            pieces = _pictures_first(message.pieces)
            turns.append(f"<|im_start|>{message.role}\n{_text(pieces)}<|im_end|>\n")
            links += [piece for piece in pieces if isinstance(piece, Link)]
    return "".join(turns) + "<|im_start|>assistant\n", tuple(links)


def _pictures_first(pieces: Sequence[str | Link]) -> Sequence[str | Link]:
    """Move pictures before the text, as in training, unless a text follows a picture: that order is meant."""
    of_text = [isinstance(piece, str) for piece in pieces]
    if of_text != sorted(of_text, reverse=True):
        return pieces
    return sorted(pieces, key=lambda piece: isinstance(piece, str))


def _text(pieces: Iterable[str | Link]) -> str:
    return "\n".join(IMAGE_MARK if isinstance(piece, Link) else piece for piece in pieces if piece)


# --- fields


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object and its path in the request."""

    raw: dict[str, Any]
    at: str = ""

    def place(self, name: str) -> str:
        return f"{self.at}.{name}" if self.at else name

    def get(self, name: str, kind: type[T]) -> T | None:
        """Return the field, or None if it is absent or null."""
        value = self.raw.get(name)
        return None if value is None else _typed(value, kind, self.place(name))

    def need(self, name: str, kind: type[T]) -> T:
        value, at = self.get(name, kind), self.place(name)
        if value is None:
            found = f"{at} is missing; {_TYPE_NAMES[kind]} is expected"
            raise RequestError(found, param=at, code="missing_required_parameter")
        return value

    def object(self, name: str) -> _Object | None:
        raw = self.get(name, dict)
        return None if raw is None else _Object(raw, self.place(name))

    def refuse_unless(self, name: str, neutral: tuple[Any, ...]) -> None:
        value, at = self.raw.get(name), self.place(name)
        if value is not None and (isinstance(value, bool) or value not in neutral):
            found = f"{at} is {_short(value)}, which this server does not support; leave it out"
            raise RequestError(found, param=at, code="unsupported_parameter")


def _json(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number in JSON")

    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, nested too deeply
        raise RequestError(f"the body is not JSON ({error}); send one object", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {_short(value)}; send one object", code="invalid_json")
    return value


def _typed(value: Any, kind: type[T], at: str) -> T:
    if kind is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        found = f"{at} is {_short(value)}; {_TYPE_NAMES[kind]} is expected"
        raise RequestError(found, param=at, code="invalid_type")
    if isinstance(value, str) and not _whole(value):
        raise _wrong(f"{at} has half a character (a lone surrogate); send whole characters", at)
    return value


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{_TYPE_NAMES[type(value)]} of {len(value)}"
    text = json.dumps(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _wrong(found: str, at: str) -> RequestError:
    return RequestError(found, param=at, code="invalid_value")


def _numbered(at: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{at}[{n}]", value) for n, value in enumerate(values))


def _max_tokens(request: _Object) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    given = {name: value for name in names if (value := request.get(name, int)) is not None}
    if len(set(given.values())) > 1:
        raise _wrong("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    for name, value in given.items():
        if value < 1:
            raise _wrong(f"{name} is {_short(value)}; it must be 1 or more", name)
    return next(iter(given.values()), None)


def _sampling(request: _Object) -> Sampling:
    fields = ((name, request.get(name, kind)) for name, kind in _SAMPLING.items())
    given: dict[str, Any] = {name: value for name, value in fields if value is not None}
    if -(2**63) <= given.get("seed", 0) < 0:  # OpenAI's seeds are signed
        given["seed"] += 2**64
    for name, value in given.items():
        try:
            Sampling(**{name: value})
        except ConfigError as error:
            raise _wrong(str(error), name) from None
    return Sampling(**given)


def _stop(request: _Object) -> tuple[str, ...]:
    raw = request.raw.get("stop")
    if raw is None:
        return ()
    stops = [raw] if isinstance(raw, str) else _typed(raw, list, "stop")
    if len(stops) > MOST_STOPS:
        raise _wrong(f"stop has {len(stops)} strings; give at most {MOST_STOPS}", "stop")
    for at, stop in _numbered("stop", stops):
        if not 0 < len(_typed(stop, str, at)) <= MOST_STOP_CHARACTERS:
            raise _wrong(f"{at} has {len(stop)} characters; give 1 to {MOST_STOP_CHARACTERS}", at)
    return tuple(stops)


def _top_logprobs(request: _Object) -> int | None:
    name = "top_logprobs"
    enabled, top = request.get("logprobs", bool), request.get(name, int) or 0
    if top and not enabled:
        raise _wrong(f"{name} needs logprobs to be true; set it, or leave both out", name)
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise _wrong(f"{name} is {_short(top)}; it must be from 0 to {MOST_TOP_LOGPROBS}", name)
    return top if enabled else None


def _form(request: _Object) -> ResponseFormat | None:
    requested = request.object("response_format")
    if requested is None:
        return None
    kind = requested.need("type", str)
    if kind in ("text", "json_object"):
        return None if kind == "text" else ResponseFormat()
    if kind != "json_schema":
        at = requested.place("type")
        raise _wrong(f"{at} is {_short(kind)}; text, json_object or json_schema is expected", at)
    described = _Object(requested.need("json_schema", dict), requested.place("json_schema"))
    at = described.place("schema")
    try:
        schema = json.dumps(described.need("schema", dict), ensure_ascii=False)
    except RecursionError:
        raise _wrong(f"{at} is nested too deeply; make it flatter", at) from None
    if len(schema) > MOST_SCHEMA_CHARACTERS or not _whole(schema):
        raise _wrong(
            f"{at} has {len(schema)} characters; send at most {MOST_SCHEMA_CHARACTERS} whole ones", at
        )
    return ResponseFormat(schema, described.need("name", str), described.get("strict", bool) or False)


def _image_size(request: _Object) -> int | None:
    name = "image_size"
    size = request.get(name, int)
    if size is None:
        return None
    if not STRIDE <= size <= MOST_IMAGE_SIZE or size % STRIDE:
        wanted = f"a multiple of {STRIDE}, from {STRIDE} to {MOST_IMAGE_SIZE}"
        raise _wrong(f"{name} is {_short(size)}; it must be {wanted}", name)
    return size


# --- messages


def _messages(request: _Object) -> tuple[Message, ...]:
    given = _numbered("messages", request.need("messages", list))
    messages = [_message(_Object(_typed(raw, dict, at), at)) for at, raw in given]
    if not messages or messages[-1].role != "user":
        found = f"the last message is the {messages[-1].role}'s" if messages else "messages is empty"
        raise _wrong(f"{found}; end with a user message", "messages")
    system = [_text(message.pieces) for message in messages if message.role == "system"]
    first = (Message("system", ("\n".join(system),)),) if system else ()
    return (*first, *(message for message in messages if message.role != "system"))


def _message(raw: _Object) -> Message:
    name, place = raw.need("role", str), raw.place("role")
    if name not in _ROLES:
        raise _wrong(f"{place} is {_short(name)}; one of {', '.join(_ROLES)} is expected", place)
    role, content, at = _ROLES[name], raw.raw.get("content"), raw.place("content")
    if role == "assistant":
        for field, neutral in _NEUTRAL_OF_ASSISTANT.items():
            raw.refuse_unless(field, neutral)
    if isinstance(content, list):
        parts = (_Object(_typed(part, dict, where), where) for where, part in _numbered(at, content))
        pieces = tuple(_piece(part, role) for part in parts)
    elif content is None and role == "assistant":
        pieces = ()
    else:
        pieces = (_unforged(raw.need("content", str), at),)
    if role == "user" and not _text(pieces).strip():
        raise _wrong(f"{at} is empty; ask something", at)
    return Message(role, pieces)


def _piece(part: _Object, role: Role) -> str | Link:
    kind, at = part.need("type", str), part.place("type")
    if kind == "text" or (kind == "refusal" and role == "assistant"):
        return _unforged(part.need(kind, str), part.place(kind))
    if kind == "image_url" and role == "user":
        where = part.place("image_url")
        if isinstance(part.raw.get("image_url"), str):
            return Link(part.need("image_url", str), where)
        return Link(_Object(part.need("image_url", dict), where).need("url", str), where)
    wanted = "text or image_url" if role == "user" else "text"
    raise _wrong(f"{at} is {_short(kind)}; {wanted} is expected in a message of the {role}", at)


def _unforged(text: str, at: str) -> str:
    for mark in _MARKS:
        if mark in text:
            raise _wrong(f"{at} contains {mark}, which only the server may write; leave it out", at)
    return text
