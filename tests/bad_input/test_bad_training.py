"""Recipes, data sets and adapters that fine-tuning cannot act upon."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tuning
from command import MODEL, Ran, Run
from pictures import TALL
from refusals import Case, Make, cut

from fastvlm_mlx.models import lora
from fastvlm_mlx.models.lora import Adapter, LoRASettings

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "red"}]


def started(*rows: Any, more: str = "", old: str = "", new: str = "", **changes: Any) -> Make:
    """A good recipe about these rows, in which `new` stands for `old`."""

    def make(at: Path) -> list[object]:
        tuning.rows(at, *(row for row in rows if isinstance(row, dict)))
        with (at / "train.jsonl").open("ab") as file:
            file.write(b"".join(row for row in rows if isinstance(row, bytes)))
        path = tuning.recipe(at, MODEL, more, **changes)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
        return ["train", path, "-o", at / "out"]

    return make


def second(**changes: Any) -> Make:
    """The second row with something changed; ... takes a field away."""
    row = {name: value for name, value in {**tuning.ROWS[0], **changes}.items() if value is not ...}
    return started(tuning.ROWS[0], row)


def turns(*turns: Any, **changes: Any) -> Make:
    return second(question=..., answer=..., messages=list(turns), **changes)


LINE_2 = r"train\.jsonl, line 2: "
DATA = {
    "a torn line": Case(started(tuning.ROWS[0], b'{"image":'), LINE_2 + "not JSON", "fix or remove"),
    "an empty file": Case(
        started(old="train.jsonl", new="/dev/null"), "null: has no rows", "one JSON object"
    ),
    "no file": Case(
        started(old="train.jsonl", new="gone.jsonl"), r"gone\.jsonl: cannot be read", "give a JSONL"
    ),
    "no folder of pictures": Case(
        started(old="[data]", new='[data]\nimages = "gone"'), "gone: no such folder", "mend"
    ),
    "a missing picture": Case(
        second(image="gone.png"), LINE_2 + r"no picture .*gone\.png", r"in \[data\] names"
    ),
    "a picture that is not named": Case(
        second(image=...), LINE_2 + "no field images or image", r'write "images": \[\]'
    ),
    "more marks than pictures": Case(
        second(question="<image> or <image>?"), LINE_2 + r".*2 place.*1 picture", "give one picture for each"
    ),
    "a mark without a picture": Case(
        turns({"role": "user", "content": "<image>?"}, TURNS[1], images=[], image=...),
        LINE_2 + r".*1 place.*0 picture",
        "give one picture for each",
    ),
    "a mark in an answer": Case(second(answer="<image>"), LINE_2 + "an answer holds <image>", "user's text"),
    "an unknown role": Case(
        turns({"role": "tool", "content": "x"}), LINE_2 + 'role is "tool"', "one of system"
    ),
    "no assistant": Case(turns(TURNS[0]), LINE_2 + "its turns are user;", "with the assistant last"),
    "the user last": Case(
        turns(*TURNS, TURNS[0]), LINE_2 + "its turns are user, assistant, user", "with the assistant last"
    ),
    "an empty answer": Case(second(answer=" "), LINE_2 + "an answer is empty", "remove the line"),
    "an empty question": Case(second(question=" "), LINE_2 + "the prompt is empty", "ask something"),
    "half a character": Case(second(answer="\ud800"), LINE_2 + r".*\\ud800' is half", "valid Unicode"),
    "an answer too long": Case(
        second(answer="word " * 20_000),
        LINE_2 + r"takes \d+ positions and the model reads 8192",
        "image_size",
    ),
}
STAGE = '[[stages]]\nname = "learn"'
RECIPES = {
    "no recipe": Case(
        lambda at: ["train", at / "gone.toml", "-o", at / "out"], r"gone\.toml", "give a recipe"
    ),
    "no TOML": Case(started(old="seed = 3", new="seed ="), r"mine\.toml: not TOML.*line", "mend that line"),
    "an unknown key": Case(
        started(more="[lora]\nranks = 8\n"), r"mine\.toml: .*lora\.'ranks'", "known: rank"
    ),
    "a text for a rank": Case(started(more='[lora]\nrank = "8"\n'), r"lora\.rank is '8'", "mend the recipe"),
    "rank 0": Case(started(more="[lora]\nrank = 0\n"), "rank 0", "at least 1.*mend the recipe"),
    "dropout 1": Case(started(more="[lora]\ndropout = 1\n"), "dropout 1", "below 1.*mend the recipe"),
    "no pattern": Case(started(more='[lora]\npatterns = ["("]\n'), r"'\(' is no regular", "mend the recipe"),
    "patterns of nothing": Case(
        started(more='[lora]\npatterns = ["llm"]\n'), r"no matrix .*\['llm'\]", "mend the recipe.*such as"
    ),
    "a stage that trains nothing": Case(
        started(train='["llm"]'), r"no tensor .*\['llm'\]", "mend the recipe"
    ),
    "no data": Case(started(old='[data]\npath = "train.jsonl"'), "key 'data' is missing", "mend the recipe"),
    "data for nothing": Case(
        started(old=f'[start]\nmodel = "{MODEL}"'), "key 'start' is missing", "mend the recipe"
    ),
    "a model that is not there": Case(started(old=str(MODEL), new="gone"), "gone: no such dir", "spelling"),
    "dtype int4": Case(
        started(old="[data]", new='dtype = "int4"\n[data]'), "dtype 'int4'", "choose one of fl"
    ),
    "no stages": Case(
        started(old=STAGE, new='[[stage]]\nname = "learn"'), "unknown key 'stage'", "known: name"
    ),
    "a fresh model": Case(started(more="[model]\n"), "unknown key 'model'", "known: name"),
    "image size 100": Case(started(old="size = 64", new="size = 100"), "size 100", "choose 64 or 128"),
    "save every 0": Case(started(save_every=0), "save_every", "positive.*mend the recipe"),
    "a file for the run": Case(
        lambda at: [(at / "out").write_text("mine"), *started()(at)][1:],
        "out: cannot be made a folder",
        "choose",
    ),
}


@pytest.mark.parametrize("case", [*DATA.values(), *RECIPES.values()], ids=[*DATA, *RECIPES])
def test_bad_recipes_and_data_are_one_line_and_change_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)


def test_a_damaged_picture_stops_the_run_with_its_line(run: Run, tmp_path: Path) -> None:
    arguments = second(image="torn.png")(tmp_path)
    (tmp_path / "torn.png").write_bytes(cut(TALL.read_bytes()))
    assert_refused_after_work(run(*arguments), LINE_2 + r".*torn\.png' is damaged", "copy or download")


def assert_refused_after_work(done: Ran, names: str, repair: str) -> None:
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert re.search(names, last), last
    assert re.search(repair, last), last


def adapter(change: Callable[[Path], object] = lambda at: None, **weights: Any) -> Make:
    """A question to a model with an adapter in which something is changed."""

    def make(at: Path) -> list[object]:
        path = "language.layers.0.mlp.down"
        pair = {f"{path}.lora_a": mx.zeros((192, 8)), f"{path}.lora_b": mx.zeros((8, 64))}
        pair |= {name.replace("__", "."): array for name, array in weights.items()}
        lora.write(
            at / "a",
            Adapter("the small one", LoRASettings(), {n: a for n, a in pair.items() if a is not ...}),
        )
        change(at / "a")
        return ["generate", TALL, "-m", MODEL, "-n", 1, "--adapter-path", at / "a"]

    return make


def saying(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


B = "language__layers__0__mlp__down__lora_b"
ADAPTERS = {
    "no folder": Case(adapter(shutil.rmtree), "a: no adapter", "give the folder that training wrote"),
    "a model": Case(
        lambda at: ["generate", TALL, "-m", MODEL, "--adapter-path", MODEL], "no adapter", "training wrote"
    ),
    "another format": Case(adapter(saying(format="peft")), "format 'peft'", "train it with"),
    "a later version": Case(adapter(saying(format_version=2)), "version 2", "train it with"),
    "an unknown key": Case(
        adapter(saying(bias="all")), r"adapter_config\.json: unknown key 'bias'", "upgrade"
    ),
    "another rank": Case(
        adapter(saying(rank=4)), r"lora_[ab] has shape .* rank 4", "write the adapter again"
    ),
    "no weights": Case(
        adapter(lambda at: (at / "adapters.safetensors").unlink()),
        "adapters.safetensors: cannot",
        "check the",
    ),
    "torn weights": Case(
        adapter(lambda at: (at / "adapters.safetensors").write_bytes(b"torn")), "adapters", "damaged"
    ),
    "half a pair": Case(adapter(**{B: ...}), r"down\.lora_b is missing", "write the adapter again"),
    "something else": Case(
        adapter(x__weight=mx.zeros(3)), r"x\.weight is no part", "write the adapter again"
    ),
    "another width": Case(adapter(**{B: mx.zeros((8, 100))}), "192→100.*192→64", "the small one, give that"),
    "another depth": Case(
        adapter(y__lora_a=mx.zeros((4, 8)), y__lora_b=mx.zeros((8, 4))),
        "y of 4→4.*none of that name",
        "give that",
    ),
}


@pytest.mark.parametrize("case", ADAPTERS.values(), ids=ADAPTERS)
def test_bad_adapters_are_one_line_and_change_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)
