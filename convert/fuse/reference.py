"""The trained model as its paper has it, nothing fused: the definition that fused weights are held against.

Written over raw names and independent of the fusing code, whose mistakes it must not share. A place that is
stored fused runs as it is stored. Slow. Training takes the statistics of a batch from the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import mlx.core as mx

from ...config import ModelConfig, Quantization, TextConfig
from ...kernels import depthwise, gelu
from ...models.vision import pooled

STATISTICS = ("running_mean", "running_var")
_BATCH_NORM_EPS = 1e-5
_LAYER_NORM_EPS = 1e-5
_POOLS = "vision.multi_scale.pools."


def observe(
    raw: Mapping[str, mx.array],
    config: ModelConfig,
    pixels: mx.array,
    seen: dict[str, mx.array] | None = None,
) -> dict[str, mx.array]:
    """The tower with all its branches: what `FastViTHD.trace` yields for each stage and, last, the features.

    With `seen`, BatchNorm uses the statistics of this batch, as in training, and notes them there; without,
    the stored ones.
    """
    return dict(_Tower(raw, config, seen).trace(pixels))


def features_of(
    raw: Mapping[str, mx.array],
    config: ModelConfig,
    pixels: mx.array,
    seen: dict[str, mx.array] | None = None,
) -> mx.array:
    """(B, H, W, 3) -> (B, h, w, features), as `observe`"""
    *_, features = observe(raw, config, pixels, seen).values()
    return features


Moments = tuple[mx.array, mx.array]  # mean and variance by channel
Affine = tuple[mx.array, mx.array]  # y = gain · x + shift


class _Tower:
    """The reference's forward pass in its own terms, over raw names.

    A BatchNorm is worked out as a gain and a shift. Branches that only scale the input need no pass of their
    own then: their statistics follow from the input's.
    """

    def __init__(self, raw: Mapping[str, mx.array], config: ModelConfig, seen: dict[str, mx.array] | None):
        self._raw, self._config, self._seen = raw, config.vision, seen

    def trace(self, x: mx.array) -> Iterator[tuple[str, mx.array]]:
        config, outputs = self._config, []
        for name, stride in (("conv", 2), ("depthwise", 2), ("pointwise", 1)):
            x = gelu(self._mobile_one(f"vision.stem.{name}", x, stride))
        for index, depth in enumerate(config.layers):
            stage = f"vision.stages.{index}"
            if index:
                step = f"{stage}.downsample"
                x = gelu(self._large_kernel(f"{step}.depthwise", x))
                x = gelu(self._mobile_one(f"{step}.pointwise", x))
            attends = index >= config.attention_from
            if attends:
                x = self._positional(f"{stage}.position", x)
            for number in range(depth):
                x = self._block(f"{stage}.blocks.{number}", x, attends)
            yield f"stages.{index}.blocks", x
            outputs.append(x)
        x = self._mobile_one("vision.expand.depthwise", x)
        gate = mx.maximum(self._linear("vision.expand.squeeze", x.mean((1, 2), keepdims=True)), 0)
        x = gelu(x * mx.sigmoid(self._linear("vision.expand.excite", gate)))
        yield "expand", x
        if config.multi_scale:
            earlier = [
                pooled(outputs[pool.stage], pool.factor, self._raw.get(f"{_POOLS}{number}.weight"))
                for number, pool in enumerate(config.pools)
            ]
            yield "multi_scale", mx.concatenate([*earlier, x], axis=-1)

    def _block(self, name: str, x: mx.array, attends: bool) -> mx.array:
        raw = self._raw
        if attends:
            x = x + raw[f"{name}.layer_scale_1"].flatten() * self._attention(name, x)
            scale = raw[f"{name}.layer_scale_2"].flatten()
        elif self._is_fused(f"{name}.mixer"):
            x = self._fused(f"{name}.mixer", x)
            scale = raw[f"{name}.layer_scale"].flatten()
        else:
            mixer, moments = f"{name}.mixer", _moments(x)
            gain, shift = self._affine(f"{mixer}.norm.skip", moments)
            mixed = self._mobile_one(f"{mixer}.mixer", x, less=(gain, shift), moments=moments)
            x = x + raw[f"{mixer}.layer_scale"].flatten() * mixed
            scale = raw[f"{name}.layer_scale"].flatten()
        y = self._conv_norm(f"{name}.ffn.depthwise", x)
        return x + scale * self._linear(f"{name}.ffn.fc2", gelu(self._linear(f"{name}.ffn.fc1", y)))

    def _large_kernel(self, name: str, x: mx.array) -> mx.array:
        if self._is_fused(name):
            return self._fused(name, x, 2)
        return self._conv_norm(f"{name}.large", x, 2) + self._conv_norm(f"{name}.small", x, 2)

    def _positional(self, name: str, x: mx.array) -> mx.array:
        return self._fused(name, x) if self._is_fused(name) else x + self._fused(f"{name}.conv", x)

    def _is_fused(self, name: str) -> bool:
        return f"{name}.weight" in self._raw

    def _fused(self, name: str, x: mx.array, stride: int = 1) -> mx.array:
        """A convolution that is stored whole, with its bias."""
        return self._conv(name, x, stride) + self._raw[f"{name}.bias"]

    def _attention(self, name: str, x: mx.array) -> mx.array:
        batch, height, width, dim = x.shape
        x = mx.fast.layer_norm(
            x.reshape(batch, -1, dim),
            self._raw[f"{name}.norm.weight"],
            self._raw[f"{name}.norm.bias"],
            _LAYER_NORM_EPS,
        )
        head_dim = self._config.head_dim
        qkv = x @ self._raw[f"{name}.attention.qkv.weight"].flatten(1).T
        parts = mx.split(qkv.reshape(batch, -1, 3, dim // head_dim, head_dim), 3, axis=2)
        q, k, v = (part.squeeze(2).swapaxes(1, 2) for part in parts)
        x = mx.fast.scaled_dot_product_attention(q, k, v, scale=head_dim**-0.5)
        return self._linear(f"{name}.attention.proj", x.swapaxes(1, 2).reshape(batch, height, width, dim))

    def _mobile_one(
        self,
        name: str,
        x: mx.array,
        stride: int = 1,
        *,
        less: Affine | None = None,
        moments: Moments | None = None,
    ) -> mx.array:
        """The sum of its branches, `less` an affine function of the input."""
        if self._is_fused(name):
            return self._fused(name, x, stride)
        y, number = mx.zeros(()), 0
        while f"{name}.kxk.{number}.conv.weight" in self._raw:
            y = y + self._conv_norm(f"{name}.kxk.{number}", x, stride)
            number += 1
        own = [(-less[0], -less[1])] if less else []
        if f"{name}.skip.weight" in self._raw:
            own.append(self._affine(f"{name}.skip", moments or _moments(x)))
        if f"{name}.scale.conv.weight" in self._raw:
            weight = self._raw[f"{name}.scale.conv.weight"].flatten()
            times = weight.size // x.shape[-1]
            if times == 1:
                mean, var = moments or _moments(x)
                gain, shift = self._affine(f"{name}.scale.bn", (weight * mean, weight * weight * var))
                own.append((weight * gain, shift))
            else:
                y = y + self._norm(f"{name}.scale.bn", mx.repeat(x, times, axis=-1) * weight)
        if not own:
            return y
        return y + x * sum(gain for gain, _ in own) + sum(shift for _, shift in own)

    def _conv_norm(self, name: str, x: mx.array, stride: int = 1) -> mx.array:
        return self._norm(f"{name}.bn", self._conv(f"{name}.conv", x, stride))

    def _conv(self, name: str, x: mx.array, stride: int = 1) -> mx.array:
        weight = self._raw[f"{name}.weight"]
        if weight.shape[1] == 1:
            return x @ weight.flatten(1).T
        if weight.shape[-1] == x.shape[-1]:
            return mx.conv2d(x, weight, stride, weight.shape[1] // 2)
        times = weight.shape[0] // x.shape[-1]  # the kernels want all channels' first outputs first
        if times == 1:
            return depthwise(weight, stride)(x)
        residues = mx.unflatten(weight, 0, (-1, times)).swapaxes(0, 1).flatten(0, 1)
        y = depthwise(residues, stride)(x)
        return mx.unflatten(y, -1, (times, -1)).swapaxes(-1, -2).flatten(-2)

    def _norm(self, name: str, x: mx.array) -> mx.array:
        gain, shift = self._affine(name, None if self._seen is None else _moments(x))
        return x * gain + shift

    def _affine(self, name: str, moments: Moments | None) -> Affine:
        """Of these statistics where a batch's are to be used, else of the stored ones."""
        if self._seen is None or moments is None:
            mean, var = (self._raw[f"{name}.{part}"] for part in STATISTICS)
        else:
            mean, var = moments
            self._seen |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
        gain = self._raw[f"{name}.weight"] * mx.rsqrt(var + _BATCH_NORM_EPS)
        return gain, self._raw[f"{name}.bias"] - mean * gain

    def _linear(self, name: str, x: mx.array) -> mx.array:
        return x @ self._raw[f"{name}.weight"].flatten(1).T + self._raw[f"{name}.bias"]


