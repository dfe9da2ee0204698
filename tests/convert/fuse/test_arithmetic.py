"""Every re-parameterisation, and every operation that runs, against the reference's unit cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from fastvlm_mlx.config import TextConfig, VisionConfig
from fastvlm_mlx.convert.fuse import arithmetic
from fastvlm_mlx.convert.fuse.arithmetic import BatchNorm, Kernel
from fastvlm_mlx.kernels import gelu, swiglu
from fastvlm_mlx.models import vision
from fastvlm_mlx.models.qwen2 import Qwen2

Array = np.ndarray
Unit = dict[str, Array]
ErrorOf = Callable[[Any, Any], float]


def exact_gelu(x: Any) -> Array:
    x = np.asarray(x, np.float64)
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def nhwc(array: Array) -> mx.array:
    return mx.array(array.transpose(0, 2, 3, 1))


@dataclass
class Branches:
    """The training tensors of one case, as the arithmetic wants them."""

    unit: Unit
    prefix: str

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.unit)

    def array(self, name: str) -> mx.array:
        found = self.unit[self.prefix + name]
        return nhwc(found) if found.ndim == 4 else mx.array(found)

    def norm(self, name: str) -> BatchNorm:
        parts = ("weight", "bias", "running_mean", "running_var")
        return BatchNorm(*(self.array(f"{name}.{part}") for part in parts))

    def folded(self, name: str) -> Kernel:
        return arithmetic.fold(self.array(f"{name}.conv.weight"), self.norm(f"{name}.bn"))

    def mobile_one(self, at: str = "") -> Kernel:
        return arithmetic.mobile_one(
            [self.folded(f"{at}rbr_conv.0")],
            self.folded(f"{at}rbr_scale") if self.has(f"{at}rbr_scale") else None,
            self.norm(f"{at}rbr_skip") if self.has(f"{at}rbr_skip") else None,
        )

    def rep_mixer(self) -> Kernel:
        return arithmetic.rep_mixer(
            self.mobile_one("mixer."), self.norm("norm.rbr_skip"), self.array("layer_scale").flatten()
        )

    def large_kernel(self) -> Kernel:
        return arithmetic.large_kernel(self.folded("lkb_origin"), self.folded("small_conv"))

    def positional(self) -> Kernel:
        return arithmetic.positional(Kernel(self.array("pe.weight"), self.array("pe.bias")))


# case -> (how it is fused, the fused tensor's name, stride, groups, whether its output went through GELU)
CASES: dict[str, tuple[Callable[[Branches], Kernel], str, int, int, bool]] = {
    "mobileone_stem": (Branches.mobile_one, "reparam_conv", 2, 1, True),
    "mobileone_dw3_s2": (Branches.mobile_one, "reparam_conv", 2, 8, True),
    "mobileone_dw3_skip_scale": (Branches.mobile_one, "reparam_conv", 1, 8, True),
    "mobileone_1x1_skip": (Branches.mobile_one, "reparam_conv", 1, 1, True),
    "mobileone_mult2_se": (Branches.mobile_one, "reparam_conv", 1, 16, True),
    "repmixer": (Branches.rep_mixer, "reparam_conv", 1, 8, False),
    "lkb": (Branches.large_kernel, "lkb_reparam", 2, 8, True),
    "cpe": (Branches.positional, "reparam_conv", 1, 8, False),
}


def fused(unit: Unit, case: str) -> Kernel:
    return CASES[case][0](Branches(unit, f"rep.{case}.train."))


def test_every_unit_case_is_tested(unit: Unit) -> None:
    assert {key.split(".")[1] for key in unit if key.startswith("rep.")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_fused_kernel_equals_the_references(case: str, unit: Unit, relative_error: ErrorOf) -> None:
    kernel, name = fused(unit, case), f"rep.{case}.fused.{CASES[case][1]}"
    assert relative_error(kernel.weight, nhwc(unit[f"{name}.weight"])) <= 1e-6
    assert relative_error(kernel.bias, unit[f"{name}.bias"]) <= 1e-6


@pytest.mark.parametrize("case", [case for case in CASES if case != "mobileone_mult2_se"])
def test_fused_block_equals_training_block(case: str, unit: Unit, relative_error: ErrorOf) -> None:
    kernel, (_, _, stride, groups, activated) = fused(unit, case), CASES[case]
    x, y = nhwc(unit[f"rep.{case}.x"]), nhwc(unit[f"rep.{case}.y"])
    found = mx.conv2d(x, kernel.weight, stride, kernel.weight.shape[1] // 2, groups=groups) + kernel.bias
    assert relative_error(gelu(found) if activated else found, y) <= 5e-6


def test_fused_expansion_equals_training_block(unit: Unit, relative_error: ErrorOf) -> None:
    case = "rep.mobileone_mult2_se"
    expand = vision.Expand(VisionConfig(dims=(1, 2, 4, 8, 16)))
    kernel = fused(unit, "mobileone_mult2_se")
    order = mx.array([*range(0, 32, 2), *range(1, 32, 2)])  # `DepthwiseConv` holds first outputs first
    expand.depthwise.weight, expand.depthwise.bias = kernel.weight[order], kernel.bias[order]
    load_squeeze_excite(expand, unit, f"{case}.train.se")
    assert relative_error(expand(nhwc(unit[f"{case}.x"])), nhwc(unit[f"{case}.y"])) <= 5e-6


def load_squeeze_excite(expand: vision.Expand, unit: Unit, at: str) -> None:
    for linear, name in ((expand.squeeze, "reduce"), (expand.excite, "expand")):
        linear.weight = mx.array(unit[f"{at}.{name}.weight"][:, :, 0, 0])
        linear.bias = mx.array(unit[f"{at}.{name}.bias"])


@pytest.mark.parametrize("per_group", [1, 4])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_identity_kernel_changes_nothing(size: int, per_group: int) -> None:
    x = mx.random.normal((2, 5, 6, 8), key=mx.random.key(0))
    weight = arithmetic.identity(8, size, per_group).weight
    assert mx.array_equal(mx.conv2d(x, weight, 1, size // 2, groups=8 // per_group), x)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_padded_kernel_is_the_same_convolution(size: int) -> None:
    x = mx.random.normal((2, 5, 6, 8), key=mx.random.key(0))
    kernel = Kernel(mx.random.normal((8, 1, 1, 1), key=mx.random.key(1)), mx.zeros((8,)))
    wide = arithmetic.padded(kernel, size)
    assert wide.weight.shape == (8, size, size, 1)
    assert mx.array_equal(mx.conv2d(x, wide.weight, 1, size // 2, groups=8), x * kernel.weight.flatten())


@pytest.mark.parametrize("multiplier", [1, 2, 4])
def test_widening_convolution_equals_a_grouped_one(multiplier: int, relative_error: ErrorOf) -> None:
    x = mx.random.normal((2, 9, 6, 8), key=mx.random.key(0))
    weight = mx.random.normal((8 * multiplier, 7, 7, 1), key=mx.random.key(1))
    bias = mx.random.normal((8 * multiplier,), key=mx.random.key(2))
    conv = vision.DepthwiseConv(8, 7, stride=2, widening=multiplier)
    order = mx.array([i for first in range(multiplier) for i in range(first, 8 * multiplier, multiplier)])
    conv.weight, conv.bias = weight[order], bias[order]
    expected = (mx.conv2d(x, weight, 2, 3, groups=8) + bias)[..., order]
    assert relative_error(conv(x), expected) <= 1e-6


# --- the operations that run ---


def test_gelu_is_the_exact_one(unit: Unit) -> None:
    found = np.array(gelu(mx.array(unit["gelu.x"])))
    assert np.abs(found - unit["gelu.y"]).max() <= 1e-6  # the tanh form is off by 5e-4
    assert np.abs(found - exact_gelu(unit["gelu.x"])).max() <= 1e-6


def test_swiglu_gates_with_silu(relative_error: ErrorOf) -> None:
    gate, up = mx.random.normal((2, 3, 64), key=mx.random.key(0)) * 4
    g, u = np.array(gate, np.float64), np.array(up, np.float64)
    assert relative_error(swiglu(gate, up), g / (1 + np.exp(-g)) * u) <= 1e-6


def test_layer_norm_is_over_channels_with_the_references_eps(unit: Unit, relative_error: ErrorOf) -> None:
    weight, bias = mx.array(unit["ln.weight"]), mx.array(unit["ln.bias"])
    found = mx.fast.layer_norm(nhwc(unit["ln.x"]), weight, bias, vision._LAYER_NORM_EPS)
    assert relative_error(found, nhwc(unit["ln.y_eps1e-5"])) <= 2e-6
    assert relative_error(found, nhwc(unit["ln.y_eps1e-6_WRONG"])) > 1e-3


def test_rms_norm_has_the_references_eps(unit: Unit, relative_error: ErrorOf) -> None:
    config = TextConfig(64, 1, 4, 2, 8, 8, tied=True)
    norm = Qwen2(config).norm
    norm.weight = mx.array(unit["rms.weight"])
    assert relative_error(norm(mx.array(unit["rms.x"])), unit["rms.y"]) <= 2e-6


def test_squeeze_excite_equals_the_references(unit: Unit, relative_error: ErrorOf) -> None:
    expand = vision.Expand(VisionConfig(dims=(1, 2, 4, 8, 16)))
    expand.depthwise = lambda x: mx.concatenate(
        [x[..., 0::2], x[..., 1::2]], axis=-1
    )  # so that what is squeezed is x itself
    load_squeeze_excite(expand, unit, "se")
    expected = exact_gelu(nhwc(unit["se.y"]))  # after the gate comes the activation
    assert relative_error(expand(nhwc(unit["se.x"])), expected) <= 2e-6


def test_attention_equals_the_references(
    unit: Unit, monkeypatch: pytest.MonkeyPatch, relative_error: ErrorOf
) -> None:
    attention = vision.TowerAttention(96, 32)
    scale = mx.where(mx.arange(288) < 96, 32**-0.5, 1.0)  # 1/√d is inside the query rows
    attention.qkv.weight = mx.array(unit["mhsa.qkv.weight"]) * scale[:, None]
    attention.qkv.bias = mx.zeros((288,))
    attention.proj = nn.Linear(96, 96)
    attention.proj.weight = mx.array(unit["mhsa.proj.weight"])
    attention.proj.bias = mx.array(unit["mhsa.proj.bias"])
    monkeypatch.setattr(vision.mx.fast, "layer_norm", lambda x, *_: x)  # the case is attention alone
    x = nhwc(unit["mhsa.x"])
    found, bias = attention(x)
    assert relative_error(found - x + bias, nhwc(unit["mhsa.y"])) <= 5e-6
