"""Conversions that are killed, and what lies at their destination or beside it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import MODEL, PYTHON, Ran, Run, completed, content
from refusals import filled

# --- killed ---

# Runs the command and stops it at the `moment`-th tick, or lives and prints what ticked. A tick is a change
# in the destination's folder (Python audits them, before they happen) or every 20th tensor written.
STOPPER = """
import os, signal, sys
from contextlib import contextmanager
from fastvlm_mlx import cli
from fastvlm_mlx.terminal import progress
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
    script = (*PYTHON, "-c", STOPPER, str(folder), sign.name, str(moment))
    return completed(script, "convert", MODEL, "-o", folder / "out", *options)


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
