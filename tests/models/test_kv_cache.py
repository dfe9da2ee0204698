"""A decoder that remembers says what one that reads everything again says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from fastvlm_mlx.config import TextConfig
from fastvlm_mlx.models.kv_cache import KVCache
from fastvlm_mlx.models.qwen2 import Qwen2

ErrorOf = Callable[[Any, Any], float]


def keys_and_values(length: int, seed: int = 0, dtype: mx.Dtype = mx.float32, batch: int = 1) -> mx.array:
    return mx.random.normal((2, batch, 2, length, 8), key=mx.random.key(seed)).astype(dtype)


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [255, 1],
        [256, 1],
        [257],
        [1] * 300,
        [250, 12],
        [100, 200, 300],
        [512, 1],
        [1, 1000],
        [256, 256, 256],
    ],
    ids=lambda lengths: "+".join(map(str, lengths)) if len(lengths) < 9 else f"{len(lengths)} ones",
)
def test_what_was_put_in_comes_out_in_order(lengths: list[int]) -> None:
    both = keys_and_values(sum(lengths))
    cache = KVCache()
    for start, end in pairwise([0, *accumulate(lengths)]):
        k, v = cache.extend(both[..., start:end, :])
        assert cache.offset == end
        assert mx.array_equal(mx.stack([k, v]), both[..., :end, :])


@pytest.mark.parametrize(
    ("positions", "held"), [(1, 256), (256, 256), (257, 512), (512, 512), (513, 768), (1000, 1024)]
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_room_grows_by_steps_of_256(positions: int, held: int, one_by_one: bool) -> None:
    both = keys_and_values(positions)
    cache = KVCache()
    for start in range(0, positions, 1 if one_by_one else positions):
        cache.extend(both[..., start : start + 1 if one_by_one else positions, :])
    assert [array.shape[-2] for array in cache.arrays] == [held]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_types_are_kept(dtype: mx.Dtype) -> None:
    cache = KVCache()
    for length in (3, 300):
        k, v = cache.extend(keys_and_values(length, dtype=dtype))
        assert k.dtype == v.dtype == dtype


def test_a_new_cache_holds_nothing() -> None:
    assert (KVCache().offset, KVCache().arrays) == (0, [])


def test_what_was_handed_out_is_not_written_over() -> None:
    cache = KVCache()
    both = keys_and_values(2)
    early, _ = cache.extend(both[..., :1, :])
    mx.eval(early)
    cache.extend(both[..., 1:, :])
    assert mx.array_equal(early, both[0, ..., :1, :])


def test_the_rows_that_stay_are_kept_whole() -> None:
    rows = keys_and_values(300, 1, batch=4)
    cache = KVCache()
    cache.keep([0])  # of nothing, nothing
    cache.extend(rows)
    cache.keep([0, 2, 3])
    cache.keep([1, 2])
    more = keys_and_values(1, 3, batch=2)
    assert mx.array_equal(mx.stack(cache.extend(more)), mx.concatenate([rows[:, 2:], more], axis=-2))


def test_what_was_trimmed_is_written_over() -> None:
    both = keys_and_values(600)
    cache = KVCache()
    cache.trim(3)  # of nothing, nothing
    cache.extend(both[..., :400, :])
    cache.trim(500)
    assert cache.offset == 400
    cache.trim(250)
    found = mx.stack(cache.extend(both[..., 100:300, :]))
    assert mx.array_equal(found, mx.concatenate([both[..., :250, :], both[..., 100:300, :]], axis=-2))


@pytest.mark.parametrize("positions", [0, 1, 255, 256, 300, 999])
def test_forks_do_not_write_into_each_other(positions: int) -> None:
    both = keys_and_values(400)
    cache = KVCache()
    cache.extend(both[..., :300, :])
    other = cache.fork(positions)
    held = min(positions, 300)
    assert (cache.offset, other.offset) == (300, held)
    theirs = mx.stack(other.extend(-both[..., :50, :]))
    ours = mx.stack(cache.extend(both[..., 300:, :]))
    assert mx.array_equal(ours, both)
    assert mx.array_equal(theirs, mx.concatenate([both[..., :held, :], -both[..., :50, :]], axis=-2))
    assert KVCache().fork(5).arrays == []


# --- in the decoder ---

LENGTH = 300  # crosses the first step


@pytest.fixture(scope="module")
def language() -> Qwen2:
    language = Qwen2(TextConfig(32, 2, 4, 2, 64, 50, tied=True))
    names = tree_flatten(language.parameters())
    keys = mx.random.split(mx.random.key(1), len(names))
    language.load_weights(
        [(name, mx.random.normal(a.shape, key=key) / 3) for (name, a), key in zip(names, keys, strict=True)]
    )
    return language


@pytest.fixture(scope="module")
def rows() -> mx.array:
    return mx.random.normal((1, LENGTH, 32), key=mx.random.key(2))


@pytest.fixture(scope="module")
def whole(language: Qwen2, rows: mx.array) -> mx.array:
    return language(rows, language.new_caches())


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 255, 256, 257, 299, 512])
def test_reading_in_chunks_equals_reading_at_once(
    chunk: int, language: Qwen2, rows: mx.array, whole: mx.array, relative_error: ErrorOf
) -> None:
    caches = language.new_caches()
    pieces = [language(rows[:, start : start + chunk], caches) for start in range(0, LENGTH, chunk)]
    assert {cache.offset for cache in caches} == {LENGTH}
    assert relative_error(mx.concatenate(pieces, axis=1), whole) <= 1e-5


def test_a_position_sees_only_what_came_before(language: Qwen2, rows: mx.array, whole: mx.array) -> None:
    changed = mx.concatenate([rows[:, :200], -rows[:, 200:]], axis=1)
    found = language(changed, language.new_caches())
    assert mx.allclose(found[:, :200], whole[:, :200], atol=1e-5)
    assert not mx.allclose(found[:, 200:], whole[:, 200:], atol=1e-2)


def test_decoding_with_the_cache_equals_recomputing(language: Qwen2, rows: mx.array) -> None:
    """Greedy over the 256 step: from 250 positions to 270."""
    caches = language.new_caches()
    remembered, recomputed = rows[:, :250], rows[:, :250]
    for _ in range(20):
        token = language.logits(language(remembered, caches)[:, -1]).argmax(-1)
        again = language.logits(language(recomputed, language.new_caches())[:, -1]).argmax(-1)
        assert token.item() == again.item()
        remembered = language.embedding(token)[None]
        recomputed = mx.concatenate([recomputed, remembered], axis=1)
    assert {cache.offset for cache in caches} == {269}


@pytest.mark.parametrize("lengths", [(5,), (260,), (3, 20)])
def test_one_rotation_for_all_heads_as_on_a_gpu_changes_nothing(
    language: Qwen2,
    rows: mx.array,
    lengths: tuple[int, ...],
    relative_error: ErrorOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[mx.array] = []
    for device in (mx.cpu, mx.gpu):
        together, *others = [language.new_caches() for _ in lengths]
        for length, caches in zip(lengths, (together, *others), strict=True):
            language(rows[:, :length], caches)
        for caches in others:
            for one, other in zip(together, caches, strict=True):
                one.join(other)
        with monkeypatch.context() as patch:
            patch.setattr(mx, "default_device", lambda device=device: mx.Device(device))
            following = mx.broadcast_to(rows[:, -3:], (len(lengths), 3, 32))
            said = [language(following[:, place : place + 1], together) for place in range(3)]
            found.append(mx.concatenate(said, axis=1))
    assert relative_error(found[1], found[0]) <= 1e-6


def test_one_cache_too_few_is_an_error(language: Qwen2, rows: mx.array) -> None:
    with pytest.raises(ValueError, match="zip"):
        language(rows, language.new_caches()[:1])


# --- rows of unequal length ---


def held(cache: KVCache) -> list[tuple[mx.array, ...]]:
    rows = cache.arrays[0].shape[1]
    return [
        tuple(array[..., : cache.row(row).offset, :] for array in cache.row(row).arrays)
        for row in range(rows)
    ]


@pytest.mark.parametrize("lengths", [(3, 7), (7, 3), (5, 5), (255, 256), (256, 1), (600, 20)])
def test_joined_rows_stay_what_they_were(lengths: tuple[int, int]) -> None:
    caches = [KVCache(), KVCache()]
    for seed, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        cache.extend(keys_and_values(length, seed))
    before = [held(cache)[0] for cache in caches]
    together = caches[0].fork(10**6)
    together.join(caches[1])
    assert together.offset == max(lengths)
    for found, expected in zip(held(together), before, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert mx.array_equal(one, other)
    together.extend(keys_and_values(1, 9, batch=2))
    assert [together.row(row).offset for row in (0, 1)] == [length + 1 for length in lengths]
    assert caches[0].offset == lengths[0]


def test_who_stays_gives_up_the_columns_of_who_left() -> None:
    cache, long = KVCache(), KVCache()
    cache.extend(keys_and_values(3, 1))
    expected = held(cache)[0]
    long.extend(keys_and_values(400, 2))
    cache.join(long)
    cache.keep([0])
    assert cache.offset == 3
    assert (cache.position, cache.mask(1)) == (3, None)
    assert all(mx.array_equal(one, other) for one, other in zip(held(cache)[0], expected, strict=True))


@pytest.mark.parametrize("lengths", [(1, 20, 7), (30, 30, 2), (260, 250, 3)])
def test_rows_of_unequal_length_are_answered_as_if_alone(
    language: Qwen2, rows: mx.array, lengths: tuple[int, ...], relative_error: ErrorOf
) -> None:
    alone = []
    together: list[KVCache] = []
    for length in lengths:
        caches = language.new_caches()
        language(rows[:, :length], caches)
        forked = [cache.fork(length) for cache in caches]
        alone.append(language(rows[:, length : length + 4], caches))
        for one, other in zip(together, forked, strict=False):
            one.join(other)
        together = together or forked
    following = mx.concatenate([rows[:, length : length + 4] for length in lengths])
    found = [language(following[:, :3], together), language(following[:, 3:], together)]
    assert relative_error(mx.concatenate(found, axis=1), mx.concatenate(alone)) <= 1e-5
