"""The thread that runs the model and answers the questions of many clients in one batch.

    engine = Engine(lambda: load("0.5b"))
    engine.start()
    ticket = engine.ask(Question(prompt), receive)  # the model's thread calls receive(event)

A question waits until one of `places` is free. Encoded pictures and KV prefixes are cached and shared between
clients.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import FastVLMError
from ..inference import thread_exit
from ..inference.caches import FEATURE_BYTES, PREFIX_BYTES, Features, Prefix, Prefixes, position_keys
from ..inference.decoding import (
    Answering,
    Batch,
    Constraint,
    Event,
    Finished,
    ImageFeatures,
    Token,
    encode_images,
    prefilled_event,
)
from ..inference.generate import answer_limit, check_context
from ..inference.sampling import Sampling
from ..inputs.prompt import Prompt, positions
from ..vlm import VLM

_LOG = logging.getLogger(__name__)
_AT_ONCE = 512  # prompt positions to prefill before the running answers decode again


class ShuttingDown(FastVLMError):
    """The engine is closing and accepts no more questions."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of an answer that failed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Question:
    prompt: Prompt
    max_tokens: int = 512
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    top_logprobs: int | None = None  # number of alternatives in each token's logprobs; None for no logprobs
    constraint: Constraint | None = None  # restricts the tokens of this answer; not shared with others


@dataclass(slots=True, eq=False)
class Ticket:
    """A question and the progress of its answer."""

    question: Question
    receive: Callable[[Event | Failed], None]  # called in the model's thread
    cancelled: bool = False  # set it to cancel; frees the place before the next token
    ended: bool = False
    generated: list[int] = field(default_factory=list)

    def send(self, event: Event | Failed) -> None:
        """Pass an event to the receiver. A receiver that raises ends only its own answer."""
        if self.ended:
            return
        try:
            self.receive(event)
        except Exception:  # noqa: BLE001 - an error in a receiver must not stop the model
            _LOG.exception("the receiver of an answer failed")
            self.ended = self.cancelled = True

    def end(self, event: Finished | Failed) -> None:
        """Send the last event, once."""
        self.send(event)
        self.ended = True


class _IsolatedConstraint:
    """A constraint whose errors end only its own answer. A schema can fail in the middle of one."""

    def __init__(self, constraint: Constraint, ticket: Ticket, vocabulary: int) -> None:
        self._constraint, self._ticket, self._vocabulary = constraint, ticket, vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        if not self._ticket.ended:
            try:
                return self._constraint.allowed()
            except FastVLMError as error:
                self._fail(error)
        return np.ones(self._vocabulary, np.bool_)

    def advance(self, token: int) -> None:
        if not self._ticket.ended:
            try:
                self._constraint.advance(token)
            except FastVLMError as error:
                self._fail(error)

    def _fail(self, error: FastVLMError) -> None:
        self._ticket.end(Failed(error))
        self._ticket.cancelled = True


