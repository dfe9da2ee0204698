"""One model, many threads: it answers as it does in one, whoever loads it, makes prompts and asks."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np
import pytest

import fastvlm_mlx
from fastvlm_mlx import VLM, Prompt, Session, Token
from fastvlm_mlx.models.projector import Projector
from fastvlm_mlx.models.qwen2 import Qwen2
from fastvlm_mlx.weights import hub

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
QUESTIONS = [
    ("shapes.png", "Describe the picture."),
    ("chart.png", "Which bar is tallest?"),
    ("word.png", "What does the text say?"),
    ("shapes.png", "How many shapes are there?"),
]
T = TypeVar("T")


def elsewhere(function: Callable[[], T]) -> T:
    """What a function returns in a thread that ends before we go on."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return elsewhere(lambda: fastvlm_mlx.load("tiny"))


def prompt(vlm: VLM, number: int) -> Prompt:
    picture, question = QUESTIONS[number % len(QUESTIONS)]
    return vlm.prompt(question, [PICTURES / picture])


@pytest.fixture(scope="module")
def expected(vlm: VLM) -> list[tuple[int, ...]]:
    """From a model that no other thread ever saw."""
    alone = fastvlm_mlx.load("tiny")
    return [alone.generate(prompt(alone, number), max_tokens=24).ids for number in range(len(QUESTIONS))]


def test_each_step_may_be_in_a_thread_of_its_own(vlm: VLM, expected: list[tuple[int, ...]]) -> None:
    asked = elsewhere(lambda: prompt(vlm, 0))
    assert elsewhere(lambda: vlm.generate(asked, max_tokens=24)).ids == expected[0]
    assert vlm.generate(asked, max_tokens=24).ids == expected[0]


def test_every_token_may_be_asked_for_in_another_thread(vlm: VLM, expected: list[tuple[int, ...]]) -> None:
    """As web frameworks iterate over what is streamed."""
    events = vlm.stream(prompt(vlm, 0), max_tokens=24)
    found = []
    while (event := elsewhere(lambda: next(events, None))) is not None:
        found += [event.id] if isinstance(event, Token) else []
    assert tuple(found) == expected[0]


@pytest.mark.parametrize(
    ("threads", "rounds"), [(4, 3), pytest.param(8, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_threads_get_the_answers_of_one(
    vlm: VLM, expected: list[tuple[int, ...]], threads: int, rounds: int
) -> None:
    ready = threading.Barrier(threads)

    def ask(number: int) -> list[tuple[int, ...]]:
        ready.wait(30)
        found = []
        for round in range(rounds):
            picture, question = QUESTIONS[(number + round) % len(QUESTIONS)]
            match round % 3:
                case 0:
                    found.append(vlm.generate(prompt(vlm, number + round), max_tokens=24).ids)
                case 1:
                    events = vlm.stream(prompt(vlm, number + round), max_tokens=24)
                    found.append(tuple(event.id for event in events if isinstance(event, Token)))
                case _:
                    session = Session(vlm)
                    found.append(session.generate(question, [PICTURES / picture], max_tokens=24).ids)
        return found

    with ThreadPoolExecutor(threads) as pool:
        for number, found in enumerate(pool.map(ask, range(threads), timeout=600)):
            assert found == [expected[(number + round) % len(QUESTIONS)] for round in range(rounds)]


def test_an_answer_that_nobody_reads_to_its_end_blocks_nobody(
    vlm: VLM, expected: list[tuple[int, ...]]
) -> None:
    held = vlm.stream(prompt(vlm, 0))
    next(held)
    assert elsewhere(lambda: vlm.generate(prompt(vlm, 1), max_tokens=24)).ids == expected[1]
    assert vlm.generate(prompt(vlm, 2), max_tokens=24).ids == expected[2]
    rest = tuple(event.id for event in held if isinstance(event, Token))
    assert rest == expected[0]


@pytest.mark.parametrize("broken", [Projector, Qwen2], ids=["before the answer", "within the answer"])
def test_a_call_that_fails_leaves_the_model_usable(
    broken: type, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure comes when values are computed: operations of another thread's stream, as they once
    were."""
    vlm = elsewhere(lambda: fastvlm_mlx.load("tiny"))
    session = Session(vlm)
    sound = broken.__call__
    calls = 0

    def failing(self: object, x: mx.array, *rest: object) -> mx.array:
        nonlocal calls
        calls += 1
        y: mx.array = sound(self, x, *rest)
        return y + elsewhere(lambda: mx.zeros(1) + 0) if broken is Projector or calls > 3 else y

    with monkeypatch.context() as patched:
        patched.setattr(broken, "__call__", failing)
        with pytest.raises(RuntimeError, match="Stream"):
            vlm.generate(prompt(vlm, 0), max_tokens=24)
        with pytest.raises(RuntimeError, match="Stream"):
            session.generate(QUESTIONS[0][1], [PICTURES / QUESTIONS[0][0]], max_tokens=24)
    assert vlm.generate(prompt(vlm, 0), max_tokens=24).ids == expected[0]
    assert elsewhere(lambda: vlm.generate(prompt(vlm, 1), max_tokens=24)).ids == expected[1]
    session.clear()
    assert session.generate(QUESTIONS[0][1], [PICTURES / QUESTIONS[0][0]], max_tokens=24).ids == expected[0]


def test_arrays_that_a_call_returns_may_be_used_anywhere(vlm: VLM) -> None:
    features = elsewhere(lambda: vlm.encode_image(np.full((64, 64, 3), 0.5, np.float32)))
    assert np.isfinite(np.array(features)).all()
    assert np.isfinite(np.array(elsewhere(lambda: vlm.logits(prompt(vlm, 1))))).all()


def test_with_low_memory_another_thread_may_answer() -> None:
    low = elsewhere(lambda: fastvlm_mlx.load(hub.BUILT_IN["tiny"], low_memory=True))
    asked = elsewhere(lambda: prompt(low, 1))
    assert low.generate(asked, max_tokens=8).text == "H"


def test_a_session_goes_from_thread_to_thread(vlm: VLM, tmp_path: Path) -> None:
    session = elsewhere(lambda: Session(vlm))
    picture = PICTURES / "shapes.png"
    first = elsewhere(lambda: session.generate("Describe the picture.", [picture], max_tokens=24))
    fork = elsewhere(session.fork)
    elsewhere(lambda: session.save(tmp_path / "talk"))
    again = elsewhere(lambda: Session.restore(vlm, tmp_path / "talk"))
    answers = {one.generate("How many shapes are there?", max_tokens=8).ids for one in (session, fork, again)}
    assert len(answers) == 1
    assert first.ids


_LOADS = """
import threading
import fastvlm_mlx
def ask():
    fastvlm_mlx.load("tiny").generate("Hello", max_tokens=2, sampling=fastvlm_mlx.Sampling(temperature=1.0))
thread = threading.Thread(target=ask)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_program_ends_well_whose_thread_used_a_model(rounds: int) -> None:
    """A thread that is still ending takes Python's lock; where many run at once, while Python itself ends."""
    for _ in range(rounds):
        running = [subprocess.Popen([sys.executable, "-c", _LOADS]) for _ in range(12)]
        assert [process.wait(120) for process in running] == [0] * len(running)
