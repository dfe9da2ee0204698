"""What needs a process of its own: signals, pipes, encodings, a cold start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, MODEL, PYTHON, Ran, completed
from pictures import TALL

from fastvlm_mlx import __version__

HEAVY = ("transformers", "mlx_lm", "mlx_vlm", "huggingface_hub", "torch", "coremltools", "starlette")


def test_the_installed_command_and_the_module_are_one() -> None:
    beside = Path(sys.executable).with_name("fastvlm-mlx")
    if not beside.exists():
        pytest.skip("the console script is not installed beside this interpreter")
    for command in ((str(beside),), COMMAND):
        assert completed(command, "--version") == Ran(0, f"{__version__}\n", "")


def test_ctrl_c_while_answering_leaves_quietly_with_130() -> None:
    script = (
        "import signal\n"
        "from fastvlm_mlx.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs start without it
        "main()"
    )
    arguments = ["generate", str(TALL), "-m", str(MODEL), "-n", "1000000"]
    command = [*PYTHON, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # the answer has begun
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == b""


@pytest.mark.parametrize(
    ("asked", "after", "rows", "count"),
    [
        (("-m", MODEL, "--sizes", "256", "--runs", "100000", "--no-cold"), 2, "cases", 1),
        (("-m", MODEL, "--sizes", "64", "--runs", "100000", "--against", "fastvit"), 3, "runs", 2),
        (("--plan", "--random", "0.5b", "--ttft", "60s", "--sizes", "64,128", "--runs", "1"), 2, "plan", 1),
    ],
    ids=["times", "--against", "--plan"],
)
def test_terminated_a_benchmark_keeps_what_it_has_measured(
    asked: tuple[object, ...], after: int, rows: str, count: int, tmp_path: Path
) -> None:
    kept = tmp_path / "bench.json"
    script = (
        "import os, signal\n"
        "from fastvlm_mlx.bench import measure, variants\n"
        "from fastvlm_mlx.cli import main\n"
        "from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig\n"
        "text = TextConfig(32, 1, 2, 2, 64, 512, tied=True)\n"
        "small = ModelConfig(VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 64, 128)), text)\n"
        "variants.VARIANTS['0.5b'] = small\n"
        "runs = measure.measure\n"
        "def counted(*given):\n"
        "    counted.left -= 1\n"
        "    counted.left < 0 and os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return runs(*given)\n"
        f"counted.left = {after}\n"
        "measure.measure = counted\n"
        "main()"
    )
    done = completed((*PYTHON, "-c", script), "bench", *asked, "--json", kept)
    assert (done.code, done.err) == (143, "")
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["complete"] is False
    assert len(found[rows]) == count


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("generate", TALL, "-m", MODEL, "-n", 40),
        ("generate", TALL, "-m", MODEL, "-n", 40, "--json"),
    ],
    ids=["help", "text", "json"],
)
def test_a_closed_pipe_is_quiet(arguments: tuple[object, ...]) -> None:
    line = shlex.join([*COMMAND, *map(str, arguments)])
    done = completed(("bash", "-c"), f"set -o pipefail; {line} | head -c 1")
    assert len(done.out) == 1
    assert done.err == ""
    assert done.code in (0, 1, 141)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_gets_an_answer(encoding: str) -> None:
    """The golden models say bytes that are no characters, so U+FFFD comes up at once."""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [*COMMAND, "generate", str(TALL), "-m", str(MODEL), "-n", "12"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("generate", TALL, "-m", MODEL, "-n", 4), ("eval", "--help")],
    ids=["help", "generate", "help of eval"],
)
def test_a_cold_start_loads_nothing_heavy(arguments: tuple[object, ...]) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['fastvlm-mlx', *{[*map(str, arguments)]!r}]\n"
        "from fastvlm_mlx.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], sep=',', file=sys.stderr)\n"
    )
    done = completed((*PYTHON, "-c", script))
    assert (done.code, done.err.strip()) == (0, "")


def test_help_does_not_load_mlx() -> None:
    script = (
        "import sys\nsys.argv = ['fastvlm-mlx', '--help']\nfrom fastvlm_mlx.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('mlx.core' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=60, check=True)
