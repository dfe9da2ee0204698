"""Many prompts at once: the same tokens as one at a time, whoever stops when, and no work done twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx import VLM, ConfigError, ImageError, Picture, Prompt, PromptError, Sampling
from fastvlm_mlx.inference import decoding, generate
from fastvlm_mlx.inputs.prompt import positions
from fastvlm_mlx.models.kv_cache import KVCache

Vlm = Callable[[str], VLM]
TOKENS = 16


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    random = np.random.default_rng(5)
    return [Picture(mx.array(random.random((1, 128, 128, 3), np.float32))) for _ in range(6)]


def answered(vlm: VLM, prompts: list[Prompt], **options: Any) -> list[tuple[int, ...]]:
    return [answer.ids for answer in vlm.answers(prompts, max_tokens=TOKENS, **options)]


def one_at_a_time(vlm: VLM, prompts: list[Prompt], **options: Any) -> list[tuple[int, ...]]:
    return [vlm.generate(prompt, max_tokens=TOKENS, **options).ids for prompt in prompts]


@pytest.mark.parametrize("name", ["apple-fused", "apple-train", "hf-timm-unfused", "mlx-vlm-f32"])
def test_prompts_of_one_length_are_answered_as_if_alone(
    vlm_of: Vlm, pictures: list[Picture], name: str
) -> None:
    vlm = vlm_of(name)
    prompts = [vlm.prompt("What is this?", [picture]) for picture in pictures]
    together = answered(vlm, prompts)
    assert together == one_at_a_time(vlm, prompts)
    assert len(set(together)) > 1  # the pictures were looked at


def test_prompts_of_every_kind_are_answered_in_order(vlm: VLM, pictures: list[Picture]) -> None:
    prompts = [
        vlm.prompt("What is this?", pictures[:1]),
        vlm.prompt("Hello there"),
        vlm.prompt("First <image> then <image>: what changed?", pictures[:2]),
        vlm.prompt("What is this?", pictures[1:2]),
        vlm.prompt("Hello there"),
        vlm.prompt("What is it?", [np.zeros((64, 192, 3), np.float32)]),
    ]
    assert len({positions(prompt) for prompt in prompts}) < len(prompts)
    for batch in (1, 4, 100):
        assert answered(vlm, prompts, batch=batch) == one_at_a_time(vlm, prompts)


def test_whole_answers_are_the_same(vlm: VLM, pictures: list[Picture]) -> None:
    prompts = [vlm.prompt("What is this?", [picture]) for picture in pictures[:3]]
    for prompt, together in zip(prompts, vlm.answers(prompts, max_tokens=5), strict=True):
        alone = vlm.generate(prompt, max_tokens=5)
        for field in ("text", "ids", "reason", "image_tokens", "text_tokens"):
            assert getattr(together, field) == getattr(alone, field)
        assert min(together.vision_s, together.prefill_s, together.decode_s, together.peak_bytes) > 0


def test_each_answer_ends_at_its_own_stop(
    vlm: VLM, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stop at once, some in between, some never; those that go on lose nothing by it."""
    prompts = [vlm.prompt("What is this?", [picture]) for picture in pictures]
    whole = one_at_a_time(vlm, prompts)
    stops = {whole[0][0], whole[1][5], whole[2][9]}
    batches: list[int] = []
    keep = KVCache.keep
    monkeypatch.setattr(KVCache, "keep", lambda self, rows: (batches.append(len(rows)), keep(self, rows)))
    found = generate.answer_batch(
        vlm.model, vlm.tokenizer, prompts, stop_ids=stops, context=1000, max_tokens=TOKENS
    )
    for answer, ids in zip(found, whole, strict=True):
        expected = tuple(itertools.takewhile(lambda id: id not in stops, ids))
        assert answer.ids == expected
        assert answer.reason == ("stop" if len(expected) < TOKENS else "length")
    assert len({len(answer.ids) for answer in found}) > 2
    assert batches  # who had finished was no longer computed
    assert max(batches) < len(prompts)


def test_sampling_repeats_what_each_would_draw_alone(vlm: VLM, pictures: list[Picture]) -> None:
    prompts = [vlm.prompt("What is this?", [picture]) for picture in pictures[:3]]
    sampling = Sampling(1.0, top_k=20, repetition_penalty=1.2, seed=3)
    assert answered(vlm, prompts, sampling=sampling) == one_at_a_time(vlm, prompts, sampling=sampling)


def test_chunked_prefill_changes_nothing(
    vlm: VLM, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [vlm.prompt("What is this?", [picture]) for picture in pictures[:3]]
    expected = one_at_a_time(vlm, prompts)
    for chunk in (1, 20, 200):
        monkeypatch.setattr(decoding, "PREFILL_CHUNK", chunk)
        assert answered(vlm, prompts) == expected


def test_a_shared_picture_is_encoded_once(vlm: VLM, pictures: list[Picture], encoded: list[int]) -> None:
    questions = ("What?", "What is this?", "Where is it, and why is it there?")
    prompts = [vlm.prompt(text, [picture]) for picture in pictures[:2] for text in questions]
    together = answered(vlm, prompts)
    assert encoded == [2]
    assert together == one_at_a_time(vlm, prompts)


def test_the_tower_takes_no_more_pixels_than_its_bound(
    vlm: VLM, pictures: list[Picture], encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [vlm.prompt("What?", [picture]) for picture in pictures]
    expected = answered(vlm, prompts)
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 4 * 128 * 128)
    assert answered(vlm, prompts) == expected
    assert encoded == [6, 4, 2]


def test_only_a_batch_of_prompts_is_drawn_ahead(vlm: VLM) -> None:
    drawn = 0

    def prompts() -> Iterator[str]:
        nonlocal drawn
        for drawn in range(1, 1000):  # noqa: B007
            yield "Hello"

    found = vlm.answers(prompts(), batch=3, max_tokens=1)
    assert drawn == 0
    for expected in (3, 3, 3, 6):
        next(found)
        assert drawn == expected


def test_no_prompts_have_no_answers(vlm: VLM) -> None:
    assert list(vlm.answers([])) == []
    assert [answer.ids for answer in vlm.answers(["Hello", "Hm"], max_tokens=0)] == [(), ()]


def test_wrong_wishes_are_refused(vlm: VLM) -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        next(vlm.answers(["Hello"], batch=0))
    with pytest.raises(PromptError, match="positions and the model reads 20"):
        generate.answer_batch(vlm.model, vlm.tokenizer, [vlm.prompt("a " * 50)], stop_ids=(), context=20)
    with pytest.raises(ImageError, match="2 pictures in one array"):
        vlm.prompt("Hm?", [np.zeros((2, 64, 64, 3), np.float32)])
