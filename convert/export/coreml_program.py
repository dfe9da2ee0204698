"""The vision tower as a Core ML program, built with coremltools from the run form's weights.

No torch is needed, and building works on Linux too; running needs macOS or iOS. Activations are NCHW. What a
program takes and gives is named as Apple's FastVLM app has it. The picture's size is fixed in each package.
Not covered: sizes that vary, which would rule out the Neural Engine.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ... import __version__
from ...config import STRIDE, VisionConfig
from ...errors import CheckpointError, ConfigError
from ...files.atomic import TOWER_PACKAGE
from ...models.coreml_tower import FEATURES
from ..fuse.released import interleaved

EMBEDDINGS = "image_embeddings"
PRECISIONS = ("float16", "float32")
WEIGHTS = ("int8", "palettize6")
LAYER_NORM_EPS = 1e-5
# Of coremltools' hundred the ones with something to do here: the rest look for what is folded already.
PASSES = (
    "common::const_elimination",
    "common::dedup_op_and_var_names",
    "common::add_fp16_cast",  # which coremltools leaves out for float32
    "common::cast_optimization",
    "common::const_elimination",
    "common::const_deduplication",
    "common::dead_code_elimination",
)

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.uint8]
Weights = Mapping[str, mx.array]


def require() -> Any:
    """coremltools, or how to get it."""
    with _quiet():
        try:
            import coremltools
        except ImportError as error:
            raise ConfigError(
                f"Core ML needs coremltools ({error}); pip install 'fastvlm-mlx[coreml]' "
                "(it comes for Python 3.11 to 3.13)"
            ) from None
        return coremltools


def program(weights: Weights, vision: VisionConfig, size: int, projector: bool = False) -> Any:
    """(1, 3, size, size) in [0, 1] -> (1, tokens, features), or with the projector (1, tokens, d)

    `weights` are the run form's, dense, of any float type; the program is in float32.
    """
    require()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    build = _Build(mb, weights, vision)

    def body(images: Any) -> Any:
        features = build.tower(images)
        rows = mb.reshape(x=features, shape=[1, vision.feature_dim, (size // STRIDE) ** 2])
        if not projector:
            return mb.transpose(x=rows, perm=[0, 2, 1], name=FEATURES)
        hidden = build.gelu(build.linear(mb.transpose(x=rows, perm=[0, 2, 1]), "projector.fc1"))
        return build.linear(hidden, "projector.fc2", name=EMBEDDINGS)

    spec = mb.TensorSpec(shape=(1, 3, size, size), dtype=types.fp32)
    with _quiet():
        return mb.program(input_specs=[spec], opset_version=require().target.iOS16)(body)


def package(built: Any, precision: str, packing: str | None, notes: Mapping[str, str]) -> Any:
    """The program as a model that can be saved; `packing` is of the weights alone.

    Depthwise kernels are not packed: few of the weights, and those that take the most harm, as skips were
    added to them.
    """
    tools = require()
    from coremltools.optimize import coreml as optimize

    name, how = {
        None: ("", None),
        "int8": ("linear_quantize_weights", optimize.OpLinearQuantizerConfig(mode="linear_symmetric")),
        "palettize6": ("palettize_weights", optimize.OpPalettizerConfig(mode="custom", lut_function=palette)),
    }[packing]
    compression = [f"compression::{name}"] if name else []
    pipeline = tools.PassPipeline([*PASSES, *compression, "common::dead_code_elimination"], "fastvlm")
    depthwise = [
        f"{operation.name}{cast}"
        for operation in built.functions["main"].find_ops(op_type="conv")
        if operation.groups is not None and operation.groups.val > 1
        for cast in ("", "_cast_fp16")  # what it is called after the pass of that name
    ]
    config = optimize.OptimizationConfig(global_config=how, op_name_configs=dict.fromkeys(depthwise))
    for step in compression:
        pipeline.set_options(step, {"config": config})
    with _quiet():
        model = tools.convert(
            built,
            convert_to="mlprogram",
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=getattr(tools.precision, precision.upper()),
            compute_units=tools.ComputeUnit.ALL,
            skip_model_load=True,
            pass_pipeline=pipeline,
        )
    model.short_description = "FastViTHD, the vision tower of FastVLM"
    model.version = __version__
    model.user_defined_metadata.update(notes)
    return model


def save(model: Any, folder: Path) -> Path:
    with _quiet():
        model.save(str(folder / TOWER_PACKAGE))
    return folder / TOWER_PACKAGE


def description(path: Path) -> Any:
    """What a package says it takes and gives."""
    tools = require()
    with _quiet():
        try:
            return tools.models.MLModel(str(path), skip_model_load=True).get_spec().description
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: no Core ML package ({_first_line(error)}); export it again"
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def palette(
    values: npt.NDArray[Any], colours: int = 64, rounds: int = 300
) -> tuple[npt.NDArray[Any], Indices]:
    """The colours that values are nearest to, and which is whose: Lloyd's algorithm.

    It starts from the spacing that is best for many colours, by the cube root of how dense values lie.
    """
    flat = np.sort(values.reshape(-1).astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    counts, edges = np.histogram(flat, 4096)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    middles = np.interp((np.arange(colours) + 0.5) / colours * share[-1], share, edges)
    for _ in range(rounds):
        ends = np.concatenate([[0], np.searchsorted(flat, (middles[1:] + middles[:-1]) / 2), [flat.size]])
        held = np.diff(ends)
        middles = np.where(held, np.diff(sums[ends]) / np.maximum(held, 1), middles)
    borders = ((middles[1:] + middles[:-1]) / 2).astype(values.dtype)
    return middles.astype(values.dtype), np.searchsorted(borders, values.reshape(-1)).astype(np.uint8)


class _Build:
    """The tower's blocks as MIL operations, one method each; names as in `models.vision`."""

    def __init__(self, mb: Any, weights: Weights, vision: VisionConfig):
        self._mb, self._weights, self._vision = mb, weights, vision

    def tower(self, x: Any) -> Any:
        dims, outputs = self._vision.dims, []
        x = self.gelu(self._conv(x, "vision.stem.conv", stride=2))
        x = self.gelu(self._conv(x, "vision.stem.depthwise", stride=2, groups=dims[0]))
        x = self.gelu(self._pointwise(x, "vision.stem.pointwise"))
        for index, (dim, depth) in enumerate(zip(dims, self._vision.layers, strict=True)):
            stage, attends = f"vision.stages.{index}", index >= self._vision.attention_from
            if index:
                times, step = dim // dims[index - 1], f"{stage}.downsample"
                x = self._conv(x, f"{step}.depthwise", stride=2, groups=dims[index - 1], times=times)
                x = self.gelu(self._pointwise(self.gelu(x), f"{step}.pointwise", times=times))
            if attends:
                x = self._conv(x, f"{stage}.position", groups=dim)
            for number in range(depth):
                block = f"{stage}.blocks.{number}"
                if attends:
                    x = self._mb.add(x=x, y=self._attention(x, f"{block}.attention"))
                else:
                    x = self._conv(x, f"{block}.mixer", groups=dim)
                x = self._mb.add(x=x, y=self._ffn(x, f"{block}.ffn"))
            outputs.append(x)
        return self._multi_scale(outputs, self._expand(x))

    def gelu(self, x: Any) -> Any:
        return self._mb.gelu(x=x, mode="EXACT")

    def linear(self, x: Any, path: str, **name: str) -> Any:
        weight, bias = self._array(f"{path}.weight"), self._array(f"{path}.bias")
        return self._mb.linear(x=x, weight=weight, bias=bias, **name)

    def _expand(self, x: Any) -> Any:
        x = self._conv(x, "vision.expand.depthwise", groups=self._vision.dims[-1], times=2)
        gate = self._mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True)
        gate = self._mb.relu(x=self._pointwise(gate, "vision.expand.squeeze"))
        gate = self._mb.sigmoid(x=self._pointwise(gate, "vision.expand.excite"))
        return self.gelu(self._mb.mul(x=x, y=gate))

    def _multi_scale(self, outputs: Sequence[Any], features: Any) -> Any:
        if self._vision.multi_scale is None:
            return features
        earlier = []
        for number, pool in enumerate(self._vision.pools):
            x, path = outputs[pool.stage], f"vision.multi_scale.pools.{number}"
            if f"{path}.weight" in self._weights:
                x = self._conv(x, path, stride=pool.factor, groups=pool.dim, margin=0)
            else:
                sides = [pool.factor] * 2
                x = self._mb.avg_pool(x=x, kernel_sizes=sides, strides=sides, pad_type="valid")
            earlier.append(x)
        return self._mb.concat(values=[*earlier, features], axis=1)

    def _ffn(self, x: Any, path: str) -> Any:
        x = self._conv(x, f"{path}.depthwise", groups=x.shape[1])
        return self._pointwise(self.gelu(self._pointwise(x, f"{path}.fc1")), f"{path}.fc2")

    def _attention(self, x: Any, path: str) -> Any:
        mb, head_dim, (_, dim, height, width) = self._mb, self._vision.head_dim, x.shape
        rows = mb.transpose(x=mb.reshape(x=x, shape=[1, dim, height * width]), perm=[0, 2, 1])
        rows = mb.layer_norm(x=rows, axes=[-1], epsilon=np.float32(LAYER_NORM_EPS))
        heads = mb.reshape(
            x=self.linear(rows, f"{path}.qkv"), shape=[1, height * width, 3 * dim // head_dim, head_dim]
        )
        q, k, v = mb.split(x=mb.transpose(x=heads, perm=[0, 2, 1, 3]), num_splits=3, axis=1)
        mixed = mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v)
        rows = mb.reshape(x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[1, height * width, dim])
        rows = mb.transpose(x=self.linear(rows, f"{path}.proj"), perm=[0, 2, 1])
        return mb.reshape(x=rows, shape=[1, dim, height, width])

    def _conv(
        self,
        x: Any,
        path: str,
        *,
        stride: int = 1,
        groups: int = 1,
        times: int = 1,
        margin: int | None = None,
    ) -> Any:
        """A stored convolution; several outputs of a channel stand side by side there."""
        weight = self._array(f"{path}.weight", times).transpose(0, 3, 1, 2)
        bias = f"{path}.bias" in self._weights
        return self._mb.conv(
            x=x,
            weight=weight,
            strides=[stride, stride],
            pad_type="custom",
            pad=[weight.shape[-1] // 2 if margin is None else margin] * 4,
            groups=groups,
            name=_name(path),
            **({"bias": self._array(f"{path}.bias", times)} if bias else {}),
        )

    def _pointwise(self, x: Any, path: str, *, times: int = 1) -> Any:
        weight, bias = self._array(f"{path}.weight"), self._array(f"{path}.bias")
        if times > 1:
            weight = np.array(interleaved(mx.array(weight.T), times)).T
        return self._mb.conv(x=x, weight=weight[:, :, None, None], bias=bias, name=_name(path))

    def _array(self, name: str, times: int = 1) -> Array:
        array = self._weights[name].astype(mx.float32)
        return np.array(interleaved(array, times) if times > 1 else array)


def _name(path: str) -> str:
    return path.replace(".", "_")


@contextmanager
def _quiet() -> Iterator[None]:
    """coremltools tells of every pass, of libraries it misses, and that models do not run on Linux."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
