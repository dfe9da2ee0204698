"""Operations of an encode and of a decoded token, and the bytes that an encode moves: ours and mlx-vlm's.

`python benchmarks/operations.py [--size 1024] [--dtype float16]`, as Markdown. Nothing is computed: models of
the 0.5B's size are exported as graphs (`mx.export_function`) and their primitives counted. On any machine
the graphs are those of a GPU: what is one kernel there (norms, RoPE, attention of 64 or 128 values a head,
whatever is compiled) is one node. Views are primitives that only look at their input otherwise. Bytes are the
inputs and outputs of the others; what is broadcast counts as stored. All are MLX's own.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import fastvlm_mlx  # isort: skip  - before mlx, as everywhere
import mlx.core as mx

_FUSED_HEADS = (64, 128)  # values a head, of which Metal has an attention kernel
_VIEWS = frozenset(
    (
        *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape"),
        *("Slice", "Split", "Squeeze", "StopGradient", "Transpose", "Unflatten"),
    )
)
_STANDS_IN = "Depends"  # for an operation that is one kernel; its first inputs are the shapes of its outputs
_PROMPT = 8  # positions known before the token that is counted; their number makes no difference


def one(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation as a single node: scalars in its results' shapes that depend on its inputs."""

    def node(*inputs: Any, **settings: Any) -> Any:
        results = operation(*inputs, **settings)
        each = results if isinstance(results, tuple) else (results,)
        shaped = [mx.broadcast_to(mx.array(0, result.dtype), result.shape) for result in each]
        told = mx.depends(shaped, [given for given in inputs if isinstance(given, mx.array)])
        return tuple(told) if isinstance(results, tuple) else told[0]

    return node


def as_on_a_gpu() -> None:
    """For this process, and before anything compiles: only graphs are made in it."""
    attend = mx.fast.scaled_dot_product_attention
    fused = one(attend)
    mx.compile = lambda function, *_, **__: one(function)  # type: ignore[assignment]
    for name in ("rms_norm", "layer_norm", "rope"):
        setattr(mx.fast, name, one(getattr(mx.fast, name)))
    mx.fast.scaled_dot_product_attention = lambda q, k, v, **settings: (  # type: ignore[assignment]
        fused if q.shape[-1] in _FUSED_HEADS else attend
    )(q, k, v, **settings)
    mx.default_device = lambda: mx.Device(mx.gpu)  # type: ignore[assignment]  # what our kernels ask
    os.environ["FASTVLM_MLX_KERNELS"] = "stock"  # whatever `tune` chose on this machine


as_on_a_gpu()

import mlx.nn as nn  # noqa: E402
import peers  # noqa: E402
from mlx.utils import tree_flatten, tree_unflatten  # noqa: E402

from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig  # noqa: E402
from fastvlm_mlx.models.fastvlm import FastVLM  # noqa: E402
from fastvlm_mlx.weights.checkpoint import DTYPES  # noqa: E402

QWEN2_05B = TextConfig(896, 24, 14, 2, 4864, 151_936, tied=True)


@dataclass(frozen=True)
class Work:
    operations: int = 0
    views: int = 0
    moved: int = 0  # bytes

    def __sub__(self, other: Work) -> Work:
        return Work(self.operations - other.operations, self.views - other.views, self.moved - other.moved)


def work(model: nn.Module, dtype: mx.Dtype, run: Callable[..., Any], *inputs: mx.array) -> Work:
    """Of `run` (inputs), the model's weights given from outside."""
    names, weights = zip(*tree_flatten(model.parameters()), strict=True)
    nodes: list[Mapping[str, Any]] = []

    def told(part: Mapping[str, Any]) -> None:
        if part["type"] == "primitive":
            nodes.append(part)

    def of_weights(*arrays: mx.array) -> Any:
        own = arrays[len(inputs) :]
        model.update(tree_unflatten(list(zip(names, own, strict=True))))
        return run(*arrays[: len(inputs)])

    mx.export_function(told, of_weights, *inputs, *(mx.zeros(a.shape, dtype) for a in weights))
    model.update(tree_unflatten(list(zip(names, weights, strict=True))))
    return counted(nodes)


