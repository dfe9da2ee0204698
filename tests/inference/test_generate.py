"""The decoding loop on a golden model: what events come, when it stops, that nothing depends on chunks."""

import itertools
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from fastvlm_mlx import VLM, Finished, ImageError, Prefilled, PromptError, Sampling, Token
from fastvlm_mlx.inference import decoding, generate

Vlm = Callable[[str], VLM]


@pytest.fixture(scope="module")
def vlm(vlm_of: Vlm) -> VLM:
    return vlm_of("apple-fused")


def test_events_come_in_order(vlm: VLM, pixels: dict[str, mx.array]) -> None:
    events = list(vlm.stream(vlm.prompt("Describe the image.", [pixels["A"]]), max_tokens=5))
    assert [type(event) for event in events] == [Prefilled, *[Token] * 5, Finished]
    first, last = events[0], events[-1]
    assert isinstance(first, Prefilled)
    assert isinstance(last, Finished)
    assert (first.image_tokens, first.text_tokens) == (16, 52)
    assert first.vision_s > 0
    assert first.prefill_s > 0
    assert (last.reason, last.tokens) == ("length", 5)
    assert last.peak_bytes > 0


def test_generate_joins_stream(vlm: VLM, pixels: dict[str, mx.array]) -> None:
    prompt = vlm.prompt("Describe the image.", [pixels["B"]])
    events = list(vlm.stream(prompt, max_tokens=12))
    answer = vlm.generate(prompt, max_tokens=12)
    assert answer.text == "".join(e.text for e in events if isinstance(e, (Token, Finished)))
    assert answer.ids == tuple(e.id for e in events if isinstance(e, Token))
    assert answer.text == vlm.tokenizer.decode(answer.ids)


def test_greedy_is_deterministic(vlm: VLM) -> None:
    assert vlm.generate("Hello there", max_tokens=8).ids == vlm.generate("Hello there", max_tokens=8).ids


def test_no_token_is_a_valid_wish(vlm: VLM) -> None:
    answer = vlm.generate("Hello", max_tokens=0)
    assert (answer.text, answer.ids, answer.reason, answer.tokens_per_s) == ("", (), "length", 0.0)


def test_the_answer_ends_before_a_stop_token(vlm: VLM) -> None:
    prompt = vlm.prompt("Hello there")
    whole = vlm.generate(prompt, max_tokens=8).ids
    events = generate.stream(
        vlm.model, vlm.tokenizer, prompt, stop_ids={whole[3]}, context=1000, max_tokens=8
    )
    answer = generate.collect(events)
    assert answer.reason == "stop"
    assert answer.ids == tuple(itertools.takewhile(lambda id: id != whole[3], whole))


def test_a_prompt_beyond_the_context_is_refused_before_any_work(vlm: VLM) -> None:
    prompt = vlm.prompt("word " * 50)
    with pytest.raises(PromptError, match="positions and the model reads 20"):
        next(generate.stream(vlm.model, vlm.tokenizer, prompt, stop_ids=(), context=20))


def test_the_answer_stops_at_the_context(vlm: VLM) -> None:
    prompt = vlm.prompt("Hello")
    length = sum(part.positions for part in prompt)
    events = generate.stream(vlm.model, vlm.tokenizer, prompt, stop_ids=(), context=length + 3, max_tokens=50)
    assert len(generate.collect(events).ids) == 4  # three read back, the last one only said


def test_chunked_prefill_changes_nothing(
    vlm: VLM, pixels: dict[str, mx.array], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = vlm.prompt("What is the difference, and which is better?", [pixels["A"], pixels["C"]])
    whole = vlm.generate(prompt, max_tokens=8).ids
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 7)
    assert vlm.generate(prompt, max_tokens=8).ids == whole


def test_padded_vocabulary_rows_are_never_sampled(vlm: VLM) -> None:
    assert vlm.config.text.vocab_size == 512
    assert vlm.tokenizer.size == 483
    answer = vlm.generate(
        "Hello", max_tokens=300, sampling=Sampling(temperature=50.0, seed=0)
    )  # nearly uniform
    assert max(answer.ids) < 483


def test_sampling_with_a_seed_repeats(vlm: VLM) -> None:
    sampling = Sampling(1.0, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.1, seed=7)
    first, second = (vlm.generate("Hello", max_tokens=16, sampling=sampling).ids for _ in range(2))
    assert first == second


def test_a_reader_may_leave_early(vlm: VLM) -> None:
    events = vlm.stream("Hello", max_tokens=500)
    assert len(list(itertools.islice(events, 4))) == 4
    events.close()  # type: ignore[attr-defined]
    assert vlm.generate("Hello", max_tokens=2).ids


def test_pictures_may_be_files_arrays_or_floats(vlm: VLM) -> None:

    from PIL import Image

    from fastvlm_mlx.inputs.image import preprocess

    array = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    ready = preprocess(array, 256)
    kinds = (
        array,
        mx.array(array),
        Image.fromarray(array),
        ready,
        ready.astype(np.float64),
        mx.array(ready),
        mx.array(ready)[None],
    )
    answers = {vlm.generate(vlm.prompt("Hm?", [kind]), max_tokens=6).ids for kind in kinds}
    assert len(answers) == 1


@pytest.mark.parametrize("shape", [(3, 64, 64), (65, 64, 3), (0, 64, 3), (64, 64)])
def test_pixels_of_another_shape_are_refused(vlm: VLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError):
        vlm.vision(np.zeros(shape, np.float32))


def test_bytes_are_not_taken_for_pixels(vlm: VLM) -> None:
    with pytest.raises(ImageError, match="uint8"):
        vlm.encode_image(np.zeros((64, 64, 3), np.uint8))  # type: ignore[arg-type]