class Engine:
    """Answers at most `places` questions at once; the others wait."""

    def __init__(
        self,
        load: Callable[[], VLM],
        *,
        places: int = 16,
        feature_bytes: int = FEATURE_BYTES,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.places = places
        self.features = Features(feature_bytes)
        self.prefixes = Prefixes(prefix_bytes)
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self._load = load
        self._waiting: deque[Ticket] = deque()
        self._beginning: list[Ticket] = []
        self._answering: dict[Answering, Ticket] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loaded: VLM | BaseException | None = None

    def start(self) -> VLM:
        """Load the model in the thread that will run it. Errors of loading are raised here."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._loaded is not None)
        if isinstance(self._loaded, BaseException):
            raise self._loaded
        assert self._loaded is not None
        return self._loaded

    def submit(self, question: Question, receive: Callable[[Event | Failed], None]) -> Ticket:
        ticket = Ticket(question, receive)
        with self._changed:
            if self._closing:
                raise ShuttingDown("the server is shutting down; try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def answering(self) -> int:
        return len(self._answering)

    def close(self, wait_s: float = 0.0) -> None:
        """Accept no more questions, answer the present ones for up to `wait_s`, then cancel the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)
        with self._changed:  # the engine moves questions from one to the next
            left = [*self._waiting, *self._beginning, *self._answering.values()]
        for ticket in left:
            ticket.cancelled = True
        self._thread.join(10)

    def _run(self) -> None:
        try:
            loaded: VLM | BaseException = self._load()
        except BaseException as error:  # noqa: BLE001 - start() raises it
            loaded = error
        thread_exit.note()
        with self._changed:
            self._loaded = loaded
            self._changed.notify_all()
        if isinstance(loaded, BaseException):
            return
        self._batch = Batch(loaded.model, loaded.tokenizer, loaded.config.eos_token_ids)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._answering or self._closing)
                if self._closing and not self._waiting and not self._answering:
                    return
                self._take()
            self._begin(loaded)
            self._step()

    def _take(self) -> None:
        """Choose the next questions, up to the free places and to about _AT_ONCE positions of prompt."""
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        taken, free = 0, self.places - len(self._answering)
        while self._waiting and len(self._beginning) < free and taken < _AT_ONCE:
            self._beginning.append(self._waiting.popleft())
            taken += positions(self._beginning[-1].question.prompt)

    def _begin(self, vlm: VLM) -> None:
        """Encode the pictures of all new questions at once, then prefill one prompt after another."""
        resumed: list[tuple[Ticket, Prefix, int, Prompt]] = []
        for ticket in self._beginning:
            if ticket.cancelled:
                continue
            with self._isolated(ticket):
                prompt = ticket.question.prompt
                check_context(vlm.config.text.context, [prompt])
                prefix = self.prefixes.longest_match(prompt, vlm.model.language.new_caches)
                resumed.append((ticket, prefix, *prefix.resume(prompt)))
        shared: ImageFeatures | None = None
        try:
            shared = encode_images([rest for *_, rest in resumed], vlm.model, self.features)
        except Exception as error:  # noqa: BLE001 - each question then encodes its own
            _LOG.debug("encoding the pictures of several questions at once failed: %s", error)
        for ticket, prefix, reused, rest in resumed:
            if ticket.cancelled:
                continue
            with self._isolated(ticket):
                self._prefill(vlm, ticket, prefix, reused, rest, shared)
        self._beginning.clear()

    def _prefill(
        self,
        vlm: VLM,
        ticket: Ticket,
        prefix: Prefix,
        reused: int,
        rest: Prompt,
        shared: ImageFeatures | None,
    ) -> None:
        question = ticket.question
        encoded = encode_images([rest], vlm.model, self.features) if shared is None else shared
        row = self._batch.answer(
            question.sampling,
            answer_limit(question.prompt, vlm.config.text.context, question.max_tokens),
            question.top_logprobs,
            question.constraint and _IsolatedConstraint(question.constraint, ticket, vlm.tokenizer.size),
        )
        prefill_s = self._batch.admit([row], [rest], encoded.features, prefix.caches, self._step)
        self._answering[row] = ticket
        self.prefixes.put(prefix.fork(len(prefix)))
        self.cached_tokens += reused
        self.prefilled_tokens += positions(rest)
        ticket.send(prefilled_event(rest, encoded, prefill_s, reused))
        if not row.max_tokens:
            self._leave(row, self._batch.finish(row, "length"))

    @contextmanager
    def _isolated(self, ticket: Ticket) -> Iterator[None]:
        """An error ends only this ticket's answer."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the other questions must go on
            ticket.end(Failed(error))
            ticket.cancelled = True

    def _step(self) -> None:
        """Decode one token of every answer. An error here ends all of them: they share one batch."""
        for row, ticket in list(self._answering.items()):
            if ticket.cancelled:
                row.done = True
                del self._answering[row]
        try:
            events = self._batch.step()
        except Exception as error:  # noqa: BLE001 - later questions may still succeed
            for ticket in self._answering.values():
                ticket.end(Failed(error))
            self._answering.clear()
            self._batch.clear()
            return
        for row, event in events:
            ticket = self._answering[row]
            if isinstance(event, Token):
                ticket.generated.append(event.id)
                ticket.send(event)
            else:
                cached = [*position_keys(ticket.question.prompt), *ticket.generated]
                self.prefixes.put(Prefix(self._batch.caches_of(row), cached))
                self._leave(row, event)

    def _leave(self, row: Answering, event: Finished) -> None:
        self._answering.pop(row).end(event)
