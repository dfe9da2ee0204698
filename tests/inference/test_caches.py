"""What many conversations have read is gone on from by whoever begins alike."""

from __future__ import annotations

import mlx.core as mx

from fastvlm_mlx.inference.caches import Prefix, Prefixes
from fastvlm_mlx.inputs.prompt import Picture, Prompt, Text
from fastvlm_mlx.models.kv_cache import KVCache


def fresh() -> list[KVCache]:
    return [KVCache(), KVCache()]


def read(*ids: int) -> Prefix:
    """One that knows these."""
    caches = fresh()
    for cache in caches:
        cache.extend(mx.random.normal((2, 1, 2, len(ids), 8)))
    return Prefix(caches, list(ids))


def prompt(*ids: int) -> Prompt:
    return (Text(ids),)


def test_whoever_knows_most_of_a_prompt_is_gone_on_from_apart() -> None:
    held = Prefixes()
    short, long = read(1, 2, 9), read(1, 2, 3, 4, 8)
    held.put(short)
    held.put(long)
    begun = held.longest_match(prompt(1, 2, 3, 4, 5), fresh)
    assert begun.cached == [1, 2, 3, 4]
    begun.caches[0].trim(0)
    assert long.cached == [1, 2, 3, 4, 8]
    assert held.longest_match(prompt(1, 2, 9), fresh).cached == [1, 2, 9]
    assert held.longest_match(prompt(7, 2, 9), fresh).cached == []


def test_one_that_knows_more_takes_the_place_of_others() -> None:
    held = Prefixes()
    for known in ([1, 2], [1, 5], [1, 2, 3], [1, 2, 3]):
        held.put(read(*known))
    assert len(held) == 2
    assert held.longest_match(prompt(1, 5, 5), fresh).cached == [1, 5]


def test_what_was_used_longest_ago_goes_first() -> None:
    each = read(*range(10)).nbytes
    held = Prefixes(budget_bytes=2 * each)
    for first in (100, 200):
        held.put(read(first, *range(9)))
    held.longest_match(prompt(100, 0), fresh)
    held.put(read(300, *range(9)))
    assert [len(held.longest_match(prompt(first, 0), fresh)) for first in (100, 200, 300)] == [2, 0, 2]
    assert held.nbytes <= held.budget_bytes
    held.put(read(*range(1000)))
    assert (len(held), held.nbytes) == (0, 0)  # one that is beyond the budget by itself


def test_no_more_are_kept_than_can_be_compared() -> None:
    held = Prefixes()
    for first in range(100):
        held.put(read(first, 1, 2))
    assert len(held) == 64


def test_a_picture_is_known_by_its_content() -> None:
    pixels = mx.random.uniform(shape=(1, 64, 64, 3))
    one, same, other = Picture(pixels), Picture(pixels + 0), Picture(1 - pixels)
    held = Prefixes()
    caches = fresh()
    for cache in caches:
        cache.extend(mx.random.normal((2, 1, 2, 2, 8)))
    held.put(Prefix(caches, [5, one.key]))
    assert len(held.longest_match((Text((5,)), same, Text((1,))), fresh)) == 2
    assert len(held.longest_match((Text((5,)), other, Text((1,))), fresh)) == 1
