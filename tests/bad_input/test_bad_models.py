"""Checkpoints with something wrong: their files, their configuration, their tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import pytest
from checkpoints import APPLE_TOWER, Config, Variant, Weights, golden, saying
from pictures import TALL
from refusals import DOCTOR, FC1, Case, Make, cut

NORM = "model.norm.weight"
TOWER_VARIANCE = f"{APPLE_TOWER}network.0.0.convffn.conv.bn.running_var"


def variant(
    config: Callable[[Config], Config] = lambda config: config,
    weights: Callable[[Weights], Weights] = lambda weights: weights,
    files: Callable[[Path], None] = lambda folder: None,
    source: str = "apple-fused",
    shards: int = 1,
    asked: tuple[object, ...] = (),
) -> Make:
    """A question to a golden checkpoint with something changed."""

    def make(at: Path) -> list[object]:
        change = Variant(source, config=config, weights=weights, files=files, shards=shards)
        checkpoints.build(change, at / "damaged")
        return ["generate", TALL, "-m", at / "damaged", *asked]

    return make


def file_changed(name: str, edit: Callable[[bytes], bytes], source: str = "apple-fused") -> Make:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return variant(files=change, source=source)


def header_changed(edit: Callable[[dict[str, Any]], None]) -> Make:
    """model.safetensors with another header before the same bytes."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        edit(header)
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + content[8 + length :]

    return file_changed("model.safetensors", change)


def offsets_overlap(header: dict[str, Any]) -> None:
    first, second = [name for name in header if name != "__metadata__"][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]


def offsets_beyond(header: dict[str, Any]) -> None:
    last = max(
        (name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"][1]
    )
    begin, end = header[last]["data_offsets"]
    header[last]["shape"][0] *= 2
    header[last]["data_offsets"] = [begin, 2 * end - begin]


def without_keys(config: Config) -> Config:
    return saying(num_hidden_layers=...)(config)


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: array for name, array in weights.items()}


def changed(name: str, change: Callable[[mx.array], mx.array]) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: change(weights[name])}


def language_alone(weights: Weights) -> Weights:
    return {k: v for k, v in weights.items() if "vision_tower" not in k and "mm_projector" not in k}


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)


