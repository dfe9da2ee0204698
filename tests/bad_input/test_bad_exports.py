"""Exports that cannot be, are killed or run out of room: one line, and nothing left behind."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
import pytest
import scales
from checkpoints import golden
from command import MODEL, PYTHON, Run, completed, content, in_a_process
from refusals import Case, Make, assert_refused, filled

from fastvlm_mlx.config import ModelConfig, from_json, read_json
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.files.atomic import shutil as disk
from fastvlm_mlx.inputs.tokenizer import Tokenizer
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.weights import checkpoint

APP = golden("apple-mlx-export-fp16")


def exporting(*options: object, source: object = MODEL) -> Make:
    return lambda at: ["export", source, "-o", at / "out", *options]


def narrow(at: Path) -> list[object]:
    """A model of 96 channels, which groups of 64 do not divide."""
    like = convert(MODEL, at / "like").destination
    config = from_json(read_json(like / "config.json"), like)
    config = dataclasses.replace(
        config, text=dataclasses.replace(config.text, hidden_size=96, intermediate_size=192)
    )
    write(at / "narrow", config, Tokenizer.load(like))
    return ["export", at / "narrow", "-o", at / "out", "--bits", 4]


def write(to: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    weights = {name: mx.zeros(array.shape) for name, array in checkpoint.parameters(FastVLM(config)).items()}
    checkpoint.save(to, config, checkpoint.FusedWeights(weights), tokenizer, {})


def several_scales(target: str) -> Make:
    return lambda at: ["export", scales.write(at / "model", "average"), "-o", at / "out", "--target", target]


def full(at: Path) -> list[object]:
    filled(at)
    return ["export", MODEL, "-o", at / "out"]


EXPORTS = {
    "3 bits": Case(exporting("--bits", 3), "3 bits", "choose one"),
    "unknown target": Case(exporting("--target", "android"), "android", "choose one of swift, apple-app"),
    "groups that do not divide": Case(narrow, "96 inputs.*64 does not divide", "without --bits"),
    "the app's folder, without its tower": Case(exporting(source=APP), "Core ML package", "apple/FastVLM"),
    "the app's folder, for the app": Case(
        exporting("--target", "apple-app", source=APP), "Core ML package", "apple/FastVLM"
    ),
    "the app's folder, for Core ML": Case(
        exporting("--target", "coreml", source=APP), "Core ML package", "apple/FastVLM"
    ),
    "Core ML's options for Swift": Case(exporting("--precision", "float32"), "--precision", "--target"),
    "bits for Core ML": Case(exporting("--target", "coreml", "--bits", 4), "--bits", "--weights int8"),
    "a projector for the app": Case(
        exporting("--target", "apple-app", "--projector"), "projector", "leave --projector out"
    ),
    "a size that is no multiple": Case(
        exporting("--target", "coreml", "--image-size", 1000), "1000", "multiple of 64|choose"
    ),
    "multi-scale features for Swift": Case(
        several_scales("swift"),
        "mlx-swift-lm and mlx-vlm cannot hold multi-scale features",
        "--target coreml",
    ),
    "multi-scale features for the app": Case(
        several_scales("apple-app"), "app cannot hold multi-scale features", "--target coreml"
    ),
    "unknown weights": Case(exporting("--target", "coreml", "--weights", "int2"), "int2", "choose one of"),
    "a private upload of nothing": Case(exporting("--hub-private"), "--hub-private", "--upload-repo"),
    "a dry run of nothing": Case(exporting("--dry-run"), "--dry-run", "--upload-repo"),
    "no name to upload to": Case(exporting("--upload-repo", "mine"), "mine", "owner/name"),
    "DST exists": Case(full, "/out", "choose another path or pass --overwrite"),
    "no DST": Case(lambda at: ["export", MODEL], "--output", "--output DIR"),
    "--check and a model": Case(lambda at: ["export", MODEL, "--check", at], "--check", "drop MODEL"),
}


@pytest.mark.parametrize("case", EXPORTS.values(), ids=EXPORTS)
def test_a_bad_export_is_one_line_and_changes_nothing(
    expect_refusal: Callable[[Case], None], case: Case
) -> None:
    expect_refusal(case)


@pytest.mark.parametrize("target", ["swift", "apple-app", "coreml"])
def test_a_disk_without_room_is_seen_beforehand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    if target != "swift" and find_spec("coremltools") is None:
        pytest.skip("coremltools is not installed")
    usage = disk.disk_usage(tmp_path)
    monkeypatch.setattr(disk, "disk_usage", lambda at: usage._replace(free=100_000))
    done = run("export", MODEL, "--target", target, "-o", tmp_path / "out")
    assert_refused(done, "/out: needs", "make room")
    assert not list(tmp_path.iterdir())


def test_another_file_system_will_do(run: Run, tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    out = memory / f"fastvlm-mlx-{tmp_path.name}"
    try:
        assert run("export", MODEL, "-o", out).code == 0
        assert run("export", "--check", out).code == 0
    finally:
        disk.rmtree(out, ignore_errors=True)
    assert not list(memory.glob(f".{out.name}*"))


@pytest.mark.parametrize("verb", ["export", "convert"])
def test_an_upload_without_a_token_is_refused_before_any_work(tmp_path: Path, verb: str) -> None:
    done = in_a_process(
        *(verb, MODEL, "-o", tmp_path / "out", "--upload-repo", "me/mine"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "empty"),
    )
    assert_refused(done, "me/mine", "hf auth login|HF_TOKEN")
    assert not (tmp_path / "out").exists()


# Ends itself when the writer has let go of so many tensors.
KILLED = """
import os, signal, sys
from fastvlm_mlx import cli
from fastvlm_mlx.weights import tensorfile
moment = int(sys.argv.pop(1))
write, done = tensorfile._bytes, 0

def counted(array):
    global done
    done += 1
    if done == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(array)

tensorfile._bytes = counted
cli.main()
"""


@pytest.mark.parametrize("moment", [1, 60, 170])
def test_a_killed_export_leaves_no_directory_and_the_next_one_sweeps(
    run: Run, tmp_path: Path, moment: int
) -> None:
    command = ("export", MODEL, "-o", tmp_path / "out")
    assert completed((*PYTHON, "-c", KILLED), moment, *command).code == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    assert run(*command).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert "README.md" in content(tmp_path / "out")
