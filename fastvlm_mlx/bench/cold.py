"""A cold start: a fresh process that starts, loads, answers with one token and ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..errors import CheckpointError
from ..inputs.tiling import grid_name
from .measure import Case, picture


def cold_start(model: str, case: Case, dtype: str | None, revision: str | None) -> float:
    options = ["-m", model, "-n", "1", "--image-size", str(case.size), "--json"]
    options += ["--image-mode", case.image_mode] if case.image_mode else []
    options += ["--grid", grid_name(case.grid)] if case.grid else []
    options += ["--max-tiles", str(case.max_tiles)] if case.max_tiles else []
    options += ["--dtype", dtype] if dtype else []
    options += ["--revision", revision] if revision else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.jpg"
        file.write_bytes(picture())
        command = [sys.executable, "-m", "fastvlm_mlx", "generate", str(file), *options]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - began
    if done.returncode:
        why = " ".join(done.stderr.split())[-200:]
        raise CheckpointError(f"{model}: a fresh process could not answer ({why}); --no-cold leaves it out")
    return taken
