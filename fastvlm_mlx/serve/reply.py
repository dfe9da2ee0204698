"""Responses in OpenAI's format, as plain dicts ready for JSON.

head = Head(id, model, created)
head.completion(text, reason, usage, timings)                   without `stream`
head.opening(), head.piece(text)…, head.closing(reason)         with `stream`, each through `sse`, then `DONE`
head.usage(usage, timings)                                      before `DONE`, if the request includes usage
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Json = dict[str, Any]
Reason = Literal["stop", "length"]

DONE = b"data: [DONE]\n\n"
_LEAST_LOGPROB = -9999.0  # OpenAI's value for the least likely; JSON has no infinity


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer, with the likeliest alternatives."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # part of prompt_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    ttft_s: float
    vision_s: float
    prefill_s: float
    tokens_per_s: float
    image_tokens: int


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that all chunks of an answer share."""

    id: str
    model: str
    created: int
    include_usage: bool = False  # adds `usage` to every chunk: null in all but the last

    def completion(
        self,
        text: str,
        reason: Reason,
        usage: Usage,
        timings: Timings,
        logprobs: Sequence[TokenLogprob] | None = None,
    ) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": _logprobs(logprobs)}
        return self._object("chat.completion", [choice]) | _measured(usage, timings)

    def opening(self) -> Json:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: str, logprobs: Sequence[TokenLogprob] | None = None) -> Json:
        return self._chunk({"content": text}, logprobs)

    def closing(self, reason: Reason) -> Json:
        return self._chunk({}, reason=reason)

    def usage(self, usage: Usage, timings: Timings) -> Json:
        return self._object("chat.completion.chunk", []) | _measured(usage, timings)

    def _chunk(
        self, delta: Json, logprobs: Sequence[TokenLogprob] | None = None, reason: Reason | None = None
    ) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": _logprobs(logprobs)}
        usage = {"usage": None} if self.include_usage else {}
        return self._object("chat.completion.chunk", [choice]) | usage

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def models(names: Sequence[str], created: int, image_size: int, dtype: str) -> Json:
    """Return the list of models: one entry for each name of the model."""
    details = {"object": "model", "created": created, "owned_by": "fastvlm-mlx"}
    details |= {"image_size": image_size, "dtype": dtype}
    return {"object": "list", "data": [{"id": name} | details for name in names]}


def sse(event: Json) -> bytes:
    """Encode one server-sent event."""
    return b"data: " + json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


class Stops:
    """Cuts an answer at the first complete stop string, however the text is split into pieces.

    >>> stops = Stops(("END",))
    >>> stops.add("Done. E"), stops.add("N"), stops.add("D and more"), stops.met
    ('Done. ', '', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # text that may be the start of a stop string
        self.met = False

    def add(self, text: str) -> str:
        """Add text and return what can be sent."""
        if self.met:
            return ""
        text, self._held = self._held + text, ""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.met = True
            return text[: min(found)[1]]
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        for held in range(longest, 0, -1):
            if any(stop.startswith(text[-held:]) for stop in self._stops):
                self._held = text[-held:]
                return text[:-held]
        return text

    def finish(self) -> str:
        """Return the text still held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _measured(usage: Usage, timings: Timings) -> Json:
    return {"usage": _usage(usage), "timings": asdict(timings)}


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprobs(tokens: Sequence[TokenLogprob] | None) -> Json | None:
    if tokens is None:
        return None
    content = [_entry(token) | {"top_logprobs": [_entry(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _entry(token: TokenLogprob) -> Json:
    logprob = max(token.logprob, _LEAST_LOGPROB)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.bytes)}
