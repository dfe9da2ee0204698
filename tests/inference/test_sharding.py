"""A model divided between processes says what it says whole, with its part of the memory each."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import checkpoints
import divided
import numpy as np
import pytest
import ring
from command import COMMAND, MODEL, Ran, Run
from pictures import TALL

import fastvlm_mlx
from fastvlm_mlx.config import ModelConfig, Quantization, TextConfig, VisionConfig
from fastvlm_mlx.inference import sharding
from fastvlm_mlx.models.fastvlm import FastVLM
from fastvlm_mlx.train.ranks import _free_ports
from fastvlm_mlx.weights import checkpoint

LIMIT = 1e-5  # of logits, in float32
WIDE = TextConfig(1024, 4, 8, 4, 4096, 512, tied=False)
WIDE_BYTES = 4 * 4 * (1024 * (2048 + 1024 + 3 * 4096) + 2048)  # of its layers' matrices
CHECKPOINTS = {
    "untied": "apple-fused",
    "tied": "tied",
    "4bit": "mlx-vlm-4bit",
    "8bit": "mlx-vlm-8bit",
    f"{divided.PACKED}-4bit": "mlx-vlm-4bit-groups-of-32",
}
GENERATE = (*COMMAND, "generate")


@pytest.fixture(scope="module")
def directories(
    directory_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    eight = tmp_path_factory.mktemp("variant") / "packed-8bit"
    checkpoints.build(checkpoints.Packing(8, 32).variant(), eight)
    found = {name: directory_of(variant) for name, variant in CHECKPOINTS.items()}
    return found | {f"{divided.PACKED}-8bit": eight}


@pytest.fixture(scope="module")
def of_two(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[divided.Found]:
    """What each of two processes found out about every checkpoint."""
    return told_by(2, directories, tmp_path_factory.mktemp("two"))


def told_by(count: int, models: Mapping[str, Path], folder: Path) -> list[divided.Found]:
    given = [f"{name}={directory}" for name, directory in models.items()]
    for ran in ring.run(count, [sys.executable, divided.__file__, folder, *given], folder):
        assert ran.code == 0, ran.err
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(count)]


@pytest.mark.parametrize("name", [*CHECKPOINTS, f"{divided.PACKED}-8bit"])
def test_two_processes_say_what_one_does(
    name: str, directories: dict[str, Path], of_two: list[divided.Found], relative_error: Callable[..., float]
) -> None:
    whole = divided.found(name, divided.load(name, directories[name]))
    for told in of_two:
        assert relative_error(told[f"{name}.logits"], whole[f"{name}.logits"]) < LIMIT
        for how in ("greedy", "repetitions", "seeded"):
            assert told[f"{name}.{how}"].tolist() == whole[f"{name}.{how}"].tolist(), how


def test_without_a_seed_the_first_process_draws_for_all(of_two: list[divided.Found]) -> None:
    for name in CHECKPOINTS:
        one, other = (told[f"{name}.sampled"].tolist() for told in of_two)
        assert one == other


@pytest.fixture(scope="module")
def wide(
    vlm_of: Callable[[str], fastvlm_mlx.VLM], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A decoder of 63 million weights, enough to see where they are."""
    small = vlm_of("apple-fused")
    config = replace(small.config, text=WIDE)
    weights = checkpoint.FusedWeights(checkpoint.parameters(FastVLM(config)))
    directory = tmp_path_factory.mktemp("wide") / "model"
    checkpoint.save(directory, config, weights, small.tokenizer, {})
    return {"wide": directory}


def test_four_processes_say_what_one_does_with_a_part_of_the_memory_each(
    wide: dict[str, Path], tmp_path: Path, relative_error: Callable[..., float]
) -> None:
    each = told_by(4, wide, tmp_path)
    whole = divided.found("wide", divided.load("wide", wide["wide"]))
    largest = 4 * 1024 * 2 * WIDE.intermediate_size  # is read whole, then cut
    for told in each:
        assert relative_error(told["wide.logits"], whole["wide.logits"]) < LIMIT
        assert told["wide.greedy"].tolist() == whole["wide.greedy"].tolist()
        most, afterwards, resident = told["wide.memory"]
        assert afterwards < 0.3 * WIDE_BYTES
        assert most < 0.3 * WIDE_BYTES + 2 * largest
        assert resident < 0.4 * WIDE_BYTES + 2 * largest


# --- what can be divided ---


def config(kv_heads: int, intermediate: int, **packed: int) -> ModelConfig:
    """Sixteen heads of eight, and matrices packed in groups."""
    text = TextConfig(128, 1, 16, kv_heads, intermediate, 512, tied=True)
    how = {
        f"language.layers.0.{path.replace('_', '.')}": Quantization(4, group)
        for path, group in packed.items()
    }
    return ModelConfig(VisionConfig(), text, quantization=how)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        (config(4, 512), [1, 2, 4]),
        (config(16, 512), [1, 2, 4, 8, 16]),
        (config(4, 514), [1, 2]),
        (config(1, 512), [1]),
        (config(8, 512, attention_out=32), [1, 2, 4]),
        (config(8, 512, attention_out=64), [1, 2]),
        (config(8, 512, mlp_down=128), [1, 2, 4]),
        (config(8, 512, attention_qkv=128, mlp_gate_up=128), [1, 2, 4, 8]),
    ],
)
def test_heads_widths_and_packed_groups_say_how_many_can_share(given: ModelConfig, counts: list[int]) -> None:
    assert sharding.counts(given) == counts


