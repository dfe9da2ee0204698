"""`convert --verify` fails where fusing is wrong: every rule is broken in turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import LAYOUT_OF, golden
from command import Run

from fastvlm_mlx.convert import fuse, reparam, verify
from fastvlm_mlx.convert.reparam import BatchNorm, Kernel
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.errors import CheckpointError

Broken = Callable[..., Any]


def one_branch_lost(branches: list[Kernel], scale: Kernel | None, skip: BatchNorm | None) -> Kernel:
    return SOUND["mobile_one"](branches, None, skip)


def bare_mixer(mixer: Kernel, norm: BatchNorm, layer_scale: mx.array) -> Kernel:
    return mixer


def shifts_lost(weight: mx.array, norm: BatchNorm) -> Kernel:
    kernel = SOUND["fold"](weight, norm)
    return Kernel(kernel.weight, kernel.bias - norm.shift)


def scales_lost(raw: Any, block: str, *rest: Any) -> Any:
    return SOUND["_attention"](
        {**raw, f"{block}.layer_scale_1": raw[f"{block}.layer_scale_1"] * 1.1}, block, *rest
    )


def affine_lost(raw: Any, block: str, *rest: Any) -> Any:
    return SOUND["_attention"]({**raw, f"{block}.norm.bias": raw[f"{block}.norm.bias"] * 0}, block, *rest)


def gate_and_up(parts: list[Any]) -> Any:
    return SOUND["_joined"](parts[::-1] if len(parts) == 2 else parts)


def keys_and_values(parts: list[Any]) -> Any:
    return SOUND["_joined"]([parts[0], parts[2], parts[1]] if len(parts) == 3 else parts)


SOUND = {
    **{name: getattr(reparam, name) for name in ("mobile_one", "fold")},
    **{name: getattr(fuse, name) for name in ("_attention", "_joined")},
}
MUTATIONS: dict[str, tuple[Any, str, Broken]] = {
    "a branch of MobileOne": (reparam, "mobile_one", one_branch_lost),
    "RepMixer": (reparam, "rep_mixer", bare_mixer),
    "PatchEmbed's small kernel": (reparam, "large_kernel", lambda large, small: large),
    "RepCPE's skip": (reparam, "positional", lambda conv: conv),
    "a norm's shift": (reparam, "fold", shifts_lost),
    "ConvFFN's norm": (fuse, "_norm", lambda raw, name: _without_shift(raw, name)),
    "layer scales": (fuse, "_attention", scales_lost),
    "attention's affine": (fuse, "_attention", affine_lost),
    "the order of q, k, v": (fuse, "_joined", keys_and_values),
    "the order of gate, up": (fuse, "_joined", gate_and_up),
    "the order of depthwise outputs": (fuse, "_residues_first", lambda kernel, times: kernel),
}


def _without_shift(raw: Any, name: str) -> BatchNorm:
    norm = BatchNorm(*(raw[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))
    if not name.endswith("ffn.depthwise.bn"):
        return norm
    return BatchNorm(norm.weight, norm.bias * 0, norm.running_mean, norm.running_var)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_SIZE", 128)


@pytest.mark.parametrize("source", LAYOUT_OF)
def test_every_layout_verifies(source: str, tmp_path: Path) -> None:
    done = convert(golden(source), tmp_path / "out", verify=True)
    assert done.comparison is not None
    assert done.comparison.problem is None
    fusing, rounding = done.comparison.differences
    assert fusing.features < 1e-4
    assert fusing.features > 0  # two ways of computing it, not one twice
    assert rounding.features == 0


@pytest.mark.parametrize(("where", "name", "broken"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_rule_is_found(
    where: Any, name: str, broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    with pytest.raises(CheckpointError, match=r"^fusing, against the unfused source: .*limit"):
        convert(golden("apple-train"), tmp_path / "out", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out-unverified"]
    card = (tmp_path / "out-unverified" / "README.md").read_text(encoding="utf-8")
    assert "## Unverified" in card


def test_what_is_in_run_form_already_is_compared_by_rounding_alone(run: Run, tmp_path: Path) -> None:
    assert run("convert", golden("apple-train"), "-o", tmp_path / "one").code == 0
    done = convert(tmp_path / "one", tmp_path / "two", dtype=mx.float16, verify=True)
    assert done.comparison is not None
    (rounding,) = done.comparison.differences
    assert rounding.what == "float16, against the fused result"
    assert rounding.features > 0


def test_too_much_rounding_is_told_with_its_row_and_its_limit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = verify.Limits(features=1e-9, logits=None, kl=1e-9, top1=1.0)
    monkeypatch.setitem(verify.ROUNDING, "8 bit", strict)
    ran = run("convert", golden("apple-train"), "-o", tmp_path / "out", "-q", "--q-bits", 8, "--verify")
    assert ran.code == 1
    assert re.search(r"8 bit, against the fused result: KL divergence \S+ \(limit 1e-09\)", ran.err)
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out-unverified" / "model.safetensors").exists()


def test_a_verified_result_replaces_an_unverified_one(run: Run, tmp_path: Path) -> None:
    assert run("convert", golden("apple-train"), "-o", tmp_path / "out-unverified").code == 0
    assert run("convert", golden("apple-train"), "-o", tmp_path / "out", "--verify").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
