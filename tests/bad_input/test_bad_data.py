"""Data sets, options and files of results that `eval` cannot act upon."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import MODEL, Run
from pictures import TALL
from refusals import Case, Make

GOOD = {"image": str(TALL), "question": "What?", "answer": "cat"}
TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "cat"}]


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def about(content: bytes, *options: object) -> Make:
    """A data set of this content, asked about with a good model."""

    def make(at: Path) -> list[object]:
        (at / "data.jsonl").write_bytes(content)
        return ["eval", MODEL, at / "data.jsonl", *options]

    return make


def row(**changes: Any) -> Make:
    """A good row, then one with something changed; ... takes a field away."""
    changed = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return about(lines(GOOD, changed))


def turns(*turns: Any) -> Make:
    return row(question=..., answer=..., messages=list(turns))


LINE_2 = r"data\.jsonl, line 2: "
DATA = {
    "no file": Case(lambda at: ["eval", MODEL, at / "gone.jsonl"], r"gone\.jsonl.*No such", "give a JSONL"),
    "a folder": Case(lambda at: ["eval", MODEL, at], "Is a directory", "give a JSONL"),
    "an empty file": Case(about(b"\n\n"), r"data\.jsonl: has no rows", "one JSON object per line"),
    "a torn line": Case(about(lines(GOOD, b'{"image":')), LINE_2 + "not JSON", "fix or remove"),
    "half a character": Case(about(lines(GOOD, b'{"a": "\xff"}')), LINE_2 + r"not UTF-8 \(byte 8", "save"),
    "an array": Case(about(b"[\n" + lines(GOOD) + b"]"), r"line 1: not JSON", "write one object per line"),
    "an array on one line": Case(about(lines([GOOD])), "line 1: a JSON list", "write one object per line"),
    "deep brackets": Case(about(lines(b"[" * 100_000)), "line 1: not JSON", "write one object per line"),
    "no question": Case(
        row(question=...), LINE_2 + "no field question or query", "rename the question's field"
    ),
    "an empty question": Case(row(question=" <image>\n"), LINE_2 + "the question is empty", "remove"),
    "a list for a question": Case(row(question=["What?"]), LINE_2 + r"question is \[", "give a text"),
    "no answer": Case(
        row(answer=...), LINE_2 + "no field answers or answer.*only 'image'", "rename the answer's"
    ),
    "no answers": Case(row(answers=[]), LINE_2 + "answers is an empty list", "give at least one answer"),
    "a yes that is true": Case(row(answer=True), LINE_2 + "answer is true", "give a text"),
    "no picture": Case(row(image=...), LINE_2 + "no field images or image", r'write "images": \[\]'),
    "a number for a picture": Case(row(image=262148), LINE_2 + "image is 262148", "path of a picture file"),
    "a picture within": Case(row(image={"bytes": "iVBOR"}), LINE_2 + "image is {", "path of a picture file"),
    "a missing picture": Case(row(image="gone.png"), LINE_2 + r"no picture .*gone\.png", "with --images"),
    "an address": Case(row(image="http://a.b/c.png"), LINE_2 + "no picture", "with --images"),
    "more marks than pictures": Case(
        row(question="<image> or <image>?"), LINE_2 + r"2 place.*1 picture", "give one picture for each mark"
    ),
    "no turns": Case(turns(), LINE_2 + "its turns are nothing", "with the assistant last"),
    "no last answer": Case(
        turns(*TURNS, TURNS[0]), LINE_2 + "its turns are user, assistant, user", "with the assistant last"
    ),
    "an unknown role": Case(turns({"role": "tool", "content": "x"}), LINE_2 + 'role is "tool"', "one of sys"),
    "a list for a role": Case(turns({"role": ["user"], "content": "x"}), LINE_2 + "role is", "one of sys"),
    "no role": Case(
        turns({"from": "human", "value": "x"}), LINE_2 + ".*is not a turn", "give 'role' and 'cont"
    ),
    "a video": Case(
        turns({"role": "user", "content": [{"type": "video"}]}), LINE_2 + ".*video", "neither a text nor"
    ),
    "a damaged picture": Case(
        lambda at: [(at / "torn.png").write_bytes(TALL.read_bytes()[:99]), *row(image="torn.png")(at)][1:],
        r"torn\.png",
        "copy or download",
    ),
    "a question too long": Case(
        row(question="word " * 20_000), LINE_2 + "takes .* positions", "--image-size"
    ),
    "no folder of pictures": Case(about(lines(GOOD), "--images", "gone"), "gone: no such folder", "--images"),
    "an unknown metric": Case(about(lines(GOOD), "--metric", "bleu"), "metric 'bleu'", "choose one of auto"),
    "yesno of cats": Case(
        about(lines(GOOD), "--metric", "yesno"), "line 1: its answer is 'cat'", "yes and no"
    ),
    "blind with one picture": Case(about(lines(GOOD, GOOD), "--blind"), "no other row", "drop --blind"),
    "image size 100": Case(about(lines(GOOD), "--image-size", 100), "image.size 100", "choose 64 or 128"),
    "a grid without tiles": Case(
        about(lines(GOOD), "--grid", "2x2"), "image mode has no tiles", "choose tiles"
    ),
    "tiles beyond the context": Case(
        about(lines(GOOD), "--image-mode", "tiles", "--grid", "30x30"), "takes .* positions", "or tile"
    ),
    "dtype int4": Case(about(lines(GOOD), "--dtype", "int4"), "dtype 'int4'", "choose one of float16"),
    "batch 0": Case(about(lines(GOOD), "--batch", 0), "--batch", "fastvlm-mlx eval --help", 2),
    "limit 0": Case(about(lines(GOOD), "--limit", 0), "--limit", "fastvlm-mlx eval --help", 2),
    "no model": Case(
        lambda at: ["eval", at / "gone", *about(lines(GOOD))(at)[2:]], "gone: no such directory", "spelling"
    ),
    "no data": Case(lambda at: ["eval", MODEL], "DATA", "fastvlm-mlx eval --help", 2),
    "a question too long, which leaves no predictions": Case(
        lambda at: [*row(question="word " * 20_000)(at), "--predictions", "said"], LINE_2 + "takes", "smaller"
    ),
    "a device for scores": Case(about(lines(GOOD), "--json", "/dev/null"), "no ordinary file", "give a file"),
    "a folder for scores": Case(about(lines(GOOD), "--json", "."), "no ordinary file", "give a file's name"),
    "no folder for scores": Case(
        about(lines(GOOD), "--markdown", "gone/a.md"), "no folder .*gone", "make it"
    ),
    "the data for predictions": Case(
        about(lines(GOOD), "--predictions", "data.jsonl"), "was not written by", "choose another file"
    ),
    "something torn for predictions": Case(
        lambda at: [(at / "mine").write_text("preci"), *about(lines(GOOD), "--predictions", "mine")(at)][1:],
        "mine: was not written by",
        "choose another file",
    ),
}


@pytest.mark.parametrize("case", DATA.values(), ids=DATA)
def test_bad_data_are_one_line_and_change_nothing(expect_refusal: Callable[[Case], None], case: Case) -> None:
    expect_refusal(case)


@pytest.fixture
def begun(run: Run, tmp_path: Path) -> list[object]:
    """The arguments of a run that has its predictions."""
    arguments = [*about(lines(GOOD))(tmp_path), "-n", 1, "--predictions", tmp_path / "said.jsonl"]
    assert run(*arguments).code == 0
    return arguments


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("-n", 2), "max_tokens 1, and now it is 2"),
        (("--prompt-suffix", "Briefly."), "prompt_suffix '', and now it is 'Briefly.'"),
        (("--metric", "anls"), "metric 'exact', and now it is 'anls'"),
        (("--dtype", "float16"), "dtype 'float32', and now it is 'float16'"),
        (("--image-size", 64), "image_size 256, and now it is 64"),
        (("--image-mode", "crop"), "image_mode 'pad', and now it is 'crop'"),
        (("--image-mode", "tiles", "--grid", "2x1"), "image_mode 'pad', and now it is 'tiles'"),
    ],
    ids=lambda options: str(options[0]),
)
def test_predictions_of_another_run_are_not_gone_on_with(
    begun: list[object], expect_refusal: Callable[[Case], None], options: tuple[object, ...], names: str
) -> None:
    expect_refusal(Case(lambda at: [*begun, *options], names, "give the same options"))


def test_predictions_about_other_data_are_not_gone_on_with(
    begun: list[object], expect_refusal: Callable[[Case], None]
) -> None:
    def make(at: Path) -> list[object]:
        (at / "data.jsonl").write_bytes(lines(GOOD, GOOD))
        return begun

    expect_refusal(Case(make, "data_sha256", "give the same options"))


def test_a_damaged_prediction_is_named_by_its_line(
    begun: list[object], expect_refusal: Callable[[Case], None]
) -> None:
    def make(at: Path) -> list[object]:
        with (at / "said.jsonl").open("ab") as file:
            file.write(b'{"line": "one"}\n')
        return begun

    expect_refusal(Case(make, r"said\.jsonl, line 3: not a prediction", "remove the line"))
