"""`export --check`: will the programs an export is for load a directory, and if not, what is the repair?"""

from __future__ import annotations

from pathlib import Path

from ....errors import CheckpointError
from ....files.atomic import TOWER_PACKAGE
from ....weights.checkpoint import CONFIG
from ...doctor.inspect import Report, Seen, look
from ...read.tensor_names import APPLE_APP
from . import apple_app, swift


def check(directory: Path) -> Report:
    """Apple's app, Core ML or mlx-swift-lm and mlx-vlm: the directory says for whom it is."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: not a directory; give an exported directory")
    if (directory / TOWER_PACKAGE).exists() and not (directory / CONFIG).exists():
        return apple_app.check_package(directory)
    return judge(look(directory))


def judge(seen: Seen) -> Report:
    """Nothing is judged of what cannot be read."""
    if seen.has_problem("weights") or seen.has_problem("layout"):
        return Report(seen.directory, seen.layout.name if seen.layout else None, {}, tuple(seen.findings))
    return (apple_app if seen.layout is APPLE_APP else swift).judge(seen)
