"""Guesses are checked, so an answer is what it would be without them; right ones make it come sooner."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from command import MODEL, Run

from fastvlm_mlx import VLM, Answer, ConfigError, Picture, Prompt, Sampling
from fastvlm_mlx.inference import generate
from fastvlm_mlx.inference.decoding import Drafter
from fastvlm_mlx.inference.speculative import NgramDrafter
from fastvlm_mlx.inputs.prompt import Text
from fastvlm_mlx.models.kv_cache import KVCache
from fastvlm_mlx.models.qwen2 import Qwen2

Vlm = Callable[[str], VLM]
Guess = Callable[[Sequence[int]], Sequence[int]]


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture(scope="module")
def prompts(vlm: VLM) -> list[Prompt]:
    random = np.random.default_rng(3)
    pictures = [Picture(mx.array(random.random((1, 128, 128, 3), np.float32))) for _ in range(4)]
    texts = ("What is this?", "Read it: one two three one two three one two")
    return [vlm.prompt(text, [picture]) for picture in pictures for text in texts]


class Told:
    """Guesses what a test says, and keeps what it was asked after."""

    def __init__(self, guess: Guess) -> None:
        self._guess = guess
        self.asked: list[list[int]] = []

    def propose(self, said: Sequence[int], most: int) -> Sequence[int]:
        self.asked.append(list(said))
        return self._guess(said)[:most]


def answered(vlm: VLM, prompt: Prompt, drafter: Drafter, most: int = 24, stop: Sequence[int] = ()) -> Answer:
    options: dict[str, Any] = {"stop_ids": stop, "context": 1000, "max_tokens": most, "drafter": drafter}
    return generate.collect(generate.stream(vlm.model, vlm.tokenizer, prompt, **options))


def test_whatever_is_guessed_the_answer_is_the_same(vlm: VLM, prompts: list[Prompt]) -> None:
    for number, prompt in enumerate(prompts):
        whole = vlm.generate(prompt, max_tokens=24).ids
        random = np.random.default_rng(number)

        def right(said: Sequence[int], whole: tuple[int, ...] = whole) -> Sequence[int]:
            return whole[len(said) : len(said) + 5]

        def half(said: Sequence[int], right: Guess = right) -> Sequence[int]:
            return [id if n < 2 else 7 for n, id in enumerate(right(said))]

        def wild(said: Sequence[int], random: np.random.Generator = random) -> Sequence[int]:
            return random.integers(0, 480, int(random.integers(0, 9))).tolist()

        for guess in (right, half, wild, lambda said: ()):
            told = answered(vlm, prompt, Told(guess))
            assert told.ids == whole
            assert told.text == vlm.tokenizer.decode(whole)
            assert told.accepted <= told.drafted


def test_right_guesses_take_fewer_steps(
    vlm: VLM, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vlm.generate(prompts[0], max_tokens=24).ids
    steps: list[int] = []
    call = Qwen2.__call__

    def counted(language: Qwen2, rows: mx.array, caches: list[KVCache]) -> mx.array:
        steps.append(rows.shape[1])
        return call(language, rows, caches)

    monkeypatch.setattr(Qwen2, "__call__", counted)
    told = answered(vlm, prompts[0], Told(lambda said: whole[len(said) : len(said) + 5]))
    assert told.ids == whole
    assert steps[1:] == [6, 6, 6, 6]
    assert (told.drafted, told.accepted) == (20, 20)


@pytest.mark.parametrize("place", [0, 3, 5, 6, 11])
def test_an_answer_stops_inside_of_what_was_guessed(vlm: VLM, prompts: list[Prompt], place: int) -> None:
    whole = vlm.generate(prompts[0], max_tokens=24).ids
    stop = whole[place]
    told = answered(vlm, prompts[0], Told(lambda said: whole[len(said) : len(said) + 5]), stop=[stop])
    assert told.ids == whole[: whole.index(stop)]
    assert told.reason == "stop"


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 7])
def test_no_more_is_said_than_was_asked_for(vlm: VLM, prompts: list[Prompt], max_tokens: int) -> None:
    whole = vlm.generate(prompts[0], max_tokens=24).ids
    told = answered(vlm, prompts[0], Told(lambda said: whole[len(said) : len(said) + 5]), max_tokens)
    assert (told.ids, told.reason) == (whole[:max_tokens], "length")


def test_a_draft_of_another_model_changes_nothing(vlm: VLM, vlm_of: Vlm, prompts: list[Prompt]) -> None:
    for draft in (vlm, vlm_of("apple-train")):
        for prompt in prompts[:4]:
            plain = vlm.generate(prompt, max_tokens=24)
            told = vlm.generate(prompt, max_tokens=24, draft=draft)
            both = vlm.generate(prompt, max_tokens=24, draft=draft, repetitions=True)
            assert told.ids == both.ids == plain.ids
            assert told.drafted > 0
            if draft is vlm:
                assert told.accepted == told.drafted


def test_repetitions_are_found_where_they_are() -> None:
    found = NgramDrafter((Text((1, 2, 3, 4, 5, 6)), Text((9, 8))))
    assert list(found.propose([1, 2, 3], 10)) == [4, 5, 6, 9, 8, 1, 2, 3]
    assert list(found.propose([1, 2, 3, 7], 10)) == []
    assert list(found.propose([1, 2, 3, 7, 5, 6], 2)) == [9, 8]
    assert list(found.propose([1, 2, 3, 7, 5, 6, 2, 3], 10)) == [
        7,
        5,
        6,
        2,
        3,
    ]  # the last time, not the first


def test_what_was_said_before_is_guessed_when_it_comes_again(vlm: VLM, prompts: list[Prompt]) -> None:
    whole = vlm.generate(prompts[0], max_tokens=60).ids
    told = answered(vlm, prompts[0], NgramDrafter((*prompts[0], Text(whole))), 60)
    assert told.ids == whole
    assert told.accepted > 30  # all but what follows a pair that had come twice


def test_sampling_takes_no_guesses(vlm: VLM, prompts: list[Prompt]) -> None:
    how = Sampling(temperature=1.0, seed=2)
    plain = vlm.generate(prompts[0], max_tokens=12, sampling=how)
    told = vlm.generate(prompts[0], max_tokens=12, sampling=how, repetitions=True, draft=vlm)
    assert (told.ids, told.drafted) == (plain.ids, 0)


def test_a_draft_of_other_words_is_refused(vlm: VLM, vlm_of: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    other = vlm_of("apple-train")
    monkeypatch.setattr(other, "tokenizer", type("T", (), {"size": 7})())
    with pytest.raises(ConfigError, match="the draft model has 7 tokens"):
        vlm.generate("Hello", draft=other)


def test_the_command_says_how_many_were_right(run: Run) -> None:
    asked = ("generate", "-m", MODEL, "-p", "Hello", "-n", 40)
    told, plain = run(*asked, "--stats", "--draft-model", MODEL, "--repetitions"), run(*asked)
    assert (told.code, told.out) == (0, plain.out)
    assert re.search(r"guessed  \d+ tokens, \d+ of them right", told.err)
    refused = run(*asked, "--repetitions", "--temp", 1)
    assert refused.code == 1
    assert "speculative decoding needs temperature 0" in refused.err
