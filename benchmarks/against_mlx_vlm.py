"""Vision tower and decoder against mlx-vlm's and mlx-lm's, full size, random weights, in alternation.

`python benchmarks/against_mlx_vlm.py [--rounds N] [--sizes 256 512]`: medians and ratios, as Markdown.
In 4 bit each computes as after loading such a checkpoint: on a CPU ours has unpacked its matrices.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

from fastvlm_mlx.bench.machine import this_machine  # isort: skip  - prefers OpenBLAS before mlx loads
import mlx.core as mx
import mlx.nn as nn
import peers
from mlx.utils import tree_map

from fastvlm_mlx.config import TextConfig, VisionConfig
from fastvlm_mlx.kernels import run_parallel
from fastvlm_mlx.models.qwen2 import Qwen2
from fastvlm_mlx.models.vision import FastViTHD

Step = Callable[[], mx.array]
PEERS = ("mlx-vlm", "mlx-lm")
QWEN2_05B = TextConfig(896, 24, 14, 2, 4864, 151_936, tied=True)
PROMPT = 280  # positions: a 1024 px picture and a short question


def randomized(model: nn.Module) -> nn.Module:
    """Small random weights; only the time matters here, that results agree is tested elsewhere."""
    model.update(tree_map(lambda a: 0.02 * mx.random.normal(a.shape), model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def alternate(ours: Step, theirs: Step, rounds: int) -> tuple[float, float]:
    """Median seconds of each, measured in turns after one warm-up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for times, step in zip(taken, (ours, theirs), strict=True):
            began = time.perf_counter()
            mx.eval(step())
            if number:
                times.append(time.perf_counter() - began)
    return statistics.median(taken[0]), statistics.median(taken[1])


def encoders(sizes: Sequence[int], rounds: int) -> None:
    ours = randomized(FastViTHD(VisionConfig()))
    module = peers.load("mlx_vlm.models.fastvlm.vision")
    config = peers.load("mlx_vlm.models.fastvlm.config")
    theirs = randomized(module.VisionModel(config.VisionConfig()))
    for size in sizes:
        pixels = mx.random.uniform(shape=(1, size, size, 3))
        encode = partial(run_parallel, ours, pixels)  # as answers do
        row(f"encode {size} px", *alternate(encode, partial(features, theirs, pixels), rounds))


def features(tower: nn.Module, pixels: mx.array) -> mx.array:
    _, output, _ = tower(pixels)
    return output


def decoders(rounds: int) -> None:
    ours = randomized(Qwen2(QWEN2_05B))
    qwen2, cache = peers.load("mlx_lm.models.qwen2"), peers.load("mlx_lm.models.cache")
    c = QWEN2_05B
    theirs = randomized(
        qwen2.Model(
            qwen2.ModelArgs(
                model_type="qwen2",
                hidden_size=c.hidden_size,
                num_hidden_layers=c.layers,
                intermediate_size=c.intermediate_size,
                num_attention_heads=c.heads,
                num_key_value_heads=c.kv_heads,
                rms_norm_eps=c.norm_eps,
                vocab_size=c.vocab_size,
                rope_theta=c.rope_theta,
                tie_word_embeddings=c.tied,
            )
        )
    )
    ids = mx.random.randint(0, 1000, (1, PROMPT))
    token = ids[:, :1]

    def our_prefill() -> mx.array:
        return ours.logits(ours(ours.embedding(ids), ours.new_caches())[:, -1])

    def their_prefill() -> mx.array:
        caches = cache.make_prompt_cache(theirs)
        theirs.model(ids[:, :-1], caches)  # as mlx-lm does: all but the last position without the head
        mx.eval([c.state for c in caches])
        return theirs(ids[:, -1:], caches)

    row(f"prefill {PROMPT} positions", *alternate(our_prefill, their_prefill, rounds))
    our_caches, their_caches = ours.new_caches(), cache.make_prompt_cache(theirs)
    mx.eval(ours(ours.embedding(ids), our_caches), theirs(ids, their_caches))

    def our_step() -> mx.array:
        return ours.logits(ours(ours.embedding(token), our_caches)[:, -1])

    def their_step() -> mx.array:
        return theirs(token, their_caches)

    row("decode one token", *alternate(our_step, their_step, 10 * rounds))
    nn.quantize(theirs, bits=4)
    if mx.default_device() == mx.Device(mx.gpu):
        nn.quantize(ours, bits=4)
    row("decode one token, 4 bit", *alternate(our_step, their_step, 10 * rounds))


def row(what: str, ours: float, theirs: float) -> None:
    print(f"| {what} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f}× |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[256, 512])
    asked = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    print(f"{this_machine().words}, {versions}; float32 unless it says otherwise\n")
    print("| step | ours, s | theirs, s | theirs / ours |\n|---|---|---|---|")
    encoders(asked.sizes, asked.rounds)
    decoders(asked.rounds)


if __name__ == "__main__":
    main()
