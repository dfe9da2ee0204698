"""Killed at any moment, or many at once: every picture captioned once, and the same result in the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from albums import OPTIONS, album, lines, records
from captioning import count, killed
from command import COMMAND, PYTHON, Ran, clean_environment, completed
from refusals import assert_refused

BATCH = 4
PATIENCE_S = 300

Captioned = Callable[..., Ran]
Begun = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = album(tmp_path_factory.mktemp("album") / "photos", 60)
    (folder / "0030.png").write_bytes(b"in the middle, something that is no picture")
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> bytes:
    """What one run that nobody disturbs comes to."""
    out = tmp_path_factory.mktemp("undisturbed") / "captions.jsonl"
    subprocess.run([*COMMAND, *arguments(photos, out)], check=True, env=clean_environment())
    return out.read_bytes()


def arguments(photos: Path, out: Path) -> list[str]:
    return [str(word) for word in ("caption", photos, "-o", out, *OPTIONS, "--batch", BATCH)]


@pytest.fixture
def begin() -> Iterator[Begun]:
    """Start a command without waiting for it; none is left behind."""
    with contextlib.ExitStack() as left:

        def begin(*command: object, **environment: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [str(word) for word in command],
                env=clean_environment() | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            left.enter_context(process)
            left.callback(end, process)
            return process

        yield begin


def end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def until(happened: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.01)


def assert_each_once(out: Path, photos: Path) -> None:
    keys = [record["key"] for record in lines(out)]
    assert sorted(keys) == sorted(path.name for path in photos.iterdir())


# --- killed ---


def killed_and_resumed(photos: Path, out: Path, begin: Begun, kills: int) -> int:
    """-> how often it was killed before it was done"""
    whole = sum(1 for _ in photos.iterdir())
    times = killed(lambda: begin(*COMMAND, *arguments(photos, out)), out, whole, kills)
    assert begin(*COMMAND, *arguments(photos, out)).wait(PATIENCE_S) == 0
    return times


def test_killed_at_random_moments_it_comes_to_the_same(
    photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    out = tmp_path / "captions.jsonl"
    assert killed_and_resumed(photos, out, begin, 4) >= 3
    assert out.read_bytes() == expected
    assert_each_once(out, photos)


@pytest.mark.slow
def test_two_thousand_pictures_killed_twenty_times_come_to_the_same(
    tmp_path: Path, begin: Begun, captioned: Captioned
) -> None:
    photos = album(tmp_path / "photos", 2000)
    out = tmp_path / "captions.jsonl"
    assert killed_and_resumed(photos, out, begin, 20) >= 15
    captioned(photos, "--batch", 16, out=tmp_path / "undisturbed.jsonl")
    assert out.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert len(records(out)) == 2000
    assert_each_once(out, photos)


# Runs the command and kills it as the `moment`-th line is written, `share` per cent of which is on disk.
# The first line is that of the settings.
KILLER = """
import os, signal, sys
from fastvlm_mlx import cli
from fastvlm_mlx.files import journal
moment, share, *sys.argv[1:] = sys.argv[1:]
append, lines = journal.append, []

