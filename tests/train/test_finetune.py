"""Fine-tuning on a user's data, whole: what moves, what is written, and that a killed run loses nothing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tuning
from command import PYTHON, Run, completed

import fastvlm_mlx
from fastvlm_mlx.convert.doctor.checks import examine
from fastvlm_mlx.convert.quantize import uniform
from fastvlm_mlx.convert.run import convert
from fastvlm_mlx.errors import FastVLMError
from fastvlm_mlx.models import lora
from fastvlm_mlx.train import recipe as recipes
from fastvlm_mlx.train.finetune import finetune
from fastvlm_mlx.weights import checkpoint

Directory = Callable[[str], Path]
KILLER = """
import os, signal, sys
from pathlib import Path
import fastvlm_mlx
from fastvlm_mlx.train import recipe, finetune
finetune.finetune(
    recipe.read(Path(sys.argv[1])),
    Path(sys.argv[2]),
    progress=lambda done, total: done == int(sys.argv[3]) and os.kill(os.getpid(), signal.SIGKILL),
)
"""


@pytest.fixture
def base(directory_of: Directory) -> Path:
    return directory_of("apple-fused, converted")


@pytest.fixture(scope="module")
def packed(directory_of: Directory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "8bit"
    convert(directory_of("apple-fused, converted"), out, recipe=uniform(8), group_size=32)
    return out


def tuned(folder: Path, model: Path, more: str = "", out: str = "run", **changes: Any) -> Path:
    """The folder of a finished run."""
    tuning.rows(folder)
    finetune(recipes.read(tuning.recipe(folder, model, more, **changes)), folder / out)
    return folder / out


def logged(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def newest(run: Path, kind: str = "params") -> dict[str, mx.array]:
    return mx.load(str(max((run / "states").iterdir()) / f"{kind}.safetensors"))  # type: ignore[return-value]


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(
        mx.array_equal(array, other[name]) for name, array in one.items()
    )


def test_an_adapter_learns_and_alone_moves(base: Path, tmp_path: Path, run: Run) -> None:
    stored = (base / "model.safetensors").read_bytes()
    out = tuned(tmp_path, base, tuning.LORA, steps=40, save_every=40, log_every=10)
    losses = logged(out)
    assert losses[-1] < 0.5 * losses[0]
    assert (base / "model.safetensors").read_bytes() == stored
    adapter = lora.read(out / "adapter")
    assert adapter.base == str(base)
    assert same(dict(adapter.weights), newest(out))
    assert {name.rpartition(".")[2] for name in adapter.weights} == {"lora_a", "lora_b"}
    assert {path.split(".")[0] for path in adapter.paths} == {"language", "projector"}
    assert not (out / "model").exists()
    asked = ("generate", tmp_path / "red.png", "-m", base, "-p", "Which colour?", "--image-size", 64, "-n", 8)
    plain, widened = run(*asked), run(*asked, "--adapter-path", out / "adapter")
    assert plain.code == widened.code == 0
    assert plain.out != widened.out == "red\n"


def test_the_fused_result_is_a_model_like_any_other(base: Path, tmp_path: Path) -> None:
    out = tuned(tmp_path, base, tuning.LORA + "fuse = true\n", steps=2)
    assert examine(out / "fused").healthy
    convert(out / "fused", tmp_path / "again", recipe=uniform(4), group_size=32)
    one = fastvlm_mlx.load(out / "fused")
    other = fastvlm_mlx.load(base, adapter=out / "adapter")
    prompt = one.prompt("Which colour?", [tmp_path / "red.png"], options=fastvlm_mlx.ImageOptions(64))
    assert mx.allclose(one.logits(prompt), other.logits(prompt), atol=1e-5)


def test_a_full_fine_tune_moves_what_matches_and_nothing_else(base: Path, tmp_path: Path) -> None:
    train = '["projector\\\\.", "language\\\\.layers\\\\.1\\\\."]'
    out = tuned(tmp_path, base, train=train, steps=8, save_every=8, log_every=4)
    assert logged(out)[-1] < logged(out)[0]
    before, after = (checkpoint.parameters(checkpoint.load(path).model) for path in (base, out / "model"))
    assert before.keys() == after.keys()
    for name in before:
        moved = name.startswith(("projector.", "language.layers.1."))
        assert mx.array_equal(before[name], after[name]) != moved, name
    assert newest(out).keys() == {n for n in before if n.startswith(("projector.", "language.layers.1."))}
    assert examine(out / "model").healthy


def test_every_part_can_be_trained_in_turn(base: Path, tmp_path: Path) -> None:
    tuning.rows(tmp_path)
    path = tuning.recipe(tmp_path, base, train='["vision\\\\.stages\\\\.[34]\\\\."]', steps=2, rate=1e-3)
    stage = path.read_text().partition("[[stages]]")[2].replace("learn", "then").replace("vision", "language")
    path.write_text(path.read_text() + "\n[[stages]]" + stage.replace("stages\\\\.[34]", "layers"))
    finetune(recipes.read(path), tmp_path / "run")
    assert len(logged(tmp_path / "run")) == 4
    before, after = (
        checkpoint.parameters(checkpoint.load(at).model) for at in (base, tmp_path / "run" / "model")
    )
    moved = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name in before
        if not mx.array_equal(before[name], after[name])
    }
    assert moved == {"vision.stages", "language.layers"}


@pytest.mark.parametrize("kept", [True, False], ids=["packed, as on a GPU", "unpacked, as on the CPU"])
def test_a_packed_model_takes_an_adapter(
    packed: Path, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kept:
        monkeypatch.setattr(checkpoint, "dequantize", lambda config, weights: (config, weights))
    out = tuned(tmp_path, packed, tuning.LORA + "fuse = true\n", steps=8, save_every=8, log_every=4)
    assert logged(out)[-1] < logged(out)[0]
    fused = checkpoint.load(out / "fused")
    assert fused.quantization == checkpoint.load(packed).quantization != {}
    assert fastvlm_mlx.load(packed, adapter=out / "adapter").quantization == fused.quantization


@pytest.mark.parametrize("more", [tuning.LORA, ""], ids=["adapter", "full"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(base: Path, tmp_path: Path, more: str) -> None:
    changes: dict[str, Any] = {"steps": 6, "save_every": 2, "train": '["language\\\\.", "projector\\\\."]'}
    whole = tuned(tmp_path, base, more, out="whole", **changes)
    ended = completed((*PYTHON, "-c", KILLER), tmp_path / "mine.toml", tmp_path / "killed", 5)
    assert ended.code == -signal.SIGKILL, ended.err
    assert not (tmp_path / "killed" / "adapter").exists()
    assert len(logged(tmp_path / "killed")) == 5  # the fifth step was told and not saved
    killed = tuned(tmp_path, base, more, out="killed", **changes)
    assert logged(killed) == logged(whole)
    assert same(newest(killed), newest(whole))
    result = "adapter/adapters.safetensors" if more else "model/model.safetensors"
    assert (killed / result).read_bytes() == (whole / result).read_bytes()


def test_pictures_made_by_other_processes_change_nothing(base: Path, tmp_path: Path) -> None:
    alone = tuned(tmp_path, base, tuning.LORA, out="alone", steps=3)
    finetune(recipes.read(tmp_path / "mine.toml"), tmp_path / "helped", workers=1)
    assert logged(tmp_path / "helped") == logged(alone)


def test_a_finished_run_goes_on_where_steps_are_added(base: Path, tmp_path: Path) -> None:
    out = tuned(tmp_path, base, tuning.LORA, steps=2)
    first = lora.read(out / "adapter").weights
    path = tmp_path / "mine.toml"
    text = path.read_text()
    path.write_text(text + "\n[[stages]]" + text.partition("[[stages]]")[2].replace("learn", "more"))
    finetune(recipes.read(path), out)
    assert len(logged(out)) == 4
    assert not same(dict(first), dict(lora.read(out / "adapter").weights))


def test_conversations_without_pictures_are_learned_too(base: Path, tmp_path: Path) -> None:
    tuning.rows(tmp_path, tuning.ROWS[3])
    finetune(recipes.read(tuning.recipe(tmp_path, base, tuning.LORA, steps=2)), tmp_path / "run")
    first, second = logged(tmp_path / "run")
    assert second < first


def test_a_run_does_not_go_on_from_another_base_of_the_same_name(base: Path, tmp_path: Path) -> None:
    model = shutil.copytree(base, tmp_path / "base")
    tuned(tmp_path, model)
    weights = dict(mx.load(str(model / "model.safetensors")))
    weights["language.layers.0.mlp.down.weight"][-1, -1] += 0.5
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    with pytest.raises(FastVLMError, match="another"):
        tuned(tmp_path, model)


ALIKE = [{"images": [], "question": f"What is {number}?", "answer": "red"} for number in (3, 4, 5, 6, 7, 8)]


def test_two_ranks_take_the_step_of_one(base: Path, tmp_path: Path) -> None:
    """Answers are equally long, so a batch's mean is the mean of its halves' means. Adam's moments show
    gradients, where its steps would round them to signs."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tuning.rows(tmp_path / name, *ALIKE)
    recipe = {
        name: tuning.recipe(tmp_path / name, base, steps=2, train='["language"]') for name in ("one", "two")
    }
    finetune(recipes.read(recipe["one"]), tmp_path / "one" / "run")
    command = (*PYTHON, "-m", "fastvlm_mlx", "train")
    done = completed(command, recipe["two"], "-o", tmp_path / "two" / "run", "--processes", 2)
    assert done.code == 0, done.err
    first = "run/states/00-0000001/moments.safetensors"
    one, two = (dict(mx.load(str(tmp_path / name / first))) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert mx.allclose(array, two[name], rtol=1e-3, atol=1e-6), name
