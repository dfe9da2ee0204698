"""Keys and values as floats, in 8 bits and in 4: `python benchmarks/kv_cache.py [--positions 2000]`.

A decoder of the 0.5B's size with random weights in float32 and a small vocabulary reads many positions, and
then tokens, with each kind in turn. The memory is that of a model in float16. How far logits are off is the
root mean square of the difference over that of the logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from fastvlm_mlx.bench.machine import this_machine  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
from mlx.utils import tree_map

from fastvlm_mlx.config import TextConfig
from fastvlm_mlx.models.kv_cache import KVCache, packing
from fastvlm_mlx.models.qwen2 import Qwen2

KINDS = {"floats": None, "8 bit": 8, "4 bit": 4}
CHUNK = 512


def timed(work: Callable[[], mx.array]) -> tuple[mx.array, float]:
    began = time.perf_counter()
    result = work()
    mx.eval(result)
    return result, time.perf_counter() - began


def read(language: Qwen2, ids: mx.array, caches: Sequence[KVCache]) -> mx.array:
    """(positions, vocabulary)"""
    told = []
    for start in range(0, ids.shape[1], CHUNK):
        told.append(language.logits(language(language.embedding(ids[:, start : start + CHUNK]), caches))[0])
        mx.eval(told[-1])
    return mx.concatenate(told)


def megabytes(config: TextConfig, positions: int, bits: int | None) -> float:
    cache = KVCache(None if bits is None else packing(bits, 64, config.head_dim))
    cache.extend(mx.random.normal((2, 1, config.kv_heads, positions, config.head_dim)).astype(mx.float16))
    return config.layers * sum(array.nbytes for array in cache.arrays) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=15)
    parser.add_argument("--layers", type=int, default=24, help="fewer are quicker")
    asked = parser.parse_args()
    config = TextConfig(896, asked.layers, 14, 2, 4864, 1000, tied=True)
    language = Qwen2(config)
    language.update(tree_map(lambda a: 0.02 * mx.random.normal(a.shape), language.parameters()))
    mx.eval(language.parameters())
    ids = mx.random.randint(0, config.vocab_size, (1, asked.positions))
    logits: dict[str, mx.array] = {}
    prefill_s: dict[str, float] = {}
    caches: dict[str, list[KVCache]] = {}
    for kind, bits in KINDS.items():
        language.packing = None if bits is None else packing(bits, 64, config.head_dim)
        caches[kind] = language.new_caches()
        logits[kind], prefill_s[kind] = timed(lambda kind=kind: read(language, ids, caches[kind]))  # type: ignore[misc]
    token_s: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(asked.tokens + 1):
        for kind in KINDS:
            _, taken = timed(lambda kind=kind: read(language, ids[:, :1], caches[kind]))  # type: ignore[misc]
            if number:
                token_s[kind].append(taken)
    print(f"{this_machine().words}; {asked.positions} positions\n")
    print("| keys and values | MB | prefill, s | a token, ms | logits off |\n|---|--:|--:|--:|--:|")
    for kind, bits in KINDS.items():
        difference = logits[kind] - logits["floats"]
        off = float((mx.square(difference).mean() / mx.square(logits["floats"]).mean()).sqrt())
        print(
            f"| {kind} | {megabytes(config, asked.positions, bits):.1f} | {prefill_s[kind]:.2f} "
            f"| {1e3 * statistics.median(token_s[kind]):.1f} | {off:.1%} |"
        )


if __name__ == "__main__":
    main()
