"""`convert --verify`: passes for every layout, and fails for every fusing rule that is broken."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import pytest
import scales
from checkpoints import LAYOUT_OF, PACKINGS, golden
from command import MODEL, Run, content

import fastvlm_mlx
from fastvlm_mlx.convert import verify
from fastvlm_mlx.convert.fuse import arithmetic, fuse, reference
from fastvlm_mlx.convert.fuse.arithmetic import BatchNorm, Kernel
from fastvlm_mlx.convert.quantize import RECIPES, uniform
from fastvlm_mlx.convert.read.tensor_names import RawWeights
from fastvlm_mlx.convert.run import UNVERIFIED, convert
from fastvlm_mlx.inputs.image import preprocess
from fastvlm_mlx.inputs.prompt import assemble, render

Mutation = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small picture and one question, so that many conversions are compared in little time."""
    [path, *_] = sorted(verify.PHOTOS.glob("*.png"))

    def cases(config: Any, tokenizer: Any) -> verify.Cases:
        picture = verify._picture(preprocess(path, 128))
        prompt = assemble(render("What is it?", 1), [picture], tokenizer.encode)
        return verify.Cases([picture], [prompt], tokenizer.size)

    monkeypatch.setattr(verify, "_cases", cases)


# --- mutations: each breaks one rule of `fuse` ---


def replacing(where: Any, name: str, change: Callable[[Any], Any]) -> Mutation:
    """`change` makes the wrong function from the right one."""
    return lambda patch: patch.setattr(where, name, change(getattr(where, name)))


