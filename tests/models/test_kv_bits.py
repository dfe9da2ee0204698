"""Packed keys and values: less memory, nearly the same logits, and otherwise what floats do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Variant, build, saying
from command import MODEL, Run
from pictures import TALL

import fastvlm_mlx
from fastvlm_mlx import VLM, ConfigError, Picture, Prompt, Session
from fastvlm_mlx.models.kv_cache import BITS, KVCache, Packed, _attend_packed, attend, packing

ErrorOf = Callable[[Any, Any], float]
LOGITS = {8: 0.02, 4: 0.25}  # difference from the floats' ÷ their size, both as root mean squares
FIRST = {8: 0.95, 4: 0.6}  # of the positions, where the likeliest token is the same; weights are random
BYTES = {8: 0.54, 4: 0.29}  # of half precision's
TOKENS = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden checkpoint, its four heads of 16 read as two of 32."""
    wider = Variant("apple-fused", config=saying(num_attention_heads=2, num_key_value_heads=1))
    return build(wider, tmp_path_factory.mktemp("variant") / "heads-of-32")


@pytest.fixture(scope="module")
def floats(directory: Path) -> VLM:
    return fastvlm_mlx.load(directory)


@pytest.fixture(scope="module", params=BITS)
def packed(directory: Path, request: pytest.FixtureRequest) -> VLM:
    return fastvlm_mlx.load(directory, kv_bits=request.param)


@pytest.fixture(scope="module")
def prompts(floats: VLM) -> list[Prompt]:
    random = np.random.default_rng(5)
    pictures = [Picture(mx.array(random.random((1, 128, 192, 3), np.float32))) for _ in range(2)]
    return [
        floats.prompt("What is this?", pictures[:1]),
        floats.prompt("First <image>, then <image>: what changed?", pictures),
        floats.prompt("Read it: one two three one two three one two", pictures[1:]),
    ]


def bits_of(vlm: VLM) -> int:
    how = vlm.model.language.packing
    assert how is not None
    return how.bits


# --- the cache ---


def keys_and_values(length: int, seed: int, dtype: mx.Dtype = mx.float32, batch: int = 1) -> mx.array:
    return mx.random.normal((2, batch, 2, length, 64), key=mx.random.key(seed)).astype(dtype)


def unpacked(held: tuple[mx.array, mx.array] | tuple[Packed, Packed]) -> list[mx.array]:
    return [part.floats for part in held if isinstance(part, Packed)]


@pytest.mark.parametrize("bits", BITS)
def test_memory_is_a_part_of_the_floats(bits: int) -> None:
    caches = [KVCache(), KVCache(packing(bits, 64, 64))]
    for cache in caches:
        cache.extend(keys_and_values(500, 1, mx.float16))
    floats, packed = (sum(array.nbytes for array in cache.arrays) for cache in caches)
    assert packed <= BYTES[bits] * floats


@pytest.mark.parametrize(("bits", "step"), [(8, 2 / 255), (4, 2 / 15)])
def test_values_are_off_by_half_a_step_at_most(bits: int, step: float) -> None:
    cache, given = KVCache(packing(bits, 64, 64)), keys_and_values(300, 2)
    for found, expected in zip(unpacked(cache.extend(given)), given, strict=True):
        ranges = expected.max(-1, keepdims=True) - expected.min(-1, keepdims=True)
        assert mx.all(mx.abs(found - expected) <= step * ranges / 2)


