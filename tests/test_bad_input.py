"""Wrong input through the command line: one line that names it and the repair; nothing printed or written.

A case builds its input in an empty folder and returns the arguments; the folder is compared before and
after. Cases run in this process; limits, signals and other users have processes of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from checkpoints import APPLE_TOWER, GOLDEN, Config, Variant, Weights, golden, saying
from PIL import Image

from fastvlm_mlx import cli
from fastvlm_mlx.convert.run import convert

PICTURE = GOLDEN / "images" / "tall.png"
MODEL = golden("apple-fused")
COMMAND = (sys.executable, "-W", "error", "-m", "fastvlm_mlx")
NOBODY = 65534

Snapshot = dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class Ran:
    code: object
    out: str
    err: str


Run = Callable[..., Ran]
Make = Callable[[Path], list[object]]


@dataclass(frozen=True)
class Case:
    make: Make
    names: str  # what the message must name, a pattern
    repair: str  # what it must advise, a pattern
    code: int = 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The installed command's entry, in this process."""
    for name in (cli.MODEL_VARIABLE, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["fastvlm-mlx", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ran(left.value.code, *capfd.readouterr())

    return run


def snapshot(folder: Path) -> Snapshot:
    """Every entry's mode, time and content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(done: Ran, names: str, repair: str, code: int = 1) -> None:
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert "Traceback" not in done.err
    assert len(lines) == 1, done.err
    assert lines[0].startswith("fastvlm-mlx: ")
    assert done.code == code
    assert done.out == ""
    assert re.search(names, lines[0]), lines[0]
    assert re.search(repair, lines[0]), lines[0]


def in_a_process(*arguments: object, **environment: str) -> Ran:
    return completed(COMMAND, *arguments, **environment)


def completed(command: Sequence[str], *arguments: object, **environment: str) -> Ran:
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | environment,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in (cli.MODEL_VARIABLE, "HF_TOKEN", "HF_HOME")}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as `convert` writes it."""
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(MODEL, out)
    return out


def question(*options: object) -> Make:
    """About a good picture to a good model."""
    return lambda at: ["generate", PICTURE, "-m", MODEL, *options]


# --- pictures ---


def asking(name: str, content: bytes | None = None) -> Make:
    """A question about a file with this content."""

    def make(at: Path) -> list[object]:
        if content is not None:
            (at / name).write_bytes(content)
        return ["generate", at / name, "-m", MODEL]

    return make


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def directory_as_picture(at: Path) -> list[object]:
    (at / "folder.png").mkdir()
    return ["generate", at / "folder.png", "-m", MODEL]


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>'
AGAIN = "copy or download it again"

PICTURES = {
    "not a picture": Case(asking("notes.txt", b"Buy milk.\n"), r"notes\.txt", "pass a PNG, JPEG"),
    "a cut JPEG": Case(asking("cut.jpg", cut(encoded("JPEG"))), r"cut\.jpg", AGAIN),
    "a cut PNG": Case(asking("cut.png", cut(encoded("PNG"))), r"cut\.png", AGAIN),
    "a PNG of a header alone": Case(asking("head.png", encoded("PNG")[:40]), r"head\.png", AGAIN),
    "an empty file": Case(asking("empty.png", b""), r"empty\.png", "download or copy it again"),
    "a directory": Case(directory_as_picture, r"folder\.png", "pass the path of a readable picture"),
    "no such file": Case(asking("gone.png"), r"gone\.png", "pass the path of a readable picture"),
    "a name of two lines": Case(asking("one\ntwo.png"), r"one\\ntwo\.png", "pass the path"),
    "20,000×20,000": Case(asking("vast.png", png_of(20_000, 20_000)), r"vast\.png.*20000", "make it smaller"),
    "no pixels": Case(asking("none.png", png_of(0, 0)), r"none\.png", "again|another picture"),
    "SVG": Case(asking("drawing.svg", SVG), r"drawing\.svg", "pass a PNG, JPEG"),
    "the second of two": Case(
        lambda at: ["generate", PICTURE, "--image", at / "gone.png", "-m", MODEL],
        r"gone\.png",
        "pass the path",
    ),
    "standard input twice": Case(
        lambda at: ["generate", "-", "-", "-m", MODEL], r"standard input \(-\)", "name the others"
    ),
    "standard input, empty": Case(
        lambda at: ["generate", "-", "-m", MODEL], "standard input", "download or copy it again"
    ),
    "an address of nobody": Case(
        lambda at: ["generate", f"http://127.0.0.1:{closed_port()}/cat.png", "-m", MODEL],
        r"http://127\.0\.0\.1:\d+/cat\.png",
        "check the address",
    ),
    "an address that is none": Case(
        lambda at: ["generate", "http://", "-m", MODEL], "http://", "check the address"
    ),
}


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- model directories ---


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
        return ["generate", PICTURE, "-m", at / "damaged", *asked]

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
    return ["generate", PICTURE, "-m", at / "hollow"]


def file_as_model(at: Path) -> list[object]:
    (at / "weights.bin").write_bytes(b"weights")
    return ["generate", PICTURE, "-m", at / "weights.bin"]


NORM = "model.norm.weight"
FC1 = "model.mm_projector.0.weight"
DOCTOR = r"[Rr]un `fastvlm-mlx doctor \S*damaged`"

MODELS = {
    "no such path": Case(
        lambda at: ["generate", PICTURE, "-m", at / "no" / "where"], "no/where", "check the spelling"
    ),
    "a name of two lines": Case(
        lambda at: ["generate", PICTURE, "-m", "one\ntwo"], "one", "check the spelling"
    ),
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
        variant(
            weights=lambda w: {
                k: v.flatten() if k == f"{APPLE_TOWER}patch_embed.0.reparam_conv.weight" else v
                for k, v in w.items()
            }
        ),
        "damaged",
        DOCTOR,
    ),
    "a number where a vector belongs": Case(
        variant(
            weights=lambda w: {
                k: v[:1] if k == f"{APPLE_TOWER}network.0.0.convffn.conv.bn.running_var" else v
                for k, v in w.items()
            }
        ),
        "damaged",
        DOCTOR,
    ),
    "a wrong shape in the tower": Case(
        variant(
            weights=lambda w: {
                k: v[:-1] if k == f"{APPLE_TOWER}network.0.0.convffn.conv.bn.running_var" else v
                for k, v in w.items()
            }
        ),
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
        lambda at: ["generate", PICTURE, "-m", golden("apple-mlx-export-fp16")],
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
        return ["generate", PICTURE, "-m", at / "damaged"]

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


# --- convert ---


def converting(*options: object) -> Make:
    return lambda at: ["convert", MODEL, "-o", at / "out", *options]


def filled(at: Path, *options: object) -> list[object]:
    (at / "out").mkdir()
    (at / "out" / "mine.txt").write_text("precious")
    (at / "out" / "config.json").write_text("{}")  # what is no model is not replaced at all
    return ["convert", MODEL, "-o", at / "out", *options]


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


CONVERT_HELP = r"fastvlm-mlx convert --help"
GENERATE_HELP = r"fastvlm-mlx generate --help"
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

QUESTIONS = {
    "no model": Case(lambda at: ["generate", PICTURE], "model", "--model 0.5b"),
    "nothing asked": Case(lambda at: ["generate", "-m", MODEL], "nothing to do", "--prompt"),
    "an empty prompt": Case(question("-p", " "), "--prompt", "ask something"),
    "fewer pictures than marks": Case(
        question("-p", "<image> and <image>"),
        r"marks 2 place.*1 picture",
        "give one picture for each mark",
    ),
    "more pictures than marks": Case(
        lambda at: ["generate", PICTURE, PICTURE, "-m", MODEL, "-p", "<image>?"],
        r"marks 1 place.*2 picture",
        "give one picture for each mark",
    ),
    "a mark in the system prompt": Case(question("--system", "<image>"), "system prompt", "user's text"),
    "image size 100": Case(
        question("--image-size", 100),
        "image.size 100",
        "choose 64 or 128",
    ),
    "image size -64": Case(question("--image-size", -64), "image.size -64", "choose 64"),
    "image size 0": Case(question("--image-size", 0), "image.size 0", "choose 64"),
    "image size 1,000,000": Case(
        question("--image-size", 1_000_000),
        "image.size",
        "choose 16384 or less",
    ),
    "unknown image mode": Case(
        question("--image-mode", "zoom"),
        "image.mode 'zoom'",
        "choose one of pad",
    ),
    "unknown dtype": Case(
        question("--dtype", "int4"),
        "dtype 'int4'",
        "choose one of float16",
    ),
    "temperature -1": Case(
        question("--temp", -1),
        r"temperature is -1",
        "must be 0 .* or more",
    ),
    "temperature nan": Case(
        question("--temp", "nan"),
        r"temperature is nan",
        "must be 0 .* or more",
    ),
    "temperature hot": Case(question("--temp", "hot"), "--temperature", GENERATE_HELP, 2),
    "top_p 0": Case(question("--top-p", 0), "top.p is 0", "above 0 and at most 1"),
    "top_p 2": Case(question("--top-p", 2), "top.p is 2", "above 0 and at most 1"),
    "top_k -1": Case(question("--top-k", -1), "top.k is -1", "0 .* or more"),
    "min_p 2": Case(question("--min-p", 2), "min.p is 2", "from 0 .* to 1"),
    "repetition penalty 0": Case(
        question("--repetition-penalty", 0),
        "repetition.penalty",
        "above 0",
    ),
    "seed -1": Case(question("--seed", -1), "seed is -1", "must be"),
    "seed 2^64": Case(question("--seed", 2**64), "seed", "must be|choose"),
    "max-tokens -1": Case(question("--max-tokens", -1), "--max-tokens", GENERATE_HELP, 2),
    "unknown option": Case(question("--promt", "x"), "--promt", GENERATE_HELP, 2),
    "unknown verb": Case(lambda at: ["generat", PICTURE], "'generat'", "fastvlm-mlx --help", 2),
    "half a character": Case(
        question("-p", "what\udcff?"),
        "half a character",
        "pass valid Unicode",
    ),
    "doctor of nothing": Case(lambda at: ["doctor", at / "gone"], "gone", "give a model directory"),
}

CASES = {
    f"{table}: {name}": case
    for table, cases in (
        ("picture", PICTURES),
        ("model", MODELS),
        ("canonical", CANONICAL),
        ("convert", CONVERSIONS),
        ("question", QUESTIONS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_wrong_input_is_one_line_and_changes_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    arguments = case.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    done = run(*arguments)
    assert snapshot(tmp_path) == before
    assert_refused(done, case.names, case.repair, case.code)


def test_heic_without_its_plugin_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    done = run(*asking("photo.heic", HEIC)(tmp_path))
    assert_refused(done, r"photo\.heic", r"pip install 'fastvlm-mlx\[heic\]'")


def test_an_address_without_the_picture_names_the_answer(run: Run) -> None:
    import http.server
    import threading

    class Absent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Absent) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        done = run("generate", f"http://127.0.0.1:{server.server_port}/cat.png", "-m", MODEL)
        thread.join()
    assert_refused(done, r"/cat\.png.* 404", "check the address")


@pytest.mark.parametrize("options", [("-n", 4), ("-n", 0)], ids=["four tokens", "none"])
def test_a_picture_of_one_pixel_is_a_picture(run: Run, tmp_path: Path, options: tuple[object, ...]) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    done = run("generate", tmp_path / "dot.png", "-m", MODEL, *options)
    assert (done.code, done.err) == (0, "")


# --- permissions, as somebody who has few ---


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read and write everything; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def unreadable_picture(at: Path) -> list[object]:
    shutil.copy(PICTURE, at / "secret.png")
    (at / "secret.png").chmod(0)
    return ["generate", at / "secret.png", "-m", at / "model", "-n", 1]


def unreadable_weights(at: Path) -> list[object]:
    (at / "model" / "model.safetensors").chmod(0)
    return ["generate", at / "picture.png", "-m", at / "model", "-n", 1]


def unreadable_config(at: Path) -> list[object]:
    (at / "model" / "config.json").chmod(0)
    return ["generate", at / "picture.png", "-m", at / "model", "-n", 1]


def unsearchable_model(at: Path) -> list[object]:
    (at / "model").chmod(0)
    return ["generate", at / "picture.png", "-m", at / "model", "-n", 1]


def unwritable_parent(at: Path) -> list[object]:
    (at / "locked").mkdir()
    (at / "locked").chmod(0o555)
    return ["convert", at / "model", "-o", at / "locked" / "out"]


def unsearchable_parent(at: Path) -> list[object]:
    (at / "locked").mkdir()
    (at / "locked").chmod(0)
    return ["convert", at / "model", "-o", at / "locked" / "out"]


PERMISSIONS = {
    "a picture that may not be read": Case(unreadable_picture, r"secret\.png", "pass the path of a readable"),
    "weights that may not be read": Case(unreadable_weights, r"model\.safetensors", "check|download"),
    "a configuration that may not be read": Case(
        unreadable_config, r"config\.json", "[Cc]heck|make it readable|permissions"
    ),
    "a model that may not be searched": Case(
        unsearchable_model, "/model", "[Cc]heck|make it readable|permissions"
    ),
    "a folder that may not be written": Case(unwritable_parent, "locked/out", "permissions of its folder"),
    "a folder that may not be searched": Case(unsearchable_parent, "locked/out", "permission"),
}


@pytest.mark.parametrize("case", PERMISSIONS.values(), ids=PERMISSIONS)
def test_what_may_not_be_read_or_written_is_said(run: Run, public: Path, case: Case) -> None:
    shutil.copytree(MODEL, public / "model")
    shutil.copy(PICTURE, public / "picture.png")
    run("generate", public / "picture.png", "-m", public / "model", "-n", 1)  # imports all that is needed
    arguments = case.make(public)
    before = snapshot(public)
    with without_privileges():
        done = run(*arguments)
    assert snapshot(public) == before
    assert_refused(done, case.names, case.repair, case.code)


# --- the hub, offline ---


@pytest.mark.parametrize("verb", ["generate", "convert"])
@pytest.mark.parametrize("name", ["nobody/FastVLM-9B", "0.5b"])
def test_a_hub_name_that_is_not_here_says_how_to_get_it(tmp_path: Path, verb: str, name: str) -> None:
    arguments = {
        "generate": ("generate", PICTURE, "-m", name),
        "convert": ("convert", name, "-o", tmp_path / "out"),
    }[verb]
    home = tmp_path / "empty"
    home.mkdir()
    done = in_a_process(*arguments, HF_HUB_OFFLINE="1", HF_HOME=str(home), HF_HUB_DISABLE_TELEMETRY="1")
    assert_refused(done, "nobody/FastVLM-9B|apple/FastVLM-0.5B", "go online once, or give the path")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_upload_without_a_token_is_refused_before_any_work(tmp_path: Path) -> None:
    done = in_a_process(
        *("convert", MODEL, "-o", tmp_path / "out", "--upload-repo", "me/mine"),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "empty"),
    )
    assert_refused(done, "me/mine", "hf auth login|HF_TOKEN")
    assert not (tmp_path / "out").exists()


# --- disks that fill up ---


# Files may not grow beyond so many bytes: a disk that fills up, without a disk.
LIMITED = """
import resource, sys
from fastvlm_mlx import cli
count = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
cli.main()
"""


def on_a_disk_of(count: int, *arguments: object) -> Ran:
    return completed((sys.executable, "-W", "error", "-c", LIMITED), count, *arguments)


@pytest.mark.parametrize("count", [100, 30_000, 1_000_000], ids=["at once", "early", "in the weights"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, count: int) -> None:
    done = on_a_disk_of(count, "convert", MODEL, "-o", tmp_path / "out")
    assert_refused(done, "/out", "[Cc]heck the free space")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_directory_that_was_to_be_replaced(tmp_path: Path) -> None:
    filled(tmp_path)
    before = snapshot(tmp_path)
    done = on_a_disk_of(1_000_000, "convert", MODEL, "-o", tmp_path / "out", "--overwrite")
    assert_refused(done, "/out", "[Cc]heck the free space")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("spare", [-1_000_000, 4_096], ids=["seen beforehand", "met while writing"])
def test_a_small_disk_leaves_nothing(tmp_path: Path, converted: Path, run: Run, spare: int) -> None:
    size = (converted / "model.safetensors").stat().st_size + spare
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root and mount")
    try:
        done = run("convert", MODEL, "-o", disk / "out")
        assert_refused(done, "disk/out", "make room|[Cc]heck the free space")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_an_answer_that_cannot_be_written_is_said(options: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        command = [*COMMAND, "generate", str(PICTURE), "-m", str(MODEL), "-n", "4", *options]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert_refused(Ran(done.returncode, "", done.stderr), "output|answer", "[Nn]o space")


# --- killed ---

# Runs the command and stops it at the `moment`-th tick, or lives and prints what ticked. A tick is a change
# in the destination's folder (Python audits them, before they happen) or every 20th tensor written.
STOPPER = """
import os, signal, sys
from contextlib import contextmanager
from fastvlm_mlx import cli, progress
folder, sign, moment, *sys.argv[1:] = sys.argv[1:]
changes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open")
ticks = []

def tick(what):
    ticks.append(what)
    if len(ticks) == int(moment):
        os.kill(os.getpid(), signal.Signals[sign])

def audit(event, arguments):
    if event in changes and isinstance(arguments[0], (str, os.PathLike)) and folder in str(arguments[0]):
        tick(f"{event} {os.path.basename(arguments[0])}")

@contextmanager
def bar(what):
    seen = []
    def advance(done, total):
        seen.append(done)
        if len(seen) % 20 == 0:
            tick(f"wrote {done} of {total}")
    yield advance

progress.bar = bar
sys.addaudithook(audit)
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are started without it
try:
    cli.main()
finally:
    print(*ticks, sep="\\n")
"""
MOMENTS = 10
NEVER = 0


def stopped(folder: Path, moment: int, *options: object, sign: signal.Signals = signal.SIGKILL) -> Ran:
    script = (sys.executable, "-W", "error", "-c", STOPPER, str(folder), sign.name, str(moment))
    return completed(script, "convert", MODEL, "-o", folder / "out", *options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """When to kill: around every renaming, and evenly over the whole run."""

    def of(*options: object) -> list[int]:
        folder = tmp_path_factory.mktemp("alive")
        if options:
            filled(folder)
        alive = stopped(folder, NEVER, *options)
        assert (alive.code, sorted(path.name for path in folder.iterdir())) == (0, ["out"])
        ticks = alive.out.splitlines()
        renamings = [n for n, tick in enumerate(ticks, 1) if tick.startswith("os.rename")]
        assert len(renamings) == 1 + bool(options)
        chosen = [moment for n in renamings for moment in (n, n + 1)]
        evenly = [1 + round(step * (len(ticks) - 1) / (MOMENTS - 1)) for step in range(MOMENTS)]
        chosen += [moment for moment in evenly if moment not in chosen]
        return chosen[:MOMENTS]

    return {"new": of(), "overwrite": of("--overwrite")}


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_killed_conversion_leaves_nothing_or_all_and_the_next_one_sweeps(
    run: Run, tmp_path: Path, converted: Path, moments: dict[str, list[int]], number: int
) -> None:
    assert stopped(tmp_path, moments["new"][number]).code == -signal.SIGKILL
    out = tmp_path / "out"
    if out.exists():
        assert content(out) == content(converted)
    again = run("convert", MODEL, "-o", out, *(["--overwrite"] if out.exists() else []))
    assert (again.code, content(out)) == (0, content(converted))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_killed_overwriting_leaves_the_old_or_the_new_and_the_next_one_sweeps(
    run: Run, tmp_path: Path, converted: Path, moments: dict[str, list[int]], number: int
) -> None:
    filled(tmp_path)
    out, old = tmp_path / "out", content(tmp_path / "out")
    assert stopped(tmp_path, moments["overwrite"][number], "--overwrite").code == -signal.SIGKILL
    if out.exists():
        assert content(out) in (old, content(converted))
    else:
        assert old in [content(path) for path in tmp_path.iterdir()]  # under its hidden name
    assert run("convert", MODEL, "-o", out, "--overwrite").code == 0
    assert content(out) == content(converted)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7])
def test_ctrl_c_while_overwriting_leaves_the_old_or_the_new_alone(
    tmp_path: Path, converted: Path, moments: dict[str, list[int]], number: int
) -> None:
    filled(tmp_path)
    out, old = tmp_path / "out", content(tmp_path / "out")
    done = stopped(tmp_path, moments["overwrite"][number], "--overwrite", sign=signal.SIGINT)
    assert done.code == 130
    assert done.err.strip() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert content(out) in (old, content(converted))


# --- what lies at the destination, or beside it ---


def test_what_a_killed_run_left_is_swept_whatever_the_destination_is_called(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (tmp_path / f".out [1]*.{ended.pid}.partial").mkdir()
    assert run("convert", MODEL, "-o", tmp_path / "out [1]*").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out [1]*"]


@pytest.mark.parametrize("target", ["real", "nowhere"])
def test_overwriting_a_link_leaves_its_target_and_nothing_hidden(
    run: Run, tmp_path: Path, target: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine.txt").write_text("precious")
    (tmp_path / "out").symlink_to(target)
    done = run("convert", MODEL, "-o", tmp_path / "out", "--overwrite")
    assert done.code in (0, 1)
    assert content(tmp_path / "real") == {"mine.txt": b"precious"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "real"]