def counted(nodes: list[Mapping[str, Any]]) -> Work:
    standing = [node for node in nodes if node["name"] == _STANDS_IN]
    shapes = {given[0] for node in standing for given in node["inputs"][: len(node["outputs"])]}
    nodes = [node for node in nodes if not any(output[0] in shapes for output in node["outputs"])]
    behind: dict[str, int] = {}  # bytes that a view looks at, where they are fewer than its own
    views = moved = 0

    def held(array: tuple[str, tuple[int, ...], mx.Dtype]) -> int:
        name, shape, dtype = array
        return min(math.prod(shape) * dtype.size, behind.get(name, math.inf))  # type: ignore[return-value]

    for node in nodes:
        if node["name"] in _VIEWS:
            views += 1
            behind |= {output[0]: held(node["inputs"][0]) for output in node["outputs"]}
        else:
            read = node["inputs"][len(node["outputs"]) :] if node["name"] == _STANDS_IN else node["inputs"]
            moved += sum(map(held, (*read, *node["outputs"])))
    return Work(len(nodes) - views, views, moved)


def ours(size: int, dtype: mx.Dtype) -> tuple[Work, Work]:
    model = FastVLM(ModelConfig(VisionConfig(), QWEN2_05B))
    language = model.language

    def step(ids: mx.array, caches: Any) -> mx.array:
        return language.logits(language(language.embedding(ids), caches))

    return (
        work(model, dtype, model.encode_image, pixels(size, dtype)),
        token(model, dtype, step, language.new_caches),
    )


def theirs(size: int, dtype: mx.Dtype) -> tuple[Work, Work]:
    room = "mlx_vlm.models.fastvlm"
    configs, cache = peers.load(f"{room}.config"), peers.load("mlx_vlm.models.cache")
    text = configs.TextConfig("llava_qwen2")  # the 0.5B's sizes
    model = peers.load(f"{room}.fastvlm").Model(configs.ModelConfig(text, configs.VisionConfig()))
    model.eval()

    def encode(pixels: mx.array) -> mx.array:
        found = model.vision_tower(pixels)[1]
        projected: mx.array = model.mm_projector(found.flatten(1, 2))
        return projected

    def step(ids: mx.array, caches: Any) -> mx.array:
        logits: mx.array = model.language_model(ids, cache=caches).logits
        return logits

    return (
        work(model, dtype, encode, pixels(size, dtype)),
        token(model, dtype, step, lambda: cache.make_prompt_cache(model.language_model)),
    )


def pixels(size: int, dtype: mx.Dtype) -> mx.array:
    return mx.zeros((1, size, size, 3), dtype)


def token(
    model: nn.Module,
    dtype: mx.Dtype,
    step: Callable[[mx.array, Any], mx.array],
    new_caches: Callable[[], Any],
) -> Work:
    """What one more token adds."""

    def read(*pieces: mx.array) -> list[mx.array]:
        caches = new_caches()
        return [step(piece, caches) for piece in pieces]

    prompt, said = mx.zeros((1, _PROMPT), mx.uint32), mx.zeros((1, 1), mx.uint32)
    return work(model, dtype, read, prompt, said, said + 1) - work(model, dtype, read, prompt, said)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024, help="of the picture, in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    asked = parser.parse_args()
    both = list(
        zip(ours(asked.size, DTYPES[asked.dtype]), theirs(asked.size, DTYPES[asked.dtype]), strict=True)
    )
    print(f"MLX {mx.__version__}, fastvlm-mlx {fastvlm_mlx.__version__}, mlx-vlm {version('mlx-vlm')}\n")
    print("| | ours | mlx-vlm | ours / theirs |\n|---|--:|--:|--:|")
    for what, (our, their) in zip((f"encode {asked.size} px", "decode one token"), both, strict=True):
        for kind in ("operations", "views"):
            row(f"{what}, {kind}", getattr(our, kind), getattr(their, kind))
    our, their = both[0]
    row(f"encode {asked.size} px in {asked.dtype}, GB moved", our.moved / 1e9, their.moved / 1e9)


def row(what: str, our: float, their: float) -> None:
    form = "d" if isinstance(our, int) else ".2f"
    print(f"| {what} | {our:{form}} | {their:{form}} | {our / their:.0%} |")


if __name__ == "__main__":
    main()