def test_a_position_is_packed_by_itself() -> None:
    given = keys_and_values(300, 3)
    at_once, in_pieces = KVCache(packing(4, 64, 64)), KVCache(packing(4, 64, 64))
    expected = unpacked(at_once.extend(given))
    for start in range(0, 300, 7):
        found = unpacked(in_pieces.extend(given[..., start : start + 7, :]))
    assert all(mx.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_attention_to_packed_values_is_that_to_what_they_stand_for(
    bits: int, ragged: bool, length: int, relative_error: ErrorOf
) -> None:
    cache, other = KVCache(packing(bits, 32, 64)), KVCache(packing(bits, 32, 64))
    cache.extend(keys_and_values(300, 4))
    other.extend(keys_and_values(20 if ragged else 300, 5))
    cache.join(other)
    mask = cache.mask(length)
    k, v = cache.extend(keys_and_values(length, 6, batch=2))
    assert isinstance(k, Packed)
    assert isinstance(v, Packed)
    q = mx.random.normal((2, 14, length, 64), key=mx.random.key(8))
    expected = attend(q, k.floats, v.floats, 0.125, mask)
    assert relative_error(_attend_packed(q, k, v, 0.125, mask), expected) <= 1e-5
    assert relative_error(attend(q, k, v, 0.125, mask), expected) <= 1e-5


@pytest.mark.parametrize(
    ("asked", "head_dim", "group"), [(64, 64, 64), (64, 128, 64), (128, 64, 64), (64, 96, 32), (32, 128, 32)]
)
def test_groups_divide_the_heads(asked: int, head_dim: int, group: int) -> None:
    assert packing(8, asked, head_dim).group_size == group


@pytest.mark.parametrize(
    ("bits", "group", "head_dim", "says"),
    [(5, 64, 64, "4 or 8 bits, not 5"), (8, 48, 64, "group size 48"), (8, 64, 80, "80 wide")],
)
def test_what_cannot_be_packed_is_refused(bits: int, group: int, head_dim: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        packing(bits, group, head_dim)


# --- in a model ---


def test_logits_are_near_those_of_floats(floats: VLM, packed: VLM, prompts: list[Prompt]) -> None:
    for prompt in prompts:
        expected, found = (np.array(vlm.logits(prompt))[:, : vlm.tokenizer.size] for vlm in (floats, packed))
        off = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
        assert 0 < off <= LOGITS[bits_of(packed)]
        assert (found.argmax(-1) == expected.argmax(-1)).mean() >= FIRST[bits_of(packed)]


def test_answers_side_by_side_are_those_alone(packed: VLM, prompts: list[Prompt]) -> None:
    alone = [packed.generate(prompt, max_tokens=TOKENS).ids for prompt in prompts]
    assert [answer.ids for answer in packed.answers(prompts, max_tokens=TOKENS)] == alone


def test_guesses_are_checked_as_ever(packed: VLM, floats: VLM, prompts: list[Prompt]) -> None:
    for prompt in prompts:
        expected = packed.generate(prompt, max_tokens=30).ids
        assert packed.generate(prompt, max_tokens=30, repetitions=True).ids == expected
        assert packed.generate(prompt, max_tokens=30, draft=floats).ids == expected


def test_a_session_says_what_a_fresh_run_says_and_is_smaller(packed: VLM, floats: VLM) -> None:
    sizes = []
    for vlm in (packed, floats):
        session = Session(vlm)
        for text, images in (("What is this?", [TALL]), ("And now?", []), ("Why?", [])):
            expected = vlm.generate(session.prompt(text, images, TOKENS), max_tokens=TOKENS)
            answer = session.fork().generate(text, images, max_tokens=TOKENS)
            assert answer.ids == session.generate(text, images, max_tokens=TOKENS).ids == expected.ids
        sizes.append(session.nbytes)
    assert sizes[0] < sizes[1] / 2


def test_a_saved_session_goes_on_in_the_same_bits_and_is_read_again_in_others(
    packed: VLM, floats: VLM, tmp_path: Path
) -> None:
    session = Session(packed)
    session.generate("What is this?", [TALL], max_tokens=TOKENS)
    session.save(tmp_path / "talk")
    expected = session.generate("And now?", max_tokens=TOKENS)
    restored = Session.restore(packed, tmp_path / "talk").generate("And now?", max_tokens=TOKENS)
    assert (restored.ids, restored.cached_tokens) == (expected.ids, expected.cached_tokens)
    other = Session.restore(floats, tmp_path / "talk")
    known = other.prompt("And now?", max_tokens=TOKENS)
    again = other.generate("And now?", max_tokens=TOKENS)
    assert again.cached_tokens == 0
    assert again.ids == floats.generate(known, max_tokens=TOKENS).ids


def test_the_command_packs(run: Run, directory: Path) -> None:
    asked = ("generate", TALL, "-m", directory, "-n", TOKENS, "--json")
    done = run(*asked, "--kv-bits", 8, "--kv-group-size", 32)
    assert done.code == 0, done.err
    answer = fastvlm_mlx.load(directory, kv_bits=8, kv_group_size=32)
    expected = answer.generate(answer.prompt("Describe the image.", [TALL]), max_tokens=TOKENS)
    assert json.loads(done.out)["text"] == expected.text


@pytest.mark.parametrize("verb", [("generate", TALL), ("chat", TALL)], ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("options", "says"), [(("--kv-bits", 3), "not 3"), (("--kv-bits", 8), "16 wide")], ids=["bits", "heads"]
)
def test_the_command_says_in_one_line_what_it_cannot_pack(
    run: Run, verb: tuple[object, ...], options: tuple[object, ...], says: str
) -> None:
    done = run(*verb, "-m", MODEL, *options)
    assert done.code == 1
    assert done.out == ""
    assert says in done.err
    assert len(done.err.splitlines()) == 1
