"""Every ailment is found, with its repair; a healthy directory has none; and nothing is ever touched."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from damages import (
    WEIGHTS,
    Damage,
    added,
    as_torch_only,
    both,
    config,
    dropped,
    edited,
    header,
    quantized,
    quantized_to,
    removed,
    sharded,
    shifted,
    spoiled,
    stored,
    tensors,
    tied_with,
    torn,
    twice,
    written,
)

from fastvlm_mlx.convert.doctor.checks import Finding, Report, examine
from fastvlm_mlx.convert.doctor.inspect import folded
from fastvlm_mlx.convert.read.translate import translate
from fastvlm_mlx.errors import CheckpointError
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.weights import checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "golden" / "checkpoints"
APPLE, TRAIN, TIMM, MLX, APP = (
    "apple-fused",
    "apple-train",
    "hf-timm-unfused",
    "mlx-vlm-f32",
    "apple-mlx-export-fp16",
)
LAYER = "language_model.model.layers.0."


def copied(name: str, to: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / name / "untied", to / name))


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(directory)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in directory.rglob("*")
        if path.is_file()
    }


def diagnosed(report: Report, level: str, *words: str) -> list[Finding]:
    return [
        one
        for one in report.findings
        if one.level == level and all(word in f"{one.subject} {one.what} {one.repair}" for word in words)
    ]


@pytest.mark.parametrize("name", [APPLE, TRAIN, TIMM, MLX])
def test_a_healthy_directory_has_no_problem_and_tells_what_it_is(name: str) -> None:
    report = examine(CHECKPOINTS / name / "untied")
    assert report.healthy
    assert not diagnosed(report, "problem")
    told = report.facts
    assert told["form"] == ("training branches" if name in (TRAIN, TIMM) else "fused")
    assert told["vision"] == "layers [1, 2, 2, 2, 1], dims [8, 16, 32, 64, 128]"
    assert told["text"] == "2 layers, hidden 64, heads 4/2"
    assert told["vocabulary"] == f"{576 if name == TIMM else 512} rows, 483 ids usable"
    assert (told["weights"], told["quantization"]) == ("float32", "none")
    assert (told["picture size"], told["output head"]) == ("256 px", "its own")
    assert "482 <|im_end|>" in told["stop tokens"]


def test_the_export_for_apples_app_says_where_the_tower_is() -> None:
    report = examine(CHECKPOINTS / APP / "untied")
    assert report.layout == "apple-app"
    [problem] = diagnosed(report, "problem")
    assert "fastvithd.mlpackage" in problem.what
    assert "apple/FastVLM-7B" in problem.repair


# name, checkpoint, damage, level, words that the finding must have
AILMENTS: tuple[tuple[str, str, Damage, str, tuple[str, ...]], ...] = (
    ("no config", APPLE, removed("config.json"), "problem", ("config.json", "no such file")),
    ("torn config", APPLE, written("config.json", "{"), "problem", ("config.json", "not JSON")),
    ("config a list", APPLE, written("config.json", "[]"), "problem", ("config.json", "list", "object")),
    ("another model", APPLE, config(model_type="gemma"), "problem", ("model_type is 'gemma'",)),
    ("no hidden size", APPLE, config(hidden_size=None), "problem", ("hidden_size is missing",)),
    ("text for a number", APPLE, config(num_attention_heads="4"), "problem", ("num_attention_heads is '4'",)),
    ("norm eps a word", APPLE, config(rms_norm_eps="x"), "problem", ("config.json",)),
    ("vocabulary", APPLE, config(vocab_size=99), "problem", ("vocab_size is 99", "512 rows")),
    ("section a list", APPLE, config(vision_config=[1]), "problem", ("vision_config is [1]",)),
    ("no weights", APPLE, removed(WEIGHTS), "problem", ("no model*.safetensors",)),
    ("torch only", APPLE, as_torch_only, "problem", ("pytorch_model.bin", "save it as safetensors")),
    ("absent shard", APPLE, sharded(True), "problem", ("not there: model-2.safetensors",)),
    ("stale index", APPLE, sharded(False), "note", ("disagree about gone.weight",)),
    ("torn shard", APPLE, torn, "problem", (WEIGHTS, "bytes", "download it again")),
    ("lying header", APPLE, header(shifted), "problem", (WEIGHTS, "gap or overlap")),
    ("twice", APPLE, twice, "problem", ("both hold model.norm.weight",)),
    ("stray", APPLE, written("old/x.safetensors"), "note", ("old/x.safetensors", "mlx-swift-lm")),
    ("qwen2", APPLE, dropped("vision_tower", "mm_projector"), "problem", ("a language model alone",)),
    ("unknown", APPLE, both(dropped(""), added(x=mx.ones(1))), "problem", ("not a layout",)),
    ("mixed", APPLE, added(mm_projector__0__bias=mx.ones(64)), "problem", ("apple-llava and mlx-vlm",)),
    ("no tower", APPLE, dropped("vision_tower"), "problem", ("vision tower is missing", "FastVLM-1.5B")),
    ("no rule", MLX, added(a__0__b=mx.ones(1), a__1__b=mx.ones(1)), "problem", ("2 tensor", "a.{0-1}.b")),
    (
        "missing",
        MLX,
        dropped("layers.0.mlp", "convffn.fc2.bias", "mm_projector.2.bias"),
        "problem",
        (f"{LAYER}mlp.gate_proj.weight", "network.{0,10}.0.convffn.fc2.bias", "mm_projector.2.bias"),
    ),
    ("missing skip", TRAIN, dropped("patch_embed.2.rbr_skip"), "problem", ("patch_embed.2.rbr_skip.weight",)),
    ("missing branch norm", TIMM, dropped("stem.0.conv_kxk.0.bn"), "problem", ("stem.0.conv_kxk.0.bn.bias",)),
    ("shape", APPLE, stored("model.norm.weight", mx.ones(65)), "problem", ("norm", "(65,)", "(64,)")),
    (
        "channels first in mlx-vlm",
        MLX,
        stored("vision_tower.vision_model.network.6.reparam_conv.weight", mx.ones((64, 1, 7, 7))),
        "problem",
        ("network.6.reparam_conv.weight: shape (64, 1, 7, 7), expected (64, 7, 7, 1)",),
    ),
    (
        "too few layers",
        APPLE,
        config(num_hidden_layers=1),
        "problem",
        ("without a place", "model.layers.1.mlp"),
    ),
    ("too many layers", APPLE, config(num_hidden_layers=3), "problem", ("missing", "model.layers.2.mlp")),
    ("no vision_config", MLX, config(vision_config=None), "note", ("vision_config", "full FastViTHD")),
    ("empty vision_config", APPLE, config(vision_config={}), "note", ("vision_config", "empty")),
    ("lying vision_config", MLX, config(vision_config__layers=[9] * 5), "problem", ("vision_config.layers",)),
    ("tied, another head", APPLE, tied_with(False), "note", ("different lm_head.weight", "ignored")),
    ("untied, no head", APPLE, dropped("lm_head"), "note", ("false without a stored head",)),
    ("tied absent", APPLE, config(tie_word_embeddings=None), "note", ("absent", "mlx-vlm true")),
    (
        "tied twice",
        TIMM,
        config(text_config__tie_word_embeddings=True),
        "note",
        ("text_config, which counts",),
    ),
    ("no preprocessor", APPLE, removed("preprocessor_config.json"), "note", ("size, 256 px",)),
    ("processor class", MLX, lambda _: None, "note", ("LlavaProcessor", "FastVLMProcessor")),
    (
        "mean",
        APPLE,
        edited("preprocessor_config.json", image_mean=[0.5] * 3),
        "problem",
        ("preprocessor_config.json: image_mean is [0.5, 0.5, 0.5]",),
    ),
    (
        "size",
        APPLE,
        edited("preprocessor_config.json", crop_size={"height": 250, "width": 250}),
        "problem",
        ("250 px", "multiple of 64"),
    ),
    ("image token", MLX, config(image_token_index=483), "note", ("image_token_index is 483", "-200")),
    ("eos list", MLX, lambda _: None, "note", ("eos_token_id is the list [482, 480]",)),
    ("sampling", APPLE, lambda _: None, "note", ("repetition_penalty 1.1", "do_sample")),
    ("no tokenizer", APPLE, removed("vocab.json"), "problem", ("no tokenizer", "vocab.json")),
    ("no tokenizer.json", APPLE, lambda _: None, "note", ("tokenizer.json is missing", "Swift")),
    (
        "odd tokens",
        APPLE,
        edited("tokenizer_config.json", added_tokens_decoder=[1]),
        "problem",
        ("tokenizer",),
    ),
    (
        "too many ids",
        APPLE,
        edited("added_tokens.json", **{"<far>": 512}),
        "problem",
        ("513 ids", "512 rows"),
    ),
    (
        "no chat template",
        APPLE,
        edited("tokenizer_config.json", chat_template=None),
        "note",
        ("no chat_template",),
    ),
    (
        "projector quantized",
        MLX,
        quantized_to("mm_projector.0"),
        "note",
        ("projector", "mlx-swift-lm crashes"),
    ),
    (
        "quantized unsaid",
        MLX,
        tensors(lambda a: quantized(a, f"{LAYER}mlp.up_proj")),
        "note",
        ("no quantization", "4 bits, groups of 32: 1 modules"),
    ),
    (
        "another mode",
        MLX,
        quantized_to(f"{LAYER}mlp.up_proj", mode="mxfp4"),
        "problem",
        ("mxfp4", f"{LAYER}mlp.up_proj.scales", "affine"),
    ),
    ("nan", APPLE, spoiled("model.norm.weight", float("nan")), "problem", ("NaN", "model.norm.weight")),
    (
        "infinity",
        APPLE,
        spoiled("model.norm.weight", float("-inf")),
        "problem",
        ("infinite", "model.norm.weight"),
    ),
    ("large", APPLE, spoiled("model.norm.weight", -7e4), "note", ("model.norm.weight", "float16")),
    ("zeros", APPLE, stored("model.norm.weight", mx.zeros(64)), "note", ("zeros", "model.norm.weight")),
    ("no licence", APPLE, lambda _: None, "note", ("LICENSE",)),
)


@pytest.mark.parametrize(
    ("name", "damage", "level", "words"), [row[1:] for row in AILMENTS], ids=[r[0] for r in AILMENTS]
)
def test_an_ailment_is_found_with_a_repair(
    name: str, damage: Damage, level: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    directory = copied(name, tmp_path)
    damage(directory)
    before = digests(directory)
    report = examine(directory)
    assert digests(directory) == before
    found = diagnosed(report, level, *words)
    assert found, report.findings
    assert all(one.repair for one in report.findings if one.level != "ok")
    assert report.healthy == (level == "note")


def test_no_stop_token_is_a_problem(tmp_path: Path) -> None:
    directory = copied(APPLE, tmp_path)
    removed("generation_config.json")(directory)
    config(eos_token_id=None)(directory)
    edited("tokenizer_config.json", eos_token=None, added_tokens_decoder=None)(directory)
    (directory / "added_tokens.json").write_text('{"<a>": 480}')
    assert diagnosed(examine(directory), "problem", "stop tokens", "never end")


def test_without_reading_only_the_values_are_unknown(tmp_path: Path) -> None:
    directory = copied(APPLE, tmp_path)
    spoiled("model.norm.weight", float("nan"))(directory)
    calls: list[tuple[int, int]] = []
    assert examine(directory, read_weights=False, progress=lambda *call: calls.append(call)).healthy
    assert not calls
    assert not examine(directory, progress=lambda *call: calls.append(call)).healthy
    assert calls[-1][0] == calls[-1][1]


def test_an_equal_stored_head_is_nothing_to_say(tmp_path: Path) -> None:
    directory = copied(APPLE, tmp_path)
    tied_with(True)(directory)
    assert diagnosed(examine(directory), "ok", "output head")
    assert diagnosed(examine(directory, read_weights=False), "note", "not compared")


def test_what_has_no_problem_loads(tmp_path: Path) -> None:
    directory = copied(MLX, tmp_path)
    quantized_to("language_model.model.embed_tokens", f"{LAYER}self_attn.q_proj")(directory)
    report = examine(directory)
    assert report.healthy
    assert report.facts["quantization"] == "4 bits, groups of 32: 2 modules"
    assert report.facts["parameters"] == examine(CHECKPOINTS / MLX / "untied").facts["parameters"]
    translate(directory)


def canonical(to: Path) -> Path:
    source = CHECKPOINTS / MLX / "untied"
    translated = translate(source)
    checkpoint.save(
        to, translated.config, translated.weights, Tokenizer.load(source), {"LICENSE": b"research"}
    )
    return to


OURS: tuple[tuple[str, Damage, str, tuple[str, ...]], ...] = (
    ("healthy", lambda _: None, "ok", ("tensors",)),
    ("missing", dropped("qkv.bias"), "problem", ("language.layers.{0-1}.attention.qkv.bias",)),
    ("extra", added(x=mx.ones(1)), "problem", ("without a place", "x")),
    ("shape", stored("language.norm.weight", mx.ones(3)), "problem", ("(3,)", "(64,)")),
    ("nan", spoiled("projector.fc1.bias", float("nan")), "problem", ("NaN", "projector.fc1.bias")),
    ("key", config(text__heads=None), "problem", ("config.json", "heads")),
    ("nonsense", config(text__heads=0), "problem", ("config.json",)),
    ("version", config(format_version=99), "problem", ("format_version 99",)),
    ("no stop", config(eos_token_ids=[]), "problem", ("never end",)),
    ("no tokenizer", removed("tokenizer.json"), "problem", ("no tokenizer",)),
)


@pytest.mark.parametrize(
    ("damage", "level", "words"), [row[1:] for row in OURS], ids=[row[0] for row in OURS]
)
def test_our_own_directories_are_examined_too(
    damage: Damage, level: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    directory = canonical(tmp_path / "ours")
    damage(directory)
    report = examine(directory)
    assert report.layout == "fastvlm-mlx"
    assert diagnosed(report, level, *words), report.findings
    assert report.healthy == (level == "ok")
    assert not diagnosed(report, "note")


def test_what_is_not_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"):
        examine(tmp_path / "nothing")


def test_an_empty_directory_has_problems_and_no_layout(tmp_path: Path) -> None:
    report = examine(tmp_path)
    assert (report.layout, report.healthy) == (None, False)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["b", "a.0.c"], ["a.0.c", "b"]),
        (["l.0.a", "l.1.a", "l.3.a", "b"], ["b", "l.{0-1,3}.a"]),
        (["l.0.m.0.a", "l.0.m.1.a", "l.1.m.0.a"], ["l.0.m.{0-1}.a", "l.1.m.0.a"]),
        (["l.10.a", "l.9.a"], ["l.{9-10}.a"]),
    ],
)
def test_folding_names_leaves_nothing_out(names: list[str], short: list[str]) -> None:
    assert folded(names) == short