def config_is_a_directory(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def empty_directory(at: Path) -> list[object]:
    (at / "hollow").mkdir()
    return ["generate", TALL, "-m", at / "hollow"]


def file_as_model(at: Path) -> list[object]:
    (at / "weights.bin").write_bytes(b"weights")
    return ["generate", TALL, "-m", at / "weights.bin"]


MODELS = {
    "no such path": Case(
        lambda at: ["generate", TALL, "-m", at / "no" / "where"], "no/where", "check the spelling"
    ),
    "a name of two lines": Case(lambda at: ["generate", TALL, "-m", "one\ntwo"], "one", "check the spelling"),
    "a file": Case(file_as_model, r"weights\.bin", "give a model directory or a hub id"),
    "an empty directory": Case(empty_directory, r"hollow/config\.json", "needs one"),
    "config.json is not JSON": Case(
        file_changed("config.json", lambda content: content[:-50]),
        r"config\.json",
        "download it again or mend",
    ),
    "config.json is not UTF-8": Case(
        file_changed("config.json", lambda content: b"\xff\xfe" + content),
        r"config\.json",
        "download it again",
    ),
    "config.json is a list": Case(
        file_changed("config.json", lambda content: b"[1, 2]"), r"config\.json", "download it again"
    ),
    "config.json is a directory": Case(
        variant(files=config_is_a_directory),
        r"config\.json",
        "download it again",
    ),
    "config.json with a value of the wrong kind": Case(
        variant(saying(hidden_size="64")), r"config\.json.*hidden_size", "take it from the original"
    ),
    "config.json with a list for a section": Case(
        variant(saying(vision_config=[1, 2])), r"config\.json.*vision_config", "correct|download|original"
    ),
    "unknown model_type": Case(
        variant(saying(model_type="llava")), r"config\.json.*'llava'", "[Gg]ive a FastVLM checkpoint"
    ),
    "no model_type": Case(variant(saying(model_type=...)), r"config\.json", "[Gg]ive a FastVLM checkpoint"),
    "a missing text key": Case(
        variant(without_keys), r"config\.json.*num_hidden_layers", "take it from the original"
    ),
    "another architecture": Case(
        variant(saying(rope_scaling={"type": "linear", "factor": 2})),
        r"config\.json.*rope_scaling",
        "give|use|correct|original",
    ),
    "more layers than tensors": Case(variant(saying(num_hidden_layers=3)), r"damaged.*layers\.2", DOCTOR),
    "fewer layers than tensors": Case(variant(saying(num_hidden_layers=1)), r"damaged.*layers\.1", DOCTOR),
    "a tensor is missing": Case(
        variant(weights=lambda w: {k: v for k, v in w.items() if k != NORM}), rf"damaged.*{NORM}", DOCTOR
    ),
    "a tensor of the tower is missing": Case(
        variant(
            weights=lambda w: {k: v for k, v in w.items() if not k.endswith("conv_exp.reparam_conv.weight")}
        ),
        r"damaged.*conv_exp",
        DOCTOR,
    ),
    "a tensor too many": Case(
        variant(weights=lambda w: w | {"model.layers.0.mlp.extra.weight": mx.zeros((2, 2))}),
        r"damaged.*mlp\.extra",
        DOCTOR,
    ),
    "a wrong shape": Case(
        variant(weights=lambda w: w | {FC1: w[FC1][:, :32]}), r"damaged.*(fc1|projector)", DOCTOR
    ),
    "a wrong rank": Case(variant(weights=lambda w: w | {NORM: w[NORM][None]}), r"damaged.*norm", DOCTOR),
    "a wrong rank in the tower": Case(
        variant(weights=changed(f"{APPLE_TOWER}patch_embed.0.reparam_conv.weight", lambda v: v.flatten())),
        "damaged",
        DOCTOR,
    ),
    "a number where a vector belongs": Case(
        variant(weights=changed(TOWER_VARIANCE, lambda v: v[:1])),
        "damaged",
        DOCTOR,
    ),
    "a wrong shape in the tower": Case(
        variant(weights=changed(TOWER_VARIANCE, lambda v: v[:-1])),
        "damaged",
        DOCTOR,
    ),
    "a cut safetensors": Case(
        file_changed("model.safetensors", lambda content: content[:-1000]),
        r"damaged/model\.safetensors",
        "download it again",
    ),
    "an empty safetensors": Case(
        file_changed("model.safetensors", lambda content: b""), r"model\.safetensors", "download it again"
    ),
    "a safetensors of garbage": Case(
        file_changed("model.safetensors", lambda content: b"\xff" * 1000),
        r"model\.safetensors",
        "download it again",
    ),
    "a header of garbage": Case(
        file_changed("model.safetensors", lambda content: content[:8] + b"{" * 5000 + content[5008:]),
        r"model\.safetensors",
        "download it again",
    ),
    "offsets that overlap": Case(header_changed(offsets_overlap), r"model\.safetensors", "download it again"),
    "offsets beyond the end": Case(
        header_changed(offsets_beyond), r"model\.safetensors", "download it again"
    ),
    "a git-lfs pointer": Case(
        file_changed(
            "model.safetensors",
            lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2365160\n",
        ),
        r"model\.safetensors",
        "download it again",
    ),
    "an absent shard": Case(
        variant(files=checkpoints.losing("model-00002-of-00003.safetensors"), shards=3),
        r"damaged.*model-00002-of-00003\.safetensors",
        "download it again",
    ),
    "an index without a map": Case(
        variant(files=index_without_a_map, shards=2),
        r"damaged/model\.safetensors\.index\.json",
        "download it again",
    ),
    "no weights": Case(
        variant(files=checkpoints.losing("model.safetensors")), "damaged", "download it again"
    ),
    "an unknown layout": Case(
        variant(weights=renamed("net.")), r"damaged.*net\.", "give a|use the|run `fastvlm-mlx doctor"
    ),
    "a Qwen2 alone": Case(
        variant(weights=language_alone), "damaged.*language model alone", "give a FastVLM checkpoint"
    ),
    "a projector alone": Case(
        variant(weights=lambda w: {k: v for k, v in w.items() if APPLE_TOWER not in k}),
        "damaged.*vision tower is missing",
        "use the original checkpoint",
    ),
    "two layouts": Case(
        variant(weights=lambda w: w | {"mm_projector.0.weight": w[FC1]}), "damaged", "keep the files of one"
    ),
    "an export for Apple's app": Case(
        lambda at: ["generate", TALL, "-m", golden("apple-mlx-export-fp16")],
        "apple-mlx-export-fp16",
        "[Uu]se the checkpoint it was made from",
    ),
    "no tokenizer": Case(
        variant(files=no_tokenizer, source="mlx-vlm-f32"), "damaged.*no tokenizer", r"copy tokenizer\.json"
    ),
    "a torn tokenizer": Case(
        file_changed("tokenizer.json", cut, source="mlx-vlm-f32"), r"tokenizer\.json", r"copy tokenizer\.json"
    ),
    "a picture size that fits no tower": Case(
        variant(
            saying(mm_vision_tower="mobileclip_l_100"), files=checkpoints.losing("preprocessor_config.json")
        ),
        "damaged.*100 px",
        r"check \S*preprocessor_config\.json",
    ),
    "a prompt longer than the context": Case(
        variant(saying(max_position_embeddings=16)), "prompt takes 68 positions.*16", "shorten the text"
    ),
}


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_a_bad_model_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)
