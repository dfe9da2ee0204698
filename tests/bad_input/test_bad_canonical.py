"""Directories that `convert` wrote, with something changed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import checkpoints
import mlx.core as mx
import pytest
from checkpoints import Config, Weights, saying
from command import MODEL
from pictures import TALL
from refusals import DOCTOR, Case, Make

from fastvlm_mlx.convert.run import convert


def canonical(
    config: Callable[[Config], Config] = lambda config: config,
    weights: Callable[[Weights], Weights] = lambda weights: weights,
) -> Make:
    """A question to a converted checkpoint with something changed."""

    def make(at: Path) -> list[object]:
        convert(MODEL, at / "damaged")
        file = at / "damaged" / "config.json"
        file.write_text(json.dumps(config(json.loads(file.read_text()))))
        checkpoints.write_weights(at / "damaged", weights(checkpoints.stored(at / "damaged")))
        return ["generate", TALL, "-m", at / "damaged"]

    return make


def packed(**changes: object) -> Callable[[Config], Config]:
    return saying(quantization={"language.head": {"bits": 4, "group_size": 64} | changes})


def in_text(**changes: object) -> Callable[[Config], Config]:
    return lambda config: config | {"text": config["text"] | changes}


def in_vision(**changes: object) -> Callable[[Config], Config]:
    return lambda config: config | {"vision": config["vision"] | changes}


CANONICAL = {
    "a newer format": Case(
        canonical(saying(format_version=99)),
        r"config\.json.*99",
        "upgrade with `pip install -U",
    ),
    "an unknown key": Case(canonical(saying(audio={})), r"config\.json.*'audio'", "remove it, or upgrade"),
    "a missing key": Case(
        canonical(saying(text=...)), r"config\.json.*'text'", "convert the checkpoint again"
    ),
    "no heads": Case(canonical(in_text(heads=0)), r"config\.json.*heads", "convert the checkpoint again"),
    "half the stages": Case(
        canonical(in_vision(layers=[1, 2])), r"config\.json.*depths", "convert the checkpoint again"
    ),
    "a negative ratio": Case(
        canonical(in_vision(mlp_ratio=-1)), r"config\.json.*mlp_ratio", "convert the checkpoint again"
    ),
    "3.5 bits": Case(
        canonical(packed(bits=3.5)),
        r"config\.json.*bits.*3\.5",
        "convert the checkpoint again",
    ),
    "7 bits": Case(canonical(packed(bits=7)), r"config\.json.*7 bits", "choose one of|convert"),
    "groups of 20": Case(
        canonical(packed(group_size=20)),
        r"config\.json.*group.size 20",
        "choose one of|convert",
    ),
    "a tensor is missing": Case(
        canonical(weights=lambda w: {k: v for k, v in w.items() if k != "language.norm.weight"}),
        r"damaged.*language\.norm\.weight",
        DOCTOR,
    ),
    "a tensor too many": Case(
        canonical(weights=lambda w: w | {"language.more.weight": mx.zeros((2,))}),
        r"damaged.*language\.more",
        DOCTOR,
    ),
    "a wrong shape": Case(
        canonical(weights=lambda w: w | {"language.norm.weight": mx.zeros((63,))}),
        r"damaged.*language\.norm\.weight.*\(63,\)",
        DOCTOR,
    ),
}


@pytest.mark.parametrize("case", CANONICAL.values(), ids=CANONICAL)
def test_a_bad_converted_model_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)
