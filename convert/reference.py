"""A checkpoint as it was trained, run with nothing fused: the outside view that `--verify` holds fusing
against.

Branches, BatchNorms and layer scales stay apart, and so do q, k, v and gate, up. Parts that a checkpoint
stores fused are run as they are stored. No rule of `fuse` is used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import mlx.core as mx

from ..config import ModelConfig, Quantization, VisionConfig
from ..kernels import depthwise, gelu
from ..models.vision import pooled
from ..prompt import Picture, Prompt

Raw = Mapping[str, mx.array]
BATCH_NORM_EPS = 1e-5
POOLS = "vision.multi_scale.pools."
STATISTICS = ("running_mean", "running_var")


def observe(
    raw: Raw, config: ModelConfig, pixels: mx.array, seen: dict[str, mx.array] | None = None
) -> dict[str, mx.array]:
    """The tower with all its branches: what `FastViTHD.trace` yields for each stage and, last, the features.

    With `seen`, BatchNorm uses the statistics of this batch, as in training, and records them there; without,
    the stored ones.
    """
    return dict(_Tower(raw, config.vision, seen).trace(pixels))


def features_of(
    raw: Raw, config: ModelConfig, pixels: mx.array, seen: dict[str, mx.array] | None = None
) -> mx.array:
    """(B, H, W, 3) -> (B, h, w, features), as `observe`"""
    *_, features = observe(raw, config, pixels, seen).values()
    return features


class Reference:
    """A whole model from raw tensors, in float32."""

    def __init__(self, raw: Raw, config: ModelConfig, packed: Mapping[str, Quantization]) -> None:
        self._config, self._text = config, config.text
        self._raw, self._packed = raw, packed
        self._tower = {
            name: self._dense(name) for name in raw if name.startswith("vision.") and self._own(name)
        }

    def features(self, pixels: mx.array) -> mx.array:
        """(1, H, W, 3) -> (1, h, w, features)"""
        return features_of(self._tower, self._config, pixels)

    def logits(self, prompt: Prompt, last: int) -> mx.array:
        """(positions, vocabulary) of the `last` positions at most"""
        x = mx.concatenate(
            [
                self._project(self.features(part.pixels))
                if isinstance(part, Picture)
                else self._dense("language.embedding.weight")[mx.array(part.ids)]
                for part in prompt
            ]
        )[None]
        for number in range(self._text.layers):
            x = self._layer(f"language.layers.{number}", x)
            mx.eval(x)  # a layer's weights in float32 at a time
        x = mx.fast.rms_norm(x[:, -last:], self._dense("language.norm.weight"), self._text.norm_eps)
        head = "language.embedding" if self._text.tied else "language.head"
        return (x @ self._dense(f"{head}.weight").T)[0]

    def _project(self, features: mx.array) -> mx.array:
        x = features.reshape(-1, features.shape[-1])
        return self._linear("projector.fc2", gelu(self._linear("projector.fc1", x)))

    def _layer(self, name: str, x: mx.array) -> mx.array:
        text, (_, length, width) = self._text, x.shape

        def heads(part: str, count: int) -> mx.array:
            rows = self._linear(f"{name}.attention.{part}", normed)
            return rows.reshape(1, length, count, text.head_dim).swapaxes(1, 2)

        def turned(rows: mx.array) -> mx.array:
            return mx.fast.rope(
                rows, text.head_dim, traditional=False, base=text.rope_theta, scale=1.0, offset=0
            )

        normed = mx.fast.rms_norm(x, self._dense(f"{name}.attention_norm.weight"), text.norm_eps)
        q, k, v = heads("q", text.heads), heads("k", text.kv_heads), heads("v", text.kv_heads)
        attended = mx.fast.scaled_dot_product_attention(
            turned(q), turned(k), v, scale=text.head_dim**-0.5, mask="causal"
        )
        x = x + self._linear(f"{name}.attention.out", attended.swapaxes(1, 2).reshape(1, length, width))
        normed = mx.fast.rms_norm(x, self._dense(f"{name}.mlp_norm.weight"), text.norm_eps)
        gate, up = self._linear(f"{name}.mlp.gate", normed), self._linear(f"{name}.mlp.up", normed)
        return x + self._linear(f"{name}.mlp.down", gate * mx.sigmoid(gate) * up)

    def _linear(self, name: str, x: mx.array) -> mx.array:
        y = x @ self._dense(f"{name}.weight").T
        return y + self._dense(f"{name}.bias") if f"{name}.bias" in self._raw else y

    def _dense(self, name: str) -> mx.array:
        array, how = self._raw[name], self._packed.get(name.removesuffix(".weight"))
        if how is None or not name.endswith(".weight"):
            return array.astype(mx.float32)
        scales, biases = (
            self._raw[name.replace(".weight", f".{part}")].astype(mx.float32) for part in ("scales", "biases")
        )
        return mx.dequantize(array, scales, biases, how.group_size, how.bits)

    def _own(self, name: str) -> bool:
        """Whether it is a tensor of the model, not how one is packed."""
        path, _, part = name.rpartition(".")
        return path not in self._packed or part not in ("scales", "biases")


Moments = tuple[mx.array, mx.array]  # mean and variance by channel
Affine = tuple[mx.array, mx.array]  # y = gain · x + shift


class _Tower:
    """The reference's forward pass in its own terms, over raw names.

    A BatchNorm is worked out as a gain and a shift. Branches that only scale the input need no pass of their
    own then: their statistics follow from the input's.
    """

    def __init__(self, raw: Mapping[str, mx.array], config: VisionConfig, seen: dict[str, mx.array] | None):
        self._raw, self._config, self._seen = raw, config, seen

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
                x = self._position(f"{stage}.position", x)
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
                pooled(outputs[pool.stage], pool.factor, self._raw.get(f"{POOLS}{number}.weight"))
                for number, pool in enumerate(config.pools)
            ]
            yield "multi_scale", mx.concatenate([*earlier, x], axis=-1)

    def _block(self, name: str, x: mx.array, attends: bool) -> mx.array:
        if attends:
            x = x + self._scale(f"{name}.layer_scale_1") * self._attention(name, x)
            scale = self._scale(f"{name}.layer_scale_2")
        else:
            x = self._rep_mixer(f"{name}.mixer", x)
            scale = self._scale(f"{name}.layer_scale")
        y = self._conv_norm(f"{name}.ffn.depthwise", x)
        return x + scale * self._linear(f"{name}.ffn.fc2", gelu(self._linear(f"{name}.ffn.fc1", y)))

    def _scale(self, name: str) -> mx.array:
        return self._raw[name].flatten()

    def _rep_mixer(self, name: str, x: mx.array) -> mx.array:
        if f"{name}.weight" in self._raw:
            return self._biased(name, x)
        moments = _moments(x)
        less = self._affine(f"{name}.norm.skip", moments)
        mixed = self._mobile_one(f"{name}.mixer", x, less=less, moments=moments)
        return x + self._scale(f"{name}.layer_scale") * mixed

    def _large_kernel(self, name: str, x: mx.array) -> mx.array:
        if f"{name}.weight" in self._raw:
            return self._biased(name, x, 2)
        return self._conv_norm(f"{name}.large", x, 2) + self._conv_norm(f"{name}.small", x, 2)

    def _position(self, name: str, x: mx.array) -> mx.array:
        return self._biased(name, x) if f"{name}.weight" in self._raw else x + self._biased(f"{name}.conv", x)

    def _biased(self, name: str, x: mx.array, stride: int = 1) -> mx.array:
        return self._conv(name, x, stride) + self._raw[f"{name}.bias"]

    def _attention(self, name: str, x: mx.array) -> mx.array:
        batch, height, width, dim = x.shape
        x = mx.fast.layer_norm(
            x.reshape(batch, -1, dim), self._raw[f"{name}.norm.weight"], self._raw[f"{name}.norm.bias"], 1e-5
        )
        head_dim = self._config.head_dim
        qkv = x @ self._raw[f"{name}.attention.qkv.weight"].T
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
        if f"{name}.weight" in self._raw:  # fused before
            return self._biased(name, x, stride)
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
        gain = self._raw[f"{name}.weight"] * mx.rsqrt(var + BATCH_NORM_EPS)
        return gain, self._raw[f"{name}.bias"] - mean * gain

    def _linear(self, name: str, x: mx.array) -> mx.array:
        return x @ self._raw[f"{name}.weight"].flatten(1).T + self._raw[f"{name}.bias"]


def _moments(x: mx.array) -> Moments:
    """One pass each: what cancels in the difference does not matter at these magnitudes."""
    flat = x.flatten(0, -2)
    mean = flat.mean(0)
    return mean, mx.maximum((flat * flat).mean(0) - mean * mean, 0)