def dense(raw: Mapping[str, mx.array], packed: Mapping[str, Quantization]) -> dict[str, mx.array]:
    """All tensors in float32; matrices that are stored quantized are unpacked."""
    arrays: dict[str, mx.array] = {}
    for name, array in raw.items():
        path, _, kind = name.rpartition(".")
        how = packed.get(path)
        if how is None or kind == "bias":
            arrays[name] = array.astype(mx.float32)
        elif kind == "weight":
            scales, biases = (raw[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            arrays[name] = mx.dequantize(array, scales, biases, how.group_size, how.bits)
    return arrays


def projected(raw: Mapping[str, mx.array], features: mx.array) -> mx.array:
    """(B, h, w, features) -> (B, h·w, d)"""
    x = gelu(_product(raw, "projector.fc1", features.flatten(1, 2)))
    return _product(raw, "projector.fc2", x)


def hidden(raw: Mapping[str, mx.array], text: TextConfig, x: mx.array) -> mx.array:
    """Qwen2 with every matrix apart: embeddings (L, d) -> (L, d)"""
    for index in range(text.layers):
        layer = f"language.layers.{index}"
        x = x + _causal(raw, f"{layer}.attention", text, _rms_norm(raw, f"{layer}.attention_norm", text, x))
        y = _rms_norm(raw, f"{layer}.mlp_norm", text, x)
        gate, up = (_product(raw, f"{layer}.mlp.{name}", y) for name in ("gate", "up"))
        x = x + _product(raw, f"{layer}.mlp.down", gate * mx.sigmoid(gate) * up)
    return _rms_norm(raw, "language.norm", text, x)


def logits(raw: Mapping[str, mx.array], text: TextConfig, x: mx.array) -> mx.array:
    """(L, d) -> (L, vocabulary)"""
    return _product(raw, "language.embedding" if text.tied else "language.head", x)


def _causal(raw: Mapping[str, mx.array], name: str, text: TextConfig, x: mx.array) -> mx.array:
    q, k, v = (
        mx.unflatten(_product(raw, f"{name}.{part}", x), -1, (-1, text.head_dim)).swapaxes(0, 1)
        for part in "qkv"
    )
    q, k = (_rotated(heads, text) for heads in (q, k))
    k, v = (mx.repeat(heads, text.heads // text.kv_heads, axis=0) for heads in (k, v))
    scores = q @ k.swapaxes(1, 2) * text.head_dim**-0.5
    places = mx.arange(len(x))
    scores = mx.where(places[:, None] >= places, scores, -mx.inf)
    return _product(raw, f"{name}.out", (mx.softmax(scores, axis=-1) @ v).swapaxes(0, 1).flatten(1))


def _rotated(heads: mx.array, text: TextConfig) -> mx.array:
    """(heads, L, head_dim); the halves of a head are the two parts of complex numbers."""
    half = text.head_dim // 2
    frequencies = text.rope_theta ** (-mx.arange(half, dtype=mx.float32) / half)
    angles = mx.arange(heads.shape[1], dtype=mx.float32)[:, None] * frequencies
    sin, cos = mx.sin(angles), mx.cos(angles)
    real, imaginary = heads[..., :half], heads[..., half:]
    return mx.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], axis=-1)


def _rms_norm(raw: Mapping[str, mx.array], name: str, text: TextConfig, x: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).mean(-1, keepdims=True) + text.norm_eps) * raw[f"{name}.weight"]


def _product(raw: Mapping[str, mx.array], name: str, x: mx.array) -> mx.array:
    y = x @ raw[f"{name}.weight"].T
    return y + raw[f"{name}.bias"] if f"{name}.bias" in raw else y


def _moments(x: mx.array) -> Moments:
    """One pass each: what cancels in the difference does not matter at these magnitudes."""
    flat = x.flatten(0, -2)
    mean = flat.mean(0)
    return mean, mx.maximum((flat * flat).mean(0) - mean * mean, 0)
