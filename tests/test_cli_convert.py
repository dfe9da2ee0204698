"""`convert` and `doctor` as a user meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checkpoints import LAYOUT_OF, golden
from command import MODEL, Run, content
from pictures import TALL, WIDE

from fastvlm_mlx.convert.verify import FUSING, STORING


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# --- convert ---

CONVERSIONS = {
    "plain": (),
    "-q": ("-q",),
    "8 bits": ("-q", "--q-bits", 8),
    "groups of 32": ("-q", "--q-group-size", 32),
    "mixed": ("--recipe", "mixed-4-8"),
    "vision too": ("-q", "--quantize-vision"),
    "float16": ("--dtype", "float16"),
    "bfloat16": ("--dtype", "bfloat16"),
    "mixed, in float16": ("--recipe", "mixed-4-8", "--quantize-vision", "--dtype", "float16"),
}


@pytest.mark.parametrize("source", LAYOUT_OF)
def test_a_converted_checkpoint_answers_as_its_source(run: Run, tmp_path: Path, source: str) -> None:
    out = tmp_path / "out"
    converted = run("convert", golden(source), "-o", out)
    assert (converted.code, converted.out) == (0, "")
    assert str(out) in converted.err
    assert hidden(tmp_path) == []
    arguments = (TALL, WIDE, "-n", 24, "-p", "First <image> then <image>?")
    assert run("generate", *arguments, "-m", out) == run("generate", *arguments, "-m", golden(source))


@pytest.mark.parametrize("options", CONVERSIONS.values(), ids=CONVERSIONS)
def test_what_was_converted_is_complete_and_answers(
    run: Run, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = tmp_path / "out"
    assert run("convert", golden("apple-train"), "--output", out, *options).code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    packed = json.loads((out / "config.json").read_text())["quantization"]
    asked = "-q" in options or "--recipe" in options
    assert bool(packed) == asked
    assert any(path.startswith("vision.") for path in packed) == ("--quantize-vision" in options)
    if asked:
        bits = {"-q": {4}, "--recipe": {4, 8}}[str(options[0])]
        assert {how["bits"] for how in packed.values()} == ({8} if 8 in options else bits)
    answered = run("generate", TALL, "-m", out, "-n", 12)
    assert (answered.code, answered.err) == (0, "")
    assert answered.out.strip()


def test_converting_does_not_touch_the_source_and_repeats_byte_for_byte(run: Run, tmp_path: Path) -> None:
    before = content(MODEL)
    for name in ("one", "two"):
        assert run("convert", MODEL, "-o", tmp_path / name, "-q").code == 0
    assert content(MODEL) == before
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_converted_checkpoint_converts_again(run: Run, tmp_path: Path) -> None:
    assert run("convert", MODEL, "-o", tmp_path / "one").code == 0
    assert run("convert", tmp_path / "one", "-o", tmp_path / "two", "-q").code == 0
    assert run("convert", tmp_path / "two", "-o", tmp_path / "three").code == 0  # stays as it is
    answers = [run("generate", TALL, "-m", tmp_path / name, "-n", 12) for name in ("two", "three")]
    assert answers[0] == answers[1]


def test_overwrite_replaces_the_directory_whole(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", MODEL, "-o", out, "-q").code == 0
    (out / "left-over.txt").write_text("old")
    assert run("convert", MODEL, "--mlx-path", out, "--overwrite").code == 0
    assert not (out / "left-over.txt").exists()
    assert json.loads((out / "config.json").read_text())["quantization"] == {}
    assert hidden(tmp_path) == []


def test_folders_on_the_way_are_made(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "not" / "yet" / "there"
    assert run("convert", MODEL, "-o", out).code == 0
    assert (out / "config.json").exists()


@pytest.mark.parametrize("options", [(), ("--q-bits", 8)], ids=["plain", "8 bits"])
def test_verify_prints_its_table_and_puts_it_on_the_card(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    done = run("convert", golden("apple-train"), "-o", out, "--verify", *options)
    assert (done.code, done.out) == (0, "")
    rows = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", done.err, re.MULTILINE))
    assert list(rows) == [FUSING, STORING]
    assert all("KL" in value and "limits" in value for value in rows.values())
    card = (out / "README.md").read_text(encoding="utf-8")
    for what, value in rows.items():
        assert f"| {what} | {value} |" in card


def test_the_licence_travels_with_a_notice(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for path in MODEL.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "LICENSE").write_text("Apple Machine Learning Research Model License")
    (source / "ACKNOWLEDGEMENTS").write_text("thanks")
    done = run("convert", source, "-o", out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (done.code, done.out) == (0, "")
    for name in ("LICENSE", "ACKNOWLEDGEMENTS"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    for text in (done.err, card):
        assert "licensed for research only" in text
        assert "modified" in text
    assert "license: other" in card


def test_without_a_licence_none_is_claimed(run: Run, tmp_path: Path) -> None:
    done = run("convert", MODEL, "-o", tmp_path / "out")
    for text in (done.err, (tmp_path / "out" / "README.md").read_text(encoding="utf-8")):
        assert "licensed for research" not in text
        assert "license:" not in text


# --- doctor ---


def test_doctor_finds_a_good_checkpoint_healthy(run: Run) -> None:
    done = run("doctor", MODEL)
    assert (done.code, done.err) == (0, "")
    assert "apple-llava" in done.out


@pytest.mark.parametrize("options", [(), ("--quick",)], ids=["whole", "quick"])
def test_doctor_reports_as_json(run: Run, options: tuple[str, ...]) -> None:
    done = run("doctor", MODEL, "--json", *options)
    report = json.loads(done.out)
    assert (done.code, done.err, report["healthy"], report["layout"]) == (0, "", True, "apple-llava")
    assert report["findings"]


def test_doctor_finds_what_convert_wrote_healthy(run: Run, tmp_path: Path) -> None:
    assert run("convert", MODEL, "-o", tmp_path / "out", "-q").code == 0
    done = run("doctor", tmp_path / "out", "--json")
    assert (done.code, json.loads(done.out)["healthy"]) == (0, True)


def test_doctor_finds_a_damaged_checkpoint_unhealthy(run: Run, tmp_path: Path) -> None:
    for path in MODEL.iterdir():
        whole = path.read_bytes()
        (tmp_path / path.name).write_bytes(whole[:-100] if path.suffix == ".safetensors" else whole)
    before = content(tmp_path)
    told, listed = run("doctor", tmp_path), run("doctor", tmp_path, "--json")
    assert (told.code, listed.code, told.err, listed.err) == (1, 1, "", "")
    assert "model.safetensors" in told.out
    report = json.loads(listed.out)
    problems = [finding for finding in report["findings"] if finding["level"] == "problem"]
    assert report["healthy"] is False
    assert any("model.safetensors" in finding["what"] for finding in problems)
    assert all(finding["repair"] for finding in problems)
    assert content(tmp_path) == before
