"""Exports for Swift: what they compute, in our loader and in the real mlx-vlm, and what the check catches."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import synthetic
from checkpoints import GOLDEN, LAYOUT_OF, golden, mlx_vlm_name, mlx_vlm_shape, stored
from command import Run

import fastvlm_mlx
from fastvlm_mlx.convert.export.check.entry import check
from fastvlm_mlx.convert.export.check.requirements import TENSORS
from fastvlm_mlx.convert.export.swift import export
from fastvlm_mlx.convert.export.swift import tensors as tensors_of
from fastvlm_mlx.convert.fuse.arithmetic import BATCH_NORM_EPS
from fastvlm_mlx.convert.read.tensor_names import MLX_VLM
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.errors import CheckpointError, ConfigError
from fastvlm_mlx.inputs.prompt import render
from fastvlm_mlx.inputs.tokenizer import Tokenizer

ErrorOf = Callable[[Any, Any], float]
CONFIG = "config.json"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(golden("apple-train"), tmp_path_factory.mktemp("swift") / "out").destination


SOURCES = (*LAYOUT_OF, "apple-train, converted", "tied-with-a-stored-head", "hf-timm-unfused, converted")


@pytest.mark.parametrize("name", SOURCES)
def test_an_export_computes_what_its_source_does(
    name: str,
    directory_of: Callable[[str], Path],
    vlm_of: Callable[[str], fastvlm_mlx.VLM],
    pixels: dict[str, mx.array],
    relative_error: ErrorOf,
    tmp_path: Path,
) -> None:
    done = export(directory_of(name), tmp_path / "out", dtype=mx.float32)
    assert done.report.healthy
    ours, theirs = fastvlm_mlx.load(done.destination, dtype="float32"), vlm_of(name)
    prompt = ours.prompt("Describe the image.", images=[pixels["A"]])
    assert relative_error(ours.vision(pixels["B"]), theirs.vision(pixels["B"])) <= 2e-5
    assert relative_error(ours.logits(prompt), theirs.logits(prompt)) <= 5e-5


def test_names_and_shapes_are_mlx_vlms_own(exported: Path) -> None:
    theirs = {name: array.shape for name, array in stored(golden("mlx-vlm-f32")).items()}
    assert {name: array.shape for name, array in stored(exported).items()} == theirs


def test_what_is_fused_already_is_written_as_it_was(tmp_path: Path) -> None:
    out = export(golden("mlx-vlm-f32"), tmp_path / "out", dtype=mx.float32).destination
    theirs = stored(golden("mlx-vlm-f32"))
    for name, array in stored(out).items():
        assert mx.array_equal(array, theirs[name]), name


@pytest.mark.parametrize(
    ("name", "tied", "count"),
    [("0.5b", True, 879), ("0.5b", False, 880), ("1.5b", False, 928), ("7b", False, 928)],
)
def test_full_sizes_export_with_exactly_the_names_and_shapes_required(
    name: str, tied: bool, count: int, tmp_path: Path
) -> None:
    source = tmp_path / name
    synthetic.write(source, name)
    listed = json.loads((GOLDEN / "real" / f"tensors_{name}.json").read_text())["tensors"]
    required = {mlx_vlm_name(key): mlx_vlm_shape(key, tuple(shape)) for key, shape in listed.items()}
    required.pop(None)
    saying(CONFIG, "tie_word_embeddings", tied)(source)
    if tied:
        del required["language_model.lm_head.weight"]
    made = tensors_of(source, Tokenizer.load(source), None, mx.float16)
    assert {key: array.shape for key, array in made.stored.items()} == required
    assert len(required) == count
    packed = tensors_of(source, Tokenizer.load(source), 4, mx.float16).stored
    scales = [key for key in packed if key.endswith(".scales")]
    assert len(scales) == 7 * made.config.text.layers + (1 if made.config.text.tied else 2)
    patterns = [re.compile(pattern) for pattern, _ in TENSORS]
    assert all(any(pattern.fullmatch(key) for pattern in patterns) for key in packed)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_the_identity_norm_is_one_in_every_type(dtype: mx.Dtype) -> None:
    var = mx.array(1 - BATCH_NORM_EPS).astype(dtype)
    assert mx.rsqrt(var + mx.array(BATCH_NORM_EPS, dtype)).item() == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_pack_the_language_model_alone(bits: int, tmp_path: Path) -> None:
    done = export(golden("apple-train"), tmp_path / "out", bits=bits)
    weights = stored(done.destination)
    packed = {name for name in weights if name.endswith(".scales")}
    assert packed
    assert all(name.startswith("language_model.") for name in packed)
    said = json.loads((done.destination / CONFIG).read_text())["quantization"]
    assert said == {"group_size": 64, "bits": bits}
    assert done.report.healthy


def test_a_packed_source_stays_packed(directory_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = directory_of("mlx-vlm-4bit")
    out = export(source, tmp_path / "out").destination
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert mx.array_equal(stored(out)[name], stored(source)[name])
    assert "mm_projector.0.scales" not in stored(out)


def test_a_bias_that_no_layer_norm_has_is_refused(tmp_path: Path) -> None:
    convert(golden("apple-train"), tmp_path / "run", dtype=mx.float32)
    file = tmp_path / "run" / "model.safetensors"
    weights = stored(tmp_path / "run")
    name = "vision.stages.3.blocks.0.attention.qkv.bias"
    weights[name] = mx.random.normal(weights[name].shape, key=mx.random.key(0))
    mx.save_safetensors(str(file), weights)
    with pytest.raises(CheckpointError, match=r"qkv\.bias is no LayerNorm's.*export the checkpoint"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "bits", "says"),
    [
        ("apple-fused", 3, "choose one"),
        ("mlx-vlm-4bit", 8, "packed in 4 bits already"),
        ("mlx-vlm-4bit-groups-of-32", None, "groups of 64"),
        ("mlx-vlm-mixed-bits", None, "groups of 64"),
    ],
)
def test_what_the_consumers_cannot_read_is_not_written(
    name: str, bits: int | None, says: str, directory_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        export(directory_of(name), tmp_path / "out", bits=bits)
    assert not (tmp_path / "out").exists()


# --- the check ---

Damage = Callable[[Path], None]


def saying(file: str, key: str, value: Any) -> Damage:
    """A key set; ... takes it away."""

    def damage(at: Path) -> None:
        body = json.loads((at / file).read_text())
        section, _, last = key.rpartition(".")
        place = body[section] if section else body
        if value is ...:
            del place[last]
        else:
            place[last] = value
        (at / file).write_text(json.dumps(body))

    return damage


def tensors(change: Callable[[dict[str, mx.array]], dict[str, mx.array]], form: str = "mlx") -> Damage:
    def damage(at: Path) -> None:
        mx.save_safetensors(str(at / "model.safetensors"), change(stored(at)), {"format": form})

    return damage


def packed(path: str, bits: int = 4) -> Damage:
    """One more matrix packed than there should be."""

    def change(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        parts = mx.quantize(weights.pop(f"{path}.weight"), 64, bits)
        return weights | {
            f"{path}.{p}": a for p, a in zip(("weight", "scales", "biases"), parts, strict=True)
        }

    def damage(at: Path) -> None:
        tensors(change)(at)
        saying(CONFIG, "quantization", {"group_size": 64, "bits": bits})(at)

    return damage


def stray(at: Path) -> None:
    (at / "adapters").mkdir()
    shutil.copy(at / "model.safetensors", at / "adapters" / "lora.safetensors")


HEAD = f"{MLX_VLM.tower}head.proj"
CONV = f"{MLX_VLM.tower}network.6.reparam_conv.weight"
TRAPS: dict[str, tuple[Damage, str]] = {
    "empty vision_config": (saying(CONFIG, "vision_config", {}), "vision_config"),
    "no vision_config": (saying(CONFIG, "vision_config", ...), "vision_config"),
    "a key of it missing": (saying(CONFIG, "vision_config.cls_ratio", ...), "cls_ratio"),
    "a key of it of another type": (saying(CONFIG, "vision_config.mlp_ratios", [4.0] * 5), "mlp_ratios"),
    "layers that are not the weights'": (saying(CONFIG, "vision_config.layers", [2, 12, 24, 4, 2]), "layers"),
    "LlavaProcessor": (
        saying("preprocessor_config.json", "processor_class", "LlavaProcessor"),
        "processor_class",
    ),
    "an image_token_index that drops pictures": (
        saying(CONFIG, "image_token_index", 151646),
        "image_token_index",
    ),
    "a list of eos ids": (saying(CONFIG, "eos_token_id", [482, 480]), "eos_token_id"),
    "another eos id": (saying(CONFIG, "eos_token_id", 480), "<|im_end|>"),
    "tied, with a head": (saying(CONFIG, "tie_word_embeddings", True), "tie_word_embeddings"),
    "tied or not, unsaid": (saying(CONFIG, "tie_word_embeddings", ...), "tie_word_embeddings"),
    "a packed projector": (packed("mm_projector.0"), "mm_projector"),
    "one packed layer of two": (packed("language_model.model.layers.0.mlp.up_proj"), "layers.1"),
    "stray safetensors": (stray, "adapters/lora.safetensors"),
    "no tokenizer.json": (lambda at: (at / "tokenizer.json").unlink(), "tokenizer"),
    "no chat template": (saying("tokenizer_config.json", "chat_template", ...), "chat_template"),
    "a chat template for strings alone": (
        saying("tokenizer_config.json", "chat_template", "{{ messages[0]['content'] }}"),
        "lists of parts",
    ),
    "no head.proj": (tensors(lambda w: {k: v for k, v in w.items() if k != HEAD}), "head.proj"),
    "a training counter": (
        tensors(
            lambda w: w | {f"{MLX_VLM.tower}network.0.0.convffn.conv.bn.num_batches_tracked": mx.array(1.0)}
        ),
        "num_batches_tracked",
    ),
    "channels first": (tensors(lambda w: w | {CONV: w[CONV].transpose(0, 3, 1, 2)}), "another shape"),
    "a format that is turned again": (tensors(lambda w: w, "pt"), "format 'pt'"),
    "torn weights": (lambda at: (at / "model.safetensors").write_bytes(b"torn"), "model.safetensors"),
}


@pytest.mark.parametrize(("damage", "names"), TRAPS.values(), ids=TRAPS)
def test_the_check_names_what_would_not_load(
    damage: Damage, names: str, exported: Path, tmp_path: Path
) -> None:
    at = Path(shutil.copytree(exported, tmp_path / "damaged"))
    assert check(at).healthy
    damage(at)
    problems = [finding for finding in check(at).findings if finding.level == "problem"]
    assert any(names in finding.what for finding in problems), problems
    assert all(finding.repair for finding in problems)


def test_the_check_finds_what_others_wrote_wanting(run: Run) -> None:
    done = run("export", "--check", golden("mlx-vlm-f32"))
    assert (done.code, done.err) == (1, "")
    assert "processor_class" in done.out
    assert "eos_token_id" in done.out


# --- the verb ---


def test_export_writes_checks_and_tells(run: Run, tmp_path: Path) -> None:
    source, out = Path(shutil.copytree(golden("apple-fused"), tmp_path / "source")), tmp_path / "out"
    (source / "LICENSE").write_text("Apple Machine Learning Research Model License")
    done = run("export", source, "--target", "swift", "-o", out, "--bits", 4)
    assert done.code == 0
    assert "healthy" in done.out
    assert "iPhone" in done.out
    assert "licensed for research only" in done.err
    assert {path.name for path in out.iterdir()} == {
        CONFIG,
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "README.md",
        "LICENSE",
    }
    assert "model.train(false)" in (out / "README.md").read_text()
    assert run("export", "--check", out).code == 0


def test_the_template_serves_text_and_lists_alike(exported: Path) -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = json.loads((exported / "tokenizer_config.json").read_text())["chat_template"]
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    said = [
        jinja2.Template(template).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
        for content in ("<image>\nWhat is it?", parts)
    ]
    assert said[0] == said[1] == render("What is it?", 1)


def test_exports_are_the_same_bytes_every_time(exported: Path, tmp_path: Path) -> None:
    again = export(golden("apple-train"), tmp_path / "out").destination
    for path in exported.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