def test_the_released_sizes_can_be_shared_by_as_many_as_have_keys() -> None:
    sizes = {"0.5b": (896, 24, 14, 2, 4864), "1.5b": (1536, 28, 12, 2, 8960), "7b": (3584, 28, 28, 4, 18944)}
    for name, of_model in sizes.items():
        text = TextConfig(*of_model, vocab_size=151936, tied=name != "7b")
        how = {f"language.layers.0.{end}": Quantization(4, 64) for end in ("attention.out", "mlp.down")}
        given = ModelConfig(VisionConfig(), text, quantization=how)
        assert sharding.counts(given) == ([1, 2, 4] if name == "7b" else [1, 2])


# --- the command ---


def asked(*more: object) -> list[object]:
    return [*GENERATE, "picture.png", "-m", MODEL, "--shard", *more]


def one_line(told: list[Ran], pattern: str) -> None:
    lines = [line for ran in told for line in ran.err.splitlines()]
    assert len(lines) == 1, lines
    assert re.search(pattern, lines[0])
    assert all(ran.code == 1 and not ran.out for ran in told)


def test_the_picture_need_be_on_the_first_machine_alone(
    directory_of: Callable[[str], Path], tmp_path: Path, run: Run
) -> None:
    """And all leave together, though the answer stops while the next token is being computed."""
    (tmp_path / "picture.png").write_bytes(TALL.read_bytes())
    model = shutil.copytree(directory_of("apple-fused, converted"), tmp_path / "model")
    vlm = fastvlm_mlx.load(model)
    ids = vlm.generate(vlm.prompt("Describe the image.", [TALL]), max_tokens=6).ids
    said = json.loads((model / "config.json").read_text()) | {"eos_token_ids": [ids[-1]]}
    (model / "config.json").write_text(json.dumps(said))

    command = [*GENERATE, "picture.png", "-m", model, "--shard", "--stats"]
    first, second = ring.run(2, command, tmp_path, apart=True)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out == run("generate", TALL, "-m", model).out
    assert "ended by stop" in first.err
    assert "[ring]" not in first.err
    assert (second.out, second.err) == ("", "")


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    one_line(ring.run(2, asked(), tmp_path), r"picture\.png")
    (tmp_path / "picture.png").write_bytes(TALL.read_bytes())
    three = ring.run(3, asked(), tmp_path)
    one_line(three, r"3 processes cannot share 4 heads with 2 of keys and values; .*: 1, 2$")
    long = ring.run(2, asked("-p", "much " * 9000), tmp_path)
    one_line(long, r"positions and the model reads")


def test_one_process_alone_says_so(run: Run) -> None:
    ran = run("generate", TALL, "-m", MODEL, "--shard")
    assert ran.code == 1
    assert re.fullmatch(r"fastvlm-mlx: --shard .*the only one.*mlx\.launch.*\n", ran.err)


def test_a_draft_model_is_refused(tmp_path: Path) -> None:
    one_line(ring.run(2, asked("--draft-model", MODEL), tmp_path), "--shard does not support --draft-model")


def under_way(tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Two processes in the middle of a long answer."""
    (tmp_path / "picture.png").write_bytes(TALL.read_bytes())
    ranks = ring.started(2, asked("-n", 4000, "--temperature", 3), tmp_path)
    assert ranks[0].stdout is not None
    assert ranks[0].stdout.read(1)
    return ranks


def test_who_waits_for_a_process_that_is_gone_can_be_ended(tmp_path: Path) -> None:
    """By the launcher, which sees that it is gone; MLX does not always say so."""
    ranks = under_way(tmp_path)
    ranks[1].kill()
    ranks[1].wait()
    time.sleep(2)
    ranks[0].terminate()
    first, _ = ring.ended(ranks)
    assert first.code in (1, -signal.SIGTERM)
    lines = [line for line in first.err.splitlines() if not line.startswith("[ring]")]  # MLX's own
    assert len(lines) <= 1
    assert all("lost another" in line for line in lines)


def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    ranks = under_way(tmp_path)
    for rank in ranks:
        rank.send_signal(signal.SIGINT)
    for ran in ring.ended(ranks):
        assert ran.code in (1, -signal.SIGINT)
        assert "Traceback" not in ran.err


def test_as_mlx_starts_it(tmp_path: Path, run: Run) -> None:
    launch = [Path(sys.executable).parent / "mlx.launch", "-n", 2, "--backend", "ring"]
    launch += ["--starting-port", _free_ports(1)[0], "--", *GENERATE, TALL, "-m", MODEL, "-n", 4, "--shard"]
    quiet, held = os.pipe()  # kept open: the launcher waits for what is typed
    try:
        done = subprocess.run(
            [*map(str, launch)], stdin=quiet, capture_output=True, text=True, timeout=ring.WAIT_S, check=False
        )
    finally:
        os.close(quiet)
        os.close(held)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run("generate", TALL, "-m", MODEL, "-n", 4).out