def killed(file, line):
    lines.append(line)
    if len(lines) == int(moment):
        append(file, line[: len(line) * int(share) // 100])
        os.kill(os.getpid(), signal.SIGKILL)
    append(file, line)

journal.append = killed
cli.main()
"""

# Kills it as the result is written, when all is done.
KILLER_AT_THE_END = """
import os, signal, sys
from fastvlm_mlx import cli
from fastvlm_mlx.caption import results
write = results.FORMATS["jsonl"]

def killed(path, out, captioned):
    write(path, out, captioned)
    os.kill(os.getpid(), signal.SIGKILL)

results.FORMATS["jsonl"] = killed
cli.main()
"""


@pytest.mark.parametrize(
    ("script", "before"),
    [
        ((KILLER, "1", "50"), 0),
        ((KILLER, "2", "50"), 0),
        ((KILLER, "20", "99"), 18),
        ((KILLER_AT_THE_END,), 60),
    ],
    ids=["in the settings", "in the first line", "before the end of a line", "in the result"],
)
def test_a_line_that_is_torn_is_made_again(
    captioned: Captioned, photos: Path, tmp_path: Path, expected: bytes, script: tuple[str, ...], before: int
) -> None:
    out = tmp_path / "captions.jsonl"
    died = completed((*PYTHON, "-c", *script), *arguments(photos, out))
    assert died.code == -signal.SIGKILL
    assert count(out) == before
    assert not out.exists()
    assert f"{60 - before} new" in captioned(photos, "--batch", BATCH).err
    assert out.read_bytes() == expected
    assert_each_once(out, photos)
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_is_quiet_and_loses_nothing(
    captioned: Captioned, photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    out = tmp_path / "captions.jsonl"
    process = begin(*COMMAND, *arguments(photos, out), "--batch", 1)  # slow enough to be met at work
    until(lambda: count(out) > 1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said.strip()) == (130, b"")
    captioned(photos, "--batch", BATCH)
    assert out.read_bytes() == expected
    assert_each_once(out, photos)


# --- several at once ---


def test_two_of_the_same_command_share_the_work(
    photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    out = tmp_path / "captions.jsonl"
    both = [begin(*COMMAND, *arguments(photos, out)) for _ in range(2)]
    told = [process.communicate(timeout=PATIENCE_S)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("59 captions" in each for each in told)
    assert out.read_bytes() == expected
    assert_each_once(out, photos)


def test_overwriting_waits_for_whoever_is_at_work(
    photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    out = tmp_path / "captions.jsonl"
    working = begin(*COMMAND, *arguments(photos, out))
    until(lambda: count(out) > 3)
    working.send_signal(signal.SIGSTOP)
    done = completed(COMMAND, *arguments(photos, out), "--overwrite")
    assert_refused(done, r"captions\.jsonl\.run: another process is at work", "wait for it or stop it")
    working.send_signal(signal.SIGCONT)
    assert working.wait(PATIENCE_S) == 0
    assert out.read_bytes() == expected


def ports() -> tuple[int, int]:
    """Two free ones in a row."""
    while True:
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1


def test_a_rank_that_is_killed_leaves_the_others_running_and_its_share_to_them(
    photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    launcher = Path(sys.executable).with_name("mlx.launch")
    out, pid = tmp_path / "captions.jsonl", tmp_path / "pid"
    script = 'echo $$ > "$0.$MLX_RANK"; exec "$@"'
    ranks = ("-n", 2, "--backend", "ring", "--starting-port", ports()[0], "--", "/bin/sh", "-c", script, pid)
    launched = begin(launcher, *ranks, *COMMAND, *arguments(photos, out))
    until(lambda: count(out) > 8)
    os.kill(int(Path(f"{pid}.1").read_text()), signal.SIGKILL)
    told, _ = launched.communicate(timeout=PATIENCE_S)
    assert b"rank 1 exited with code -9" in told
    assert b"rank 0 of 2: " in told
    assert out.read_bytes() == expected
    assert_each_once(out, photos)


def test_ranks_divide_the_work(photos: Path, tmp_path: Path, begin: Begun, expected: bytes) -> None:
    out = tmp_path / "captions.jsonl"
    out.write_text("something old")
    told = ranks(begin, tmp_path, [arguments(photos, out)] * 2, "--overwrite")
    shares = [int(each.split(" captions; ")[1].split()[0]) for each in told]
    assert sum(shares) == 60
    assert out.read_bytes() == expected
    assert_each_once(out, photos)


def test_ranks_that_share_no_folder_have_fixed_shares_that_can_be_put_together(
    captioned: Captioned, photos: Path, tmp_path: Path, begin: Begun, expected: bytes
) -> None:
    outs = [tmp_path / machine / "captions.jsonl" for machine in "ab"]
    for out in outs:
        out.parent.mkdir()
    told = ranks(begin, tmp_path, [arguments(photos, out) for out in outs])
    assert all("share no folder" in each for each in told)
    shares = [out.read_bytes().splitlines() for out in outs]
    assert sorted(shares[0] + shares[1]) == sorted(expected.splitlines())
    for part in outs[1].with_name("captions.jsonl.run").glob("part-*.jsonl"):
        assert not (outs[0].with_name("captions.jsonl.run") / part.name).exists()
        shutil.copy(part, outs[0].with_name("captions.jsonl.run"))
    assert "0 new" in captioned(photos, out=outs[0]).err
    assert outs[0].read_bytes() == expected


def ranks(begin: Begun, at: Path, commands: list[list[str]], *more: str) -> list[str]:
    """What each says."""
    hosts = at / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports()]))
    each = [
        begin(*COMMAND, *command, *more, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts))
        for rank, command in enumerate(commands)
    ]
    told = [process.communicate(timeout=PATIENCE_S)[0].decode() for process in each]
    assert [process.returncode for process in each] == [0] * len(commands), told
    return told


# --- disks that fill up ---


LIMITED = """
import resource, sys
from fastvlm_mlx import cli
from fastvlm_mlx.caption import ledger
ledger.PARTS = 4  # so that one of them outgrows the settings
count = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
cli.main()
"""


@pytest.mark.parametrize("limit", [100, 700, 2500], ids=["at once", "in a part", "in the result"])
def test_a_full_disk_keeps_what_there_is_and_the_same_command_goes_on(
    captioned: Captioned, photos: Path, tmp_path: Path, expected: bytes, limit: int
) -> None:
    out = tmp_path / "captions.jsonl"
    done = completed((*PYTHON, "-c", LIMITED), limit, *arguments(photos, out))
    assert_refused(done, r"captions\.jsonl", "[Cc]heck the free space")
    assert not out.exists()
    before = count(out)
    assert (before > 0) == (limit > 100)
    assert f"{60 - before} new" in captioned(photos, "--batch", BATCH).err
    assert out.read_bytes() == expected
    assert_each_once(out, photos)