def with_raw(name: str, ending: str, fill: float) -> Mutation:
    """A function of `fuse` whose first argument has other values in the tensors of this ending."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(raw: RawWeights, *rest: Any) -> Any:
            return right(
                RawWeights({k: mx.full_like(v, fill) if k.endswith(ending) else v for k, v in raw.items()}),
                *rest,
            )

        return wrong

    return replacing(fuse, name, change)


def norm_of_ffn(change: Callable[[BatchNorm], BatchNorm]) -> Mutation:
    def wrong(right: Callable[..., BatchNorm]) -> Callable[..., BatchNorm]:
        return lambda raw, name: (change if ".ffn." in name else lambda norm: norm)(right(raw, name))

    return replacing(fuse, "_norm", wrong)


def reversing(count: int) -> Mutation:
    """The parts of a joined matrix in another order."""
    return replacing(
        fuse, "_joined", lambda right: lambda parts: right(parts[::-1] if len(parts) == count else parts)
    )


MUTATIONS: dict[str, Mutation] = {
    "MobileOne without its 1×1 branch": replacing(
        arithmetic, "mobile_one", lambda right: lambda branches, scale, skip: right(branches, None, skip)
    ),
    "MobileOne without its skip": replacing(
        arithmetic, "mobile_one", lambda right: lambda branches, scale, skip: right(branches, scale, None)
    ),
    "RepMixer as its bare mixer": replacing(
        arithmetic, "rep_mixer", lambda right: lambda mixer, norm, scale: mixer
    ),
    "PatchEmbed without its small branch": replacing(
        arithmetic, "large_kernel", lambda right: lambda large, small: large
    ),
    "RepCPE without its skip": replacing(arithmetic, "positional", lambda right: lambda conv: conv),
    "ConvFFN's norm without its shift": norm_of_ffn(
        lambda norm: BatchNorm(
            norm.weight, norm.running_mean * norm.gain, norm.running_mean, norm.running_var
        )
    ),
    "ConvFFN's norm without its gain": norm_of_ffn(
        lambda norm: BatchNorm(
            mx.sqrt(norm.running_var + arithmetic.BATCH_NORM_EPS),
            norm.shift + norm.running_mean,
            norm.running_mean,
            norm.running_var,
        )
    ),
    "the norms' epsilon": lambda patch: patch.setattr(arithmetic, "BATCH_NORM_EPS", 1e-3),
    "RepMixer's layer scale": with_raw("rep_mixer", ".mixer.layer_scale", 1),
    "the ConvFFN's layer scale": with_raw("_fuse_tower", ".layer_scale", 1),
    "attention's layer scale": with_raw("_fuse_tower", ".layer_scale_1", 1),
    "the layer scale after attention": with_raw("_fuse_tower", ".layer_scale_2", 1),
    "attention's affine without its gain": with_raw("_attention", ".norm.weight", 1),
    "attention's affine without its shift": with_raw("_attention", ".norm.bias", 0),
    "attention without 1/√d": replacing(
        fuse, "_attention", lambda right: lambda raw, block, packed, head_dim: right(raw, block, packed, 1)
    ),
    "the order of q, k, v": reversing(3),
    "the order of gate, up": reversing(2),
    "the order of a widening depthwise's outputs": replacing(
        fuse, "_residues_first", lambda right: lambda kernel, times: kernel
    ),
    "an identity beside the middle": replacing(
        arithmetic,
        "identity",
        lambda right: lambda *of: Kernel(mx.roll(right(*of).weight, 1, axis=1), right(*of).bias),
    ),
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", MUTATIONS)
def test_every_broken_fusing_rule_fails(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    MUTATIONS[name](monkeypatch)
    done = convert(golden("apple-train"), tmp_path / "out", dtype=mx.float32, verify=True)
    assert done.verification is not None
    fusing, storing = done.verification.comparisons
    assert done.verification.problem is not None
    assert done.verification.problem.startswith(f"not verified: {verify.FUSING}")
    assert not storing.exceeded(), "both of its sides have the mistake"
    assert fusing.exceeded()


# --- unbroken ---


def canonical(at: Path) -> Path:
    return convert(golden("apple-train"), at / "ours", dtype=mx.float32).destination


SOURCES: dict[str, Callable[[Path], Path]] = {
    **{name: lambda at, name=name: golden(name) for name in LAYOUT_OF},  # type: ignore[misc]
    **{
        name: lambda at, packing=packing: checkpoints.build(packing.variant(), at / "packed")  # type: ignore[misc]
        for name, packing in PACKINGS.items()
    },
    "several scales": lambda at: scales.write(at / "scales", "depthwise", (2, 3, 4)),
    "ours": canonical,
}


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_passes(name: str, tmp_path: Path) -> None:
    done = convert(SOURCES[name](tmp_path), tmp_path / "out", verify=True)
    assert done.verification is not None
    assert done.verification.problem is None
    names = [found.name for found in done.verification.comparisons]
    assert names == ([] if done.layout == "fastvlm-mlx" else [verify.FUSING]) + [verify.STORING]
    assert not (tmp_path / "out" / UNVERIFIED).exists()


def test_the_reference_shares_no_fusing_code() -> None:
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "config", "kernels", "models.vision"}


def test_it_is_asked_about_the_example_pictures_too(
    directory_of: Callable[[str], Path],
) -> None:
    vlm = fastvlm_mlx.load(directory_of("apple-fused"))
    cases = verify._cases(vlm.config, vlm.tokenizer)
    examples = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))
    size = cases.pictures[0].pixels.shape[1]
    expected = [verify._picture(preprocess(path, size)).key for path in examples]
    assert [picture.key for picture in cases.pictures[:3]] == expected
    assert (len(cases.pictures), len(cases.prompts)) == (6, 16)


# --- limits ---


@pytest.mark.usefixtures("few")
def test_weights_that_were_written_wrongly_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def damaged(array: mx.array, *how: Any, **options: Any) -> tuple[mx.array, ...]:
        packed, scales, biases = right(array, *how, **options)
        return packed, scales[::-1], biases

    right = mx.quantize
    monkeypatch.setattr(mx, "quantize", damaged)
    done = convert(MODEL, tmp_path / "out", recipe=uniform(8), verify=True)
    assert done.verification is not None
    assert done.verification.problem is not None
    assert verify.STORING in done.verification.problem


def test_limits_follow_from_type_and_recipe() -> None:
    limits = verify.storing_limits
    assert limits("float32", None) == verify.EXACT
    assert limits("float16", uniform(8)) == {"features": 0.02, "KL": 0.1}
    assert limits("float16", RECIPES["mixed-4-8"]) == {"features": 0.02, "KL": 0.5}
    assert limits("float32", uniform(4).with_pictures()) == {"features": 0.75, "KL": 0.5}


# --- as a user meets it ---


def test_a_result_beyond_its_limits_is_kept_named_and_exits_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    MUTATIONS["the order of gate, up"](monkeypatch)
    out = tmp_path / "out"
    done = run("convert", golden("apple-train"), "-o", out, "--verify", "--upload-repo", "me/it", "--dry-run")
    assert (done.code, done.out) == (1, "")  # and nothing is uploaded
    *_, last = done.err.strip().splitlines()
    assert verify.FUSING in last
    assert UNVERIFIED in last
    assert {"config.json", "model.safetensors", "README.md", UNVERIFIED} < set(content(out))
    assert "failed its verification" in (out / "README.md").read_text(encoding="utf-8")
    assert verify.FUSING in (out / UNVERIFIED).read_text(encoding="utf-8")
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["format"] == "fastvlm-mlx"


def test_a_program_that_is_not_installed_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run("convert", MODEL, "-o", tmp_path / "out", "--verify-against", "transformers")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "torch is not installed; run pip install torch transformers timm" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few")
def test_another_programs_outputs_are_a_comparison_of_their_own(tmp_path: Path) -> None:
    def oracle(source: Path, cases: verify.Cases) -> verify.Outputs:
        right = verify._fused_outputs(source, cases)
        return verify.Outputs(right.features, [-logits for logits in right.logits])

    done = convert(MODEL, tmp_path / "out", verify=True, oracle=oracle)
    assert done.verification is not None
    assert done.verification.problem is not None
    assert done.verification.problem.startswith(f"not verified: {verify.ORACLE} gives logits")
