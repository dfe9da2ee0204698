"""The engine answers many questions at once, each as if alone, whatever fails or is canceled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from fastvlm_mlx import VLM, Event, Finished, Prefilled, Prompt, PromptError, Sampling, Token
from fastvlm_mlx.inputs.prompt import Picture
from fastvlm_mlx.models.qwen2 import Qwen2
from fastvlm_mlx.serve.engine import Engine, Failed, Question, Ticket

Vlm = Callable[[str], VLM]
WAIT_S = 60
LONG = 10**6  # tokens: until the context is full


@dataclass
class Received:
    """The events received for one question."""

    events: queue.Queue[Event | Failed] = field(default_factory=queue.Queue)
    ticket: Ticket | None = None

    def __iter__(self) -> Iterator[Event | Failed]:
        while True:
            event = self.events.get(timeout=WAIT_S)
            yield event
            if isinstance(event, Finished | Failed):
                return

    def ids(self) -> tuple[int, ...]:
        return tuple(event.id for event in self if isinstance(event, Token))


def ask(engine: Engine, prompt: Prompt, max_tokens: int = 12, **options: object) -> Received:
    received = Received()
    question = Question(prompt, max_tokens, **options)  # type: ignore[arg-type]
    received.ticket = engine.submit(question, received.events.put)
    return received


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture
def engine(vlm: VLM) -> Iterator[Engine]:
    made = Engine(lambda: vlm, places=8)
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    random = np.random.default_rng(5)
    return [Picture(mx.array(random.random((1, 128, 128, 3), np.float32))) for _ in range(4)]


@pytest.fixture(scope="module")
def mixed(vlm: VLM, pictures: list[Picture]) -> list[Prompt]:
    """Sixteen prompts of different lengths, with and without pictures."""
    texts = ("Hello", "What is this?", "word " * 40, "First this, then that: what changed, and why?")
    return [
        vlm.prompt(f"{text} {number}", [pictures[number % 4]] * (number % 3))
        for number, text in enumerate(texts * 4)
    ]


def test_batched_answers_equal_single_answers(vlm: VLM, engine: Engine, mixed: list[Prompt]) -> None:
    expected = [vlm.generate(prompt, max_tokens=5 + n).ids for n, prompt in enumerate(mixed)]
    questions = [ask(engine, prompt, 5 + n) for n, prompt in enumerate(mixed)]
    assert [received.ids() for received in questions] == expected
    assert len(set(expected)) > 4
    again = [ask(engine, prompt, 5 + n) for n, prompt in enumerate(mixed)]
    assert [received.ids() for received in again] == expected  # now with cached prefixes


def test_repeated_prompt_is_cached(vlm: VLM, engine: Engine, pictures: list[Picture]) -> None:
    prompt = vlm.prompt("What is this?", pictures[:1])
    first, second = (next(iter(ask(engine, prompt))) for _ in range(2))
    assert isinstance(first, Prefilled)
    assert isinstance(second, Prefilled)
    assert (first.cached_tokens, first.image_tokens) == (0, 4)
    assert second.cached_tokens == first.tokens - 1
    assert (second.image_tokens, second.text_tokens, second.vision_s) == (0, 1, 0.0)
    other = next(iter(ask(engine, vlm.prompt("Another thing", pictures[1:2]))))
    assert isinstance(other, Prefilled)
    assert 10 < other.cached_tokens < second.cached_tokens  # the system prompt
    assert (engine.features.misses, len(engine.features)) == (2, 2)


def test_tokens_of_an_answer_are_cached_for_the_next_turn(vlm: VLM, engine: Engine) -> None:
    prompt = vlm.prompt("Hello")
    ids = ask(engine, prompt, 10).ids()
    from fastvlm_mlx.inputs.prompt import Text

    longer = (*prompt, Text(ids), Text(tuple(vlm.tokenizer.encode("<|im_end|>\nAnd?"))))
    received = ask(engine, longer)
    first = next(iter(received))
    assert isinstance(first, Prefilled)
    assert first.cached_tokens >= sum(part.positions for part in prompt) + len(ids) - 1


def test_canceled_answer_frees_its_place(vlm: VLM) -> None:
    engine = Engine(lambda: vlm, places=1)
    engine.start()
    try:
        long = ask(engine, vlm.prompt("Hello"), LONG)
        assert isinstance(long.events.get(timeout=WAIT_S), Prefilled)
        waiting = ask(engine, vlm.prompt("What is this?"))
        gone = ask(engine, vlm.prompt("Never mind"))
        assert gone.ticket
        assert long.ticket
        gone.ticket.cancelled = True
        long.ticket.cancelled = True
        assert waiting.ids() == vlm.generate("What is this?", max_tokens=12).ids
        assert (engine.answering, engine.waiting) == (0, 0)
        assert gone.events.empty()
    finally:
        engine.close()


def test_two_hundred_canceled_answers_leave_no_trace(vlm: VLM, engine: Engine) -> None:
    prompt = vlm.prompt("Hello")
    questions = [ask(engine, prompt, LONG) for _ in range(200)]
    for number, received in enumerate(questions):
        for _ in range(number % 5):
            received.events.get(timeout=WAIT_S)
        assert received.ticket
        received.ticket.cancelled = True
    assert ask(engine, prompt).ids() == vlm.generate(prompt, max_tokens=12).ids
    assert (engine.answering, engine.waiting) == (0, 0)


def test_prompt_longer_than_the_context_fails_alone(vlm: VLM, engine: Engine) -> None:
    beyond = ask(engine, vlm.prompt("word " * vlm.config.text.context))
    well = ask(engine, vlm.prompt("Hello"))
    (failed,) = beyond
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PromptError)
    assert well.ids() == vlm.generate("Hello", max_tokens=12).ids


def test_engine_answers_after_a_failure(vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    running = ask(engine, vlm.prompt("Hello"), LONG)
    assert isinstance(running.events.get(timeout=WAIT_S), Prefilled)
    with monkeypatch.context() as patch:
        patch.setattr(Qwen2, "__call__", lambda *_: (_ for _ in ()).throw(MemoryError("full")))
        assert [type(event) for event in running][-1] is Failed
    assert ask(engine, vlm.prompt("Hello")).ids() == vlm.generate("Hello", max_tokens=12).ids


def test_each_answer_has_its_own_sampling_and_length(vlm: VLM, engine: Engine) -> None:
    ways = [
        Sampling(),
        Sampling(temperature=1.0, seed=3),
        Sampling(temperature=1.0, top_p=0.9, seed=4),
        Sampling(repetition_penalty=1.3),
    ]
    questions = [ask(engine, vlm.prompt("Hello"), 3 + n, sampling=how) for n, how in enumerate(ways)]
    expected = [vlm.generate("Hello", max_tokens=3 + n, sampling=how).ids for n, how in enumerate(ways)]
    assert [received.ids() for received in questions] == expected
    assert ask(engine, vlm.prompt("Hello"), 0).ids() == ()


def test_logprobs_equal_those_of_the_logits(vlm: VLM, engine: Engine) -> None:
    prompt = vlm.prompt("Hello")
    tokens = [event for event in ask(engine, prompt, 4, likeliest=3) if isinstance(event, Token)]
    plain = ask(engine, prompt, 4).ids()
    assert tuple(token.id for token in tokens) == plain
    from fastvlm_mlx.inputs.prompt import Text

    logits = vlm.logits((*prompt, Text(plain)))[-5:-1, : vlm.tokenizer.size].astype(mx.float32)
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for token, row in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id], abs=1e-4)
        assert [id for id, _ in token.top_logprobs] == np.argsort(-row)[:3].tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


class Only:
    """A form that allows exactly one sequence."""

    def __init__(self, vocabulary: int, ids: list[int]):
        self._vocabulary, self._ids = vocabulary, list(ids)

    def allowed(self) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = np.arange(self._vocabulary) == self._ids[0]
        return found

    def said(self, token: int) -> None:
        assert token == self._ids.pop(0)


def test_form_restricts_only_its_own_answer(vlm: VLM, engine: Engine) -> None:
    wanted = [5, 9, 300, 7, 5]
    stop = min(vlm.config.eos_token_ids)
    free = [ask(engine, vlm.prompt("Hello"), 4 + n) for n in range(3)]
    formed = ask(engine, vlm.prompt("Hello"), 20, form=Only(vlm.tokenizer.size, [*wanted, stop]))
    assert formed.ids() == tuple(wanted)
    expected = vlm.generate("Hello", max_tokens=6).ids
    assert [received.ids() for received in free] == [expected[: 4 + n] for n in range(3)]


class Failing(Only):
    """A form that fails after some tokens."""

    def said(self, token: int) -> None:
        super().said(token)
        if len(self._ids) == 1:
            raise PromptError("the schema has grown too large")


def test_failing_form_fails_alone(vlm: VLM, engine: Engine) -> None:
    expected = vlm.generate("Hello", max_tokens=30).ids
    well = [ask(engine, vlm.prompt("Hello"), 30) for _ in range(3)]
    failing = ask(engine, vlm.prompt("Hello"), 30, form=Failing(vlm.tokenizer.size, [5, 9, 7]))
    *_, last = failing
    assert isinstance(last, Failed)
    assert [received.ids() for received in well] == [expected] * 3


def test_canceled_questions_leave_the_queue(vlm: VLM) -> None:
    engine = Engine(lambda: vlm, places=1)
    engine.start()
    try:
        long = ask(engine, vlm.prompt("Hello"), LONG)
        for _ in range(50):
            received = ask(engine, vlm.prompt("Never mind"))
            assert received.ticket
            received.ticket.cancelled = True
        for _ in range(10):
            long.events.get(timeout=WAIT_S)  # the only place stays taken
        assert engine.waiting == 0
        assert engine.answering == 1
    finally:
        engine.close()


def test_loading_error_is_raised_by_start() -> None:
    def load() -> VLM:
        raise PromptError("no such model")

    with pytest.raises(PromptError, match="no such model"):
        Engine(load).start()


def test_close_waits_for_running_answers(vlm: VLM) -> None:
    engine = Engine(lambda: vlm)
    engine.start()
    received = ask(engine, vlm.prompt("Hello"), 20)
    engine.close(WAIT_S)
    assert len(received.ids()) <= 20
    with pytest.raises(Exception, match="shutting down"):
        ask(engine, vlm.prompt("Hello"))


def test_raising_receiver_ends_only_its_own_answer(vlm: VLM, engine: Engine) -> None:
    def broken(event: Event | Failed) -> None:
        raise RuntimeError("the receiver is gone")

    expected = vlm.generate("Hello", max_tokens=12).ids
    well = ask(engine, vlm.prompt("Hello"))
    engine.submit(Question(vlm.prompt("Hello")), broken)
    assert well.ids() == expected
    assert ask(engine, vlm.prompt("Hello")).ids() == expected


def test_failing_prefill_fails_alone(
    vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch, pictures: list[Picture]
) -> None:
    """This includes questions whose pictures are encoded in one batch."""
    original = vlm.model.embed
    bad = Picture(mx.zeros((1, 128, 128, 3)))
    expected = [vlm.generate(vlm.prompt("What is this?", [one]), max_tokens=12).ids for one in pictures[:2]]

    def embed(prompt: Prompt, *features: object) -> mx.array:
        if bad in prompt:
            raise MemoryError("full")
        return original(prompt, *features)  # type: ignore[arg-type]

    monkeypatch.setattr(vlm.model, "embed", embed)
    running = ask(engine, vlm.prompt("Hello"), 30)
    questions = [ask(engine, vlm.prompt("What is this?", [one])) for one in (pictures[0], bad, pictures[1])]
    assert questions[0].ids() == expected[0]
    assert [type(event) for event in questions[1]] == [Failed]
    assert questions[2].ids() == expected[1]
    assert running.ids() == vlm.generate("Hello", max_tokens=30).ids


def test_pictures_are_encoded_one_by_one_when_encoding_them_at_once_fails(
    vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch, pictures: list[Picture]
) -> None:
    original = type(vlm.model.projector).__call__

    def narrow(self: object, x: mx.array) -> mx.array:
        if len(x) > 1:
            raise MemoryError("full")
        return original(self, x)  # type: ignore[arg-type]

    expected = [vlm.generate(vlm.prompt("What is this?", [one]), max_tokens=12).ids for one in pictures]
    monkeypatch.setattr(type(vlm.model.projector), "__call__", narrow)
    questions = [ask(engine, vlm.prompt("What is this?", [one])) for one in pictures]
    assert [received.ids() for received in questions] == expected


def test_question_canceled_during_another_prefill_is_not_prefilled(
    vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun, go_on = vlm.model.embed, queue.Queue[Prompt](), queue.Queue[None]()

    def embed(prompt: Prompt, *features: object) -> mx.array:
        begun.put(prompt)
        go_on.get(timeout=WAIT_S)
        return original(prompt, *features)  # type: ignore[arg-type]

    monkeypatch.setattr(vlm.model, "embed", embed)
    first = ask(engine, vlm.prompt("Hello"), 1)
    begun.get(timeout=WAIT_S)
    second, third = ask(engine, vlm.prompt("What?"), 1), ask(engine, vlm.prompt("Never mind"), 1)
    go_on.put(None)
    begun.get(timeout=WAIT_S)  # the other two have been taken together
    assert third.ticket
    third.ticket.cancelled = True
    for _ in range(2):
        go_on.put(None)
    assert len(first.ids()) == len(second.ids()) == 1
    assert ask(engine, vlm.prompt("And now?"), 0).ids() == ()
    assert begun.qsize() == 1


def test_close_cancels_every_ticket(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes tickets that have left the queue and have no place yet."""
    engine = Engine(lambda: vlm)
    engine.start()
    closing = threading.Event()
    original = vlm.model.embed

    def embed(prompt: Prompt, *features: object) -> mx.array:
        closing.wait(WAIT_S)
        return original(prompt, *features)  # type: ignore[arg-type]

    monkeypatch.setattr(vlm.model, "embed", embed)
    tickets = [ask(engine, vlm.prompt(f"Hello {number}"), LONG).ticket for number in range(3)]
    threading.Timer(0.3, closing.set).start()
    engine.close()
    assert all(ticket and ticket.cancelled for ticket in tickets)
    assert not engine._thread.is_alive()


def test_logprobs_never_sort_the_whole_vocabulary(
    vlm: VLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = mx.argsort
    monkeypatch.setattr(mx, "argsort", lambda x, **how: (sizes.append(x.size), original(x, **how))[1])
    none = [event for event in ask(engine, vlm.prompt("Hello"), 4, likeliest=0) if isinstance(event, Token)]
    assert all(event.logprob is not None and event.top_logprobs == () for event in none)
    assert sizes == []
    ask(engine, vlm.prompt("Hello"), 4, likeliest=3).ids()
    assert set(sizes) == {3}
