"""MLX's cache of freed buffers has a bound, and memory is wired only while something is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest
from command import MODEL, Run
from pictures import TALL

from fastvlm_mlx import VLM, PromptError
from fastvlm_mlx import vlm as runtime
from fastvlm_mlx.inference import allocator


@pytest.fixture
def own_limit() -> Iterator[None]:
    before = mx.set_cache_limit(2**25)
    yield
    mx.set_cache_limit(before)
    mx.clear_cache()


def cache_limit() -> int:
    limit = mx.set_cache_limit(0)
    mx.set_cache_limit(limit)
    return limit


@pytest.fixture
def wired_limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every limit that was set, on a device with a working set of 1,000 bytes; the one before is 7."""
    limits = [7]

    def set_wired_limit(limit: int) -> int:
        limits.append(limit)
        return limits[-2]

    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1000})
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    return limits


def test_freed_buffers_are_kept_up_to_the_limit_alone(own_limit: None) -> None:
    allocator.limit_cache(3_000_000)
    for size in range(1_000_000, 2_000_000, 100_000):
        mx.eval(mx.zeros(size, mx.uint8))
    assert 0 < mx.get_cache_memory() <= 3_000_000


@pytest.mark.parametrize(
    ("info", "limit"),
    [
        ({"memory_size": 2**30}, 2**26),  # Metal
        ({"total_memory": 2**30, "free_memory": 5}, 2**26),  # CUDA
        ({"device_name": "a CPU"}, 2**27),
    ],
)
def test_the_default_is_a_share_of_the_devices_memory(
    info: dict[str, Any], limit: int, own_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(allocator, "memory_bytes", lambda: 2**31)
    mx.set_cache_limit(2**40)
    allocator.limit_cache(None)
    assert cache_limit() == limit


def test_the_default_raises_no_limit_and_a_requested_one_does(own_limit: None) -> None:
    allocator.limit_cache(None)
    assert cache_limit() == 2**25
    allocator.limit_cache(2**26)
    assert cache_limit() == 2**26


def test_memory_is_wired_inside_and_as_before_after_an_error(
    vlm_of: Callable[[str], VLM], wired_limits: list[int]
) -> None:
    vlm = vlm_of("apple-fused")
    with pytest.raises(PromptError), allocator.wired(vlm):
        vlm.generate("")
    assert wired_limits[1:] == [1000, 7]
    with allocator.wired(vlm, enabled=False):
        pass
    assert len(wired_limits) == 3


def test_generate_wires_memory_only_when_asked_to(run: Run, wired_limits: list[int]) -> None:
    plain = run("generate", TALL, "-m", MODEL, "-n", 3)
    assert wired_limits == [7]
    wired = run("generate", TALL, "-m", MODEL, "-n", 3, "--wired")
    assert wired_limits == [7, 1000, 7]
    assert (wired.out, wired.err) == (plain.out, plain.err)


def test_without_a_working_set_one_line_says_so(run: Run) -> None:
    done = run("generate", TALL, "-m", MODEL, "-n", 3, "--wired")
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert "--wired has no effect here; only Macs report a working set" in done.err


@pytest.mark.parametrize("limit", ["1GB", None])
def test_chat_bounds_the_cache(
    run: Run, limit: str | None, own_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": 2**28})
    done = run("chat", "-m", MODEL, *(["--cache-limit", limit] if limit else []))
    assert done.code == 0, done.err
    assert cache_limit() == (10**9 if limit else 2**24)


@pytest.mark.parametrize("verb", ["chat", "serve"])
def test_a_limit_that_is_no_size_is_refused_before_a_model_is_loaded(
    run: Run, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "load", None)
    done = run(verb, "-m", MODEL, "--cache-limit", "much")
    assert done.code == 1
    assert "--cache-limit 'much': is no amount; give a number with its unit" in done.err
