"""What is around the command: permissions, the hub when there is none, disks that fill up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import COMMAND, MODEL, PYTHON, Ran, Run, completed, in_a_process
from pictures import TALL
from refusals import Case, assert_refused, filled, snapshot

NOBODY = 65534

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
    shutil.copy(TALL, at / "secret.png")
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
    shutil.copy(TALL, public / "picture.png")
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
        "generate": ("generate", TALL, "-m", name),
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
    return completed((*PYTHON, "-c", LIMITED), count, *arguments)


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


def test_a_full_disk_keeps_the_predictions_that_it_has(run: Run, tmp_path: Path) -> None:
    row = {"image": str(TALL), "question": "What is this?", "answer": "cat"}
    (tmp_path / "data.jsonl").write_text((json.dumps(row) + "\n") * 8)
    said = tmp_path / "said.jsonl"
    arguments = ("eval", MODEL, tmp_path / "data.jsonl", "-n", 4, "--predictions", said)
    assert_refused(on_a_disk_of(1_000, *arguments), r"said\.jsonl", "the same command resumes")
    assert said.stat().st_size <= 1_000
    assert run(*arguments).code == 0
    assert [json.loads(line)["line"] for line in said.read_text().splitlines()[1:]] == [*range(1, 9)]


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
        command = [*COMMAND, "generate", str(TALL), "-m", str(MODEL), "-n", "4", *options]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert_refused(Ran(done.returncode, "", done.stderr), "output|answer", "[Nn]o space")
