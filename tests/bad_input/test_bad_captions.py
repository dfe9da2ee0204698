"""Sources, options and half-done results that `caption` cannot act upon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from albums import album, shard
from command import MODEL, Run
from pictures import TALL
from refusals import Case, Make

OUT = ("-o", "captions.jsonl", "-m", MODEL, "-n", 1, "--image-size", 64)


def of(*sources: object, **files: bytes | str) -> Make:
    """A folder of one good picture and these files; double underscores are dots."""

    def make(at: Path) -> list[object]:
        album(at / "photos", 1)
        for name, content in files.items():
            path = at / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["caption", *(sources or ("photos",)), *OUT]

    return make


def asked(*options: object) -> Make:
    return lambda at: [*of()(at), *options]


def empty(at: Path) -> list[object]:
    (at / "empty").mkdir()
    return ["caption", "empty", *OUT]


def packed(at: Path) -> list[object]:
    (at / "shards").mkdir()
    shard(at / "shards" / "0.tar", {"a.png": TALL.read_bytes()})
    return ["caption", "shards", *OUT]


CAPTIONS = {
    "no source": Case(lambda at: ["caption", *OUT], "SOURCE", "fastvlm-mlx caption --help", 2),
    "no result": Case(lambda at: ["caption", "photos"], "--out", "fastvlm-mlx caption --help", 2),
    "a source that is not there": Case(of("gone"), "gone: no such file or folder", "check the path"),
    "a pattern that matches nothing": Case(of("gone/*.png"), r"gone/\*\.png: no pictures", "check the path"),
    "an empty folder": Case(empty, "empty: no pictures", "check the path"),
    "a folder of tars": Case(packed, r"shards: no pictures, but \.tar", r"give 'shards/\*\.tar'"),
    "a folder of texts": Case(
        lambda at: [(at / "t").mkdir(), (at / "t" / "a.txt").touch(), "caption", "t", *OUT][2:],
        r"t: no pictures, only other files \(1 \.txt\)",
        "check the path",
    ),
    "a compressed tar": Case(of("a.tar.gz", a__tar__gz="x"), r"a\.tar\.gz: is compressed", "unpack it"),
    "a table without pictures": Case(
        of("a.csv", a__csv="x,y\n1,2\n"), r"a\.csv: no column .*, only 'x', 'y'", "name it with --column"
    ),
    "an empty table": Case(of("a.csv", a__csv=""), r"a\.csv: no column .*, only nothing", "--column"),
    "a table without rows": Case(of("a.csv", a__csv="image\n"), r"a\.csv: no pictures", "check the path"),
    "a column that is not there": Case(
        lambda at: [*of("a.csv", a__csv="image\nb\n")(at), "--column", "x"],
        "no column x, only 'image'",
        "--col",
    ),
    "a table that is no text": Case(
        of("a.csv", a__csv=b"image\n\xff\n"), r"a\.csv: not UTF-8 \(byte 7\)", "save the file as UTF-8"
    ),
    "a parquet that is none": Case(
        of("a.parquet", a__parquet="precious"), r"a\.parquet: cannot be read as Parquet", "copy or download"
    ),
    "no folder of pictures": Case(asked("--images", "gone"), "gone: no such folder", "--images"),
    "a result that is there": Case(
        of(captions__jsonl="mine"), "exists already", "another --out, or pass --over"
    ),
    "a result among the sources": Case(
        lambda at: [*of("captions.jsonl", captions__jsonl='{"image": "a.png"}')(at), "--overwrite"],
        r"captions\.jsonl: --out is also a source",
        "another --out",
    ),
    "a folder for the result": Case(
        asked("-o", "photos"), "photos: is no ordinary file", "give a file's name"
    ),
    "no folder for the result": Case(asked("-o", "gone/c.jsonl"), "no folder .*gone", "make it first"),
    "a folder of somebody else's": Case(
        lambda at: [
            (at / "captions.jsonl.run").mkdir(),
            (at / "captions.jsonl.run" / "settings.json").write_text("{}\n"),
            (at / "captions.jsonl.run" / "launch").touch(),
            *of()(at),
        ][3:],
        r"settings\.json: was not written by this version",
        "choose another --out",
    ),
    "an unknown format": Case(asked("--format", "xml"), "format 'xml'", "choose one of jsonl, parquet, meta"),
    "metadata away from the pictures": Case(
        lambda at: [(at / "m").mkdir(), *of()(at), "-o", "m/metadata.jsonl"][1:],
        r"0000\.png: metadata covers only picture files in its own folder",
        "put --out next to the pictures",
    ),
    "a question and a template": Case(
        asked("-p", "What?", "--template", "{name}"), "exclude each other", "give one"
    ),
    "an empty question": Case(asked("-p", " "), "the question is empty", "--prompt"),
    "a template of unknown fields": Case(
        asked("--template", "Is it {mood}?"),
        r"no picture has the field \{mood\}",
        "choose among name, folder, key",
    ),
    "a template that looks inside": Case(
        asked("--template", "{name.__class__}"),
        r"\{name\.__class__\} is not a field",
        "write {name} or a column",
    ),
    "a template with one brace": Case(asked("--template", "{name"), "--template: ", "for literal braces"),
    "image size 100": Case(asked("--image-size", 100), "image.size 100", "choose 64 or 128"),
    "temperature -1": Case(asked("--temp", -1), "temperature is -1", "0 .greedy. or more"),
    "batch 0": Case(asked("--batch", 0), "--batch", "fastvlm-mlx caption --help", 2),
    "no model": Case(lambda at: [*of()(at), "-m", at / "gone"], "gone: no such directory", "spelling"),
    "two marks": Case(asked("-p", "<image> or <image>?"), "marks 2 place", "one picture for each mark"),
}


@pytest.mark.parametrize("case", CAPTIONS.values(), ids=CAPTIONS)
def test_bad_captioning_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)


@pytest.mark.parametrize("make", [asked("-o", "c.parquet"), of("a.parquet", a__parquet="x")])
def test_parquet_without_pyarrow_says_how_to_get_it(
    expect_refusal: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    expect_refusal(Case(make, "Parquet needs pyarrow", r"pip install .*\[parquet\]"))


@pytest.fixture
def begun(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of a run that is done."""
    monkeypatch.chdir(tmp_path)
    arguments = of()(tmp_path)
    assert run(*arguments).code == 0
    return arguments


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("-n", 2), "max_tokens 1, and now it is 2"),
        (("-p", "What?"), "prompt 'Describe the image.', and now it is 'What"),
        (("--template", "Describe the image."), "template False, and now it is True"),
        (("--system", "Be brief."), "system None, and now it is 'Be brief"),
        (("--seed", 3), "seed None, and now it is 3"),
        (("--dtype", "float16"), "dtype 'float32', and now it is 'float16'"),
        (("--image-size", 128), "image_size 64, and now it is 128"),
        (("--reference",), "reference False, and now it is True"),
    ],
    ids=lambda options: str(options[0]),
)
def test_captions_of_other_settings_are_not_gone_on_with(
    begun: list[object], expect_refusal: Callable[[Case], None], options: tuple[object, ...], names: str
) -> None:
    expect_refusal(Case(lambda at: [*begun, *options], names, "the same options to go on, another --out"))


def test_a_damaged_caption_is_named_by_its_line(
    begun: list[object], expect_refusal: Callable[[Case], None]
) -> None:
    def make(at: Path) -> list[object]:
        (part,) = (at / "captions.jsonl.run").glob("part-*.jsonl")
        with part.open("ab") as file:
            file.write(b'{"key": "one"}\n')
        return begun

    expect_refusal(Case(make, r"part-\d+\.jsonl, line 2: no caption", "remove that line"))
