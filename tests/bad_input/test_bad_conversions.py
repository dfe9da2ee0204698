"""Conversions that cannot be, by their options, their source or their destination."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
import mlx.core as mx
import pytest
from checkpoints import Variant, Weights
from command import MODEL
from refusals import DOCTOR, FC1, Case, Make, filled

CONVERT_HELP = r"fastvlm-mlx convert --help"


def converting(*options: object) -> Make:
    return lambda at: ["convert", MODEL, "-o", at / "out", *options]


def file_in_the_way(at: Path) -> list[object]:
    (at / "out").write_text("precious")
    return ["convert", MODEL, "-o", at / "out", "--overwrite"]


def file_on_the_way(at: Path) -> list[object]:
    (at / "file").write_text("precious")
    return ["convert", MODEL, "-o", at / "file" / "out"]


def source_at(at: Path) -> Path:
    return Path(shutil.copytree(MODEL, at / "outer" / "source"))


def nan_weights(at: Path) -> list[object]:
    def damage(weights: Weights) -> Weights:
        return weights | {FC1: mx.where(mx.arange(64) == 3, mx.nan, weights[FC1].T).T}

    checkpoints.build(Variant("apple-fused", weights=damage), at / "damaged")
    return ["convert", at / "damaged", "-o", at / "out", "--verify"]


def twice_quantized(at: Path) -> list[object]:
    checkpoints.build(checkpoints.PACKINGS["mlx-vlm-4bit"].variant(), at / "packed")
    return ["convert", at / "packed", "-o", at / "out", "-q"]


def damaged_source(at: Path) -> list[object]:
    checkpoints.build(Variant("apple-fused", files=checkpoints.losing("model.safetensors")), at / "damaged")
    return ["convert", at / "damaged", "-o", at / "out"]


CONVERSIONS = {
    "3.5 bits": Case(converting("-q", "--q-bits", "3.5"), "--q-bits", CONVERT_HELP, 2),
    "3 bits": Case(converting("-q", "--q-bits", 3), "--q-bits", "choose 4 or 8"),
    "groups of 20": Case(
        converting("-q", "--q-group-size", 20), "group.size 20", "choose one of 32, 64 or 128"
    ),
    "unknown recipe": Case(converting("--recipe", "5bit"), "recipe '5bit'", "choose one of 4bit"),
    "--quantize-vision alone": Case(
        converting("--quantize-vision"), "--quantize-vision", "pass -q or --recipe"
    ),
    "unknown dtype": Case(converting("--dtype", "int8"), "dtype 'int8'", "choose one of float16"),
    "twice quantized": Case(twice_quantized, "quantized already", "start from the original"),
    "NaN under --verify": Case(nan_weights, "damaged.*not finite", DOCTOR),
    "an unknown program to verify against": Case(
        converting("--verify-against", "torch"), "no program 'torch' to verify against", "choose transformers"
    ),
    "a source without weights": Case(damaged_source, "damaged", "download it again"),
    "no such source": Case(
        lambda at: ["convert", at / "no" / "where", "-o", at / "out"], "no/where", "check the spelling"
    ),
    "DST exists": Case(filled, "/out", "choose another path or pass --overwrite"),
    "DST is a file": Case(file_in_the_way, "/out", "remove it first"),
    "DST below a file": Case(file_on_the_way, "/file/out", "[Cc]heck|choose another"),
    "DST is SRC": Case(
        lambda at: ["convert", source_at(at), "-o", at / "outer" / "source", "--overwrite"],
        "outer/source",
        "choose another path",
    ),
    "DST inside SRC": Case(
        lambda at: ["convert", source_at(at), "-o", at / "outer" / "source" / "out"],
        "source/out",
        "choose another path",
    ),
    "SRC inside DST": Case(
        lambda at: ["convert", source_at(at), "-o", at / "outer", "--overwrite"],
        "outer",
        "choose another path",
    ),
    "no DST": Case(lambda at: ["convert", MODEL], "--output", CONVERT_HELP, 2),
}


@pytest.mark.parametrize("case", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_bad_conversion_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)
