"""The rules of the house that a machine can check."""

import ast
import importlib
from pathlib import Path

import pytest

import fastvlm_mlx

ROOT = Path(__file__).parent.parent
FLOORS = (
    "errors blas progress journal ahead thread_exit",
    "strict atomic amounts",
    "config",
    "reading kernels",
    "image tokenizer prompt tensorfile sampling models.cache models.products dataset preview dropped lines",
    "models.vision models.projector models.qwen2 neural_engine sharding video",
    "models.fastvlm memory saved",
    "lora decoding",
    "checkpoint hub generate guessing",
    "vlm convert",
    "session allocator",
    "bench caption evaluate serve train",
    "tell",
    "chat",
    "verbs",
    "cli",
    "__main__",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
SEAM = ("checkpoint", "convert")  # the one lazy import upwards: other layouts are translated on load


def rooms() -> list[tuple[str, Path]]:
    inside = [
        (".".join(path.relative_to(ROOT / "fastvlm_mlx").with_suffix("").parts), path)
        for path in sorted((ROOT / "fastvlm_mlx").rglob("*.py"))
    ]
    converters = [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), path)
        for path in sorted((ROOT / "convert").rglob("*.py"))
    ]
    return [(name, path) for name, path in inside + converters if not name.endswith("__init__")]


def room_of(module: str) -> str | None:
    """The named room a module belongs to, None for packages that only gather others."""
    names = [room for room in FLOOR_OF if module == room or module.startswith(room + ".")]
    return max(names, key=len, default=None)


def imported(name: str, path: Path) -> set[str]:
    found: set[str] = set()
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
        elif (node.module or "").split(".")[0] == "fastvlm_mlx":
            base = []
        else:
            continue
        module = (node.module or "").removeprefix("fastvlm_mlx").strip(".")
        start = ".".join([*base, *([module] if module else [])])
        found |= {f"{start}.{alias.name}".strip(".") for alias in node.names} | ({start} if start else set())
    return found


def test_imports_run_strictly_downward() -> None:
    wrong = []
    for name, path in rooms():
        own = room_of(name)
        assert own is not None, f"{name} has no floor: add it to FLOORS"
        targets = {room_of(module) for module in imported(name, path)} - {None, own}
        wrong += [
            f"{name} imports {target}"
            for target in targets
            if (own, target) != SEAM and FLOOR_OF[target] >= FLOOR_OF[own]
        ]
    assert not wrong


def test_everything_public_exists_and_nothing_else_is_promised() -> None:
    assert sorted(fastvlm_mlx.__all__) == sorted(fastvlm_mlx._HOME_OF)
    for name in fastvlm_mlx.__all__:
        home = importlib.import_module(f"fastvlm_mlx.{fastvlm_mlx._HOME_OF[name]}")
        assert getattr(fastvlm_mlx, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="nonsense"):
        fastvlm_mlx.nonsense  # noqa: B018


def test_evaluation_happens_only_where_it_is_expected() -> None:
    allowed = {
        "decoding",
        "vlm",
        "prompt",
        "memory",
        "kernels.depthwise",
        "kernels.measure",
        "kernels.lanes",
        "checkpoint",
        "tensorfile",
        "saved",
        "train.trainer",
        "train.state",
        "bench.untrained",
        "bench.peer_mlx_vlm",
        "sharding",
    }
    allowed |= {"convert.doctor.inspect", "convert.verify"}
    for name, path in rooms():
        if name not in allowed:
            assert "mx.eval(" not in path.read_text(encoding="utf-8"), name


def test_the_library_does_not_print() -> None:
    for name, path in rooms():
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), name


def test_benchmarks_prefer_openblas_as_the_package_does() -> None:
    """MLX takes the BLAS that was there when it was loaded."""
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        names = [
            (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        if "mlx" in names:
            assert "fastvlm_mlx" in names[: names.index("mlx")], path
