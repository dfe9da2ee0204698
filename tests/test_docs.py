"""The documentation: every link leads somewhere, every command exists, and what can run offline runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import typer
from checkpoints import golden
from command import Run

import fastvlm_mlx
from fastvlm_mlx import cli
from fastvlm_mlx.convert.export import swift
from fastvlm_mlx.kernels import choice
from fastvlm_mlx.models import lora
from fastvlm_mlx.weights import hub

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = ROOT / "fastvlm_mlx" / "assets" / "tiny"
OTHERS = (
    *("pip", "uv", "make", "python", "curl", "cp", "cd", "swift", "xcodebuild", "export", "git", "pytest"),
    ".venv/bin/",
)
VERBS_RUN = ("generate", "chat", "convert", "doctor", "eval", "models", "export")
TOO_LONG = (
    *("--draft-model 0.5b", "--upload-repo", "coreml", "apple-app", "--shard", "clip.mp4"),
    "--image-size 2048",
)


def slug(heading: str) -> str:
    """What GitHub makes of a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"


@dataclass(frozen=True)
class Command:
    page: str
    line: str
    arguments: tuple[str, ...]
    stdin: str  # the command before the pipe

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def commands() -> Iterator[Command]:
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language != "sh":
                continue
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(("  ", '"', "{")) or not line.strip() or line.startswith(OTHERS):
                    continue
                before, _, ours = line.rpartition("fastvlm-mlx ")
                words = tuple(shlex.split(ours, comments=True))
                yield Command(page.stem, line, words, before.partition("|")[0].strip())


COMMANDS = list(commands())


def test_there_are_commands_for_each_kind_of_user() -> None:
    verbs = {command.arguments[0] for command in COMMANDS if command.page == "README"}
    assert verbs >= {"generate", "chat", "serve", "caption", "convert", "export", "doctor", "bench"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_one_that_exists(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verb, options and values; nothing runs."""
    monkeypatch.setattr(choice, "_mode", None)  # put back afterwards, as --kernels sets it
    verbs: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    verb, *arguments = command.arguments
    assert verb in verbs, command.line
    verbs[verb].make_context(verb, arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documentation names."""
    there = tmp_path_factory.mktemp("docs")
    shapes = ROOT / "examples" / "pictures"
    shutil.copytree(shapes, there / "examples" / "pictures")
    for name in ("cat.jpg", "photo.jpg", "page.png", "picture.png", "a.jpg", "b.jpg"):
        shutil.copy(shapes / "shapes.png", there / name)
    for name in ("my-training-run", "mine", "tuned"):
        shutil.copytree(golden("apple-train"), there / name)
    swift.export(golden("apple-fused"), there / "downloaded")
    row = json.dumps({"question": "Which bar is tallest?", "answer": "H", "image": "chart.png"}) + "\n"
    for data, beside in (("textvqa/val.jsonl", "textvqa"), ("docvqa.jsonl", "scans")):
        shutil.copytree(shapes, there / beside)
        (there / data).write_text(row)
    vlm = fastvlm_mlx.load("tiny")
    session = fastvlm_mlx.Session(vlm)
    session.generate("What is this?", [there / "cat.jpg"], max_tokens=4)
    session.save(there / "cats.session")
    width, path = vlm.config.text.hidden_size, "language.layers.0.attention.out"
    pair = {f"{path}.lora_a": mx.zeros((width, 8)), f"{path}.lora_b": mx.zeros((8, width))}
    lora.write(there / "runs" / "mine" / "adapter", lora.Adapter("tiny", lora.LoRASettings(), pair))
    return there


@pytest.fixture
def offline(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In that folder. Models that would be downloaded are replaced by the built-in one, checkpoints by small
    ones."""
    here = hub.resolve

    def resolve(name: str | Path, revision: str | None = None) -> Path:
        if str(name) in ("0.5b", "1.5b", "7b"):
            return TINY
        return golden("apple-fused") if str(name).startswith("apple/") else here(name, revision)

    monkeypatch.setattr(hub, "resolve", resolve)
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "copy", symlinks=True))


RUN = [c for c in COMMANDS if c.arguments[0] in VERBS_RUN and not any(part in c.line for part in TOO_LONG)]


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=str)
def test_what_can_run_offline_runs(command: Command, offline: None, run: Run) -> None:
    words = shlex.split(command.stdin)
    stdin = b""
    if words[:1] == ["cat"]:
        stdin = Path(words[1]).read_bytes()
    elif words[:1] == ["printf"]:
        stdin = words[1].encode().decode("unicode_escape").encode()
    ran = run(*command.arguments, stdin=stdin)
    assert ran.code in (0, None), ran.err


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_of_a_page_runs(page: str, offline: None) -> None:
    blocks = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    program = "\n".join(block for language, block in blocks if language == "python")
    exec(compile(program.replace("(pixels)", "(prompt[1].pixels)"), page, "exec"), {})
