"""The command as a user runs it, in a process of its own or (the fixture `run`) in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints import golden

from fastvlm_mlx import cli

MODEL = golden("apple-fused")
PYTHON = (sys.executable, "-W", "error")
COMMAND = (*PYTHON, "-m", "fastvlm_mlx")


@dataclass(frozen=True)
class Ran:
    code: object
    out: str
    err: str


Run = Callable[..., Ran]


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


def content(folder: Path) -> dict[str, bytes]:
    """What the command left in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
