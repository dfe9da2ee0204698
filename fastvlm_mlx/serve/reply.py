"""What a request is answered with, in OpenAI's words: plain dicts, ready for JSON.

head = Head(id, model, created)
head.completion(text, reason, usage, timings)                   without `stream`
head.opening(), head.piece(text)…, head.closing(reason)         with it, each through `sse`, then `DONE`
head.told(usage, timings)                                       before `DONE`, if usage was asked for
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Json = dict[str, Any]
Reason = Literal["stop", "length"]

DONE = b"data: [DONE]\n\n"
_LEAST_LOGPROB = -9999.0  # OpenAI's value for what can hardly be; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Said:
    """A token of the answer, with those that were likeliest in its place."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[Said, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's


@dataclass(frozen=True, slots=True)
class Timings:
    ttft_s: float
    vision_s: float
    prefill_s: float
    tokens_per_s: float
    image_tokens: int


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of an answer have in common."""

    id: str
    model: str
    created: int
    include_usage: bool = False  # every chunk then has a usage, null but in the last

    def completion(
        self, text: str, reason: Reason, usage: Usage, timings: Timings, said: Sequence[Said] | None = None
    ) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": _logprobs(said)}
        told = {"usage": _usage(usage), "timings": asdict(timings)}
        return self._object("chat.completion", [choice]) | told

    def opening(self) -> Json:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: str, said: Sequence[Said] | None = None) -> Json:
        return self._chunk({"content": text}, said)

    def closing(self, reason: Reason) -> Json:
        return self._chunk({}, reason=reason)

    def told(self, usage: Usage, timings: Timings) -> Json:
        told = {"usage": _usage(usage), "timings": asdict(timings)}
        return self._object("chat.completion.chunk", []) | told

    def _chunk(self, delta: Json, said: Sequence[Said] | None = None, reason: Reason | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": _logprobs(said)}
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
    """The list of models: one, under each of its names."""
    about = {"object": "model", "created": created, "owned_by": "fastvlm-mlx"}
    about |= {"image_size": image_size, "dtype": dtype}
    return {"object": "list", "data": [{"id": name} | about for name in names]}


def sse(event: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


class Stops:
    """Cuts an answer at the first of the stop strings to be complete, however the text comes in pieces.

    >>> stops = Stops(("END",))
    >>> stops.add("Done. E"), stops.add("N"), stops.add("D and more"), stops.met
    ('Done. ', '', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # the beginning of a stop string, perhaps
        self.met = False

    def add(self, text: str) -> str:
        """What may be shown, now that this has been said."""
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
        """What was held back, where the answer ends of itself."""
        held, self._held = self._held, ""
        return held


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprobs(said: Sequence[Said] | None) -> Json | None:
    if said is None:
        return None
    content = [_entry(token) | {"top_logprobs": [_entry(other) for other in token.top]} for token in said]
    return {"content": content, "refusal": None}


def _entry(token: Said) -> Json:
    logprob = max(token.logprob, _LEAST_LOGPROB)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.bytes)}
