"""`bench`: the parts add up, what is recorded, and what is refused."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import golden
from command import MODEL, Run
from refusals import Case as Refusal
from refusals import assert_refused, snapshot

from fastvlm_mlx import VLM, blas
from fastvlm_mlx.bench import fitting, plot, untrained
from fastvlm_mlx.bench import measure as measuring
from fastvlm_mlx.bench.measure import PARTS, TIMES, TOLERANCE, Case, interleaved, measure, picture
from fastvlm_mlx.bench.variants import VARIANTS
from fastvlm_mlx.cli import MODEL_VARIABLE
from fastvlm_mlx.config import ModelConfig, TextConfig, VisionConfig
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.inputs import image
from fastvlm_mlx.inputs.tiling import ImageOptions

TINY = ModelConfig(
    VisionConfig((1, 1, 1, 1, 1), (8, 16, 32, 64, 128)), TextConfig(64, 2, 4, 2, 96, 512, tied=True)
)
FAST = ("--sizes", "64,128", "--runs", 2, "--tokens", 3)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return untrained.build(TINY, mx.float32)


class Slowed:
    """A part that takes so many seconds of the fake clock."""

    def __init__(self, part: Callable[..., Any], seconds: float, clock: list[float]):
        self._part, self._seconds, self._clock = part, seconds, clock

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._clock[0] += self._seconds
        return self._part(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@pytest.mark.parametrize("batch", [1, 3])
def test_parts_are_what_each_took_and_add_up_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(blas, "threads", lambda: 1)  # several cores would divide a batch between them
    vlm, clock = untrained.build(TINY, mx.float32), [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for owner, name, seconds in (
        (image, "open_image", 1.0),
        (measuring.image, "pieces", 2.0),
        (vlm, "prompt", 4.0),
        (vlm.model, "vision", 8.0),
        (vlm.model, "projector", 16.0),
        (vlm.model, "language", 32.0),
    ):
        monkeypatch.setattr(owner, name, Slowed(getattr(owner, name), seconds, clock))
    pieces = measuring.image.preprocess_all._part  # type: ignore[attr-defined]
    ready = pieces(picture(), ImageOptions(64, "pad"))
    monkeypatch.setattr(measuring.image.preprocess_all, "_part", lambda *_: ready)  # which opens once more
    run = measure(vlm, picture(), Case(64, batch), tokens=4)
    assert (run.read_s, run.preprocess_s, run.prompt_s) == (batch, 2 * batch, 4 * batch)
    assert (run.vision_s, run.projector_s) == (8, 16)
    assert (run.prefill_s, run.first_token_s) == (32, 32)  # with the first, the second is set going
    assert run.decode_s == 3 * 32
    assert run.ttft_s == run.parts_s
    assert run.unaccounted == 0


def test_real_runs_leave_out_no_more_than_the_tolerance(vlm: VLM) -> None:
    encoded = picture()
    shares = [abs(measure(vlm, encoded, Case(256, 1), 2).unaccounted) for _ in range(5)]
    assert min(shares) <= TOLERANCE  # a loaded machine may stop between two readings of the clock


def test_every_time_is_a_part_the_whole_or_what_follows() -> None:
    assert set(TIMES) == {*PARTS, "ttft_s", "decode_s"}
    assert {"image_tokens", "text_tokens", "tokens"} < {field.name for field in fields(measuring.Run)}


@pytest.mark.parametrize(("size", "tokens"), [(64, 1), (256, 16), (512, 64)])
def test_tokens_of_pictures_and_text_are_counted_apart(vlm: VLM, size: int, tokens: int) -> None:
    run = measure(vlm, picture(), Case(size, 1), 5)
    assert (run.image_tokens, run.tokens) == (tokens, 5)
    assert run.text_tokens > 5


@pytest.mark.parametrize(
    ("case", "tokens", "label"),
    [
        (Case(256, 1, image_mode="native"), 4 * 2, "256 native"),
        (Case(128, 1, image_mode="tiles", grid=(3, 2)), 7 * 4, "128 tiles 3x2"),
        (Case(512, 1, image_mode="tiles"), 5 * 64, "512 tiles"),
        (Case(512, 2, image_mode="tiles", max_tiles=2), 3 * 64, "512 tiles at most 2"),
        (Case(128, 1, image_mode="crop"), 4, "128 crop"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_are_read_as_asked(vlm: VLM, case: Case, tokens: int, label: str) -> None:
    assert measure(vlm, picture(), case, 2).image_tokens == tokens
    assert case.options().label == label
    assert case.options().positions(*measuring.SIDES) == tokens


def test_bench_measures_tiles(run: Run, tmp_path: Path) -> None:
    tiles, files = ("--image-mode", "tiles", "--grid", "2x1"), ("--json", tmp_path / "b.json")
    done = run("bench", "-m", MODEL, *FAST, *tiles, *files, "--plot", tmp_path / "b.png")
    assert (done.code, done.err) == (0, "")
    assert "64 tiles 2x1" in done.out
    body = json.loads((tmp_path / "b.json").read_text())
    assert body["cold_start_s"] > 0
    found = [(case["size"], case["image_mode"], case["grid"], case["image_tokens"]) for case in body["cases"]]
    assert found == [(64, "tiles", [2, 1], 3), (128, "tiles", [2, 1], 12)]


def test_cases_take_turns_and_the_first_round_is_not_measured(vlm: VLM) -> None:
    cases = [Case(64, 1), Case(128, 1)]
    told = list(interleaved([(vlm, case) for case in cases], runs=2, tokens=2))
    assert [cases[index] for index, _ in told] == cases * 3
    assert [run is None for _, run in told] == [True] * 2 + [False] * 4


def test_the_picture_is_a_camera_s_small_one() -> None:
    assert image.open_image(picture()).size == measuring.SIDES == (1920, 1080)


def test_random_models_have_true_sizes_and_the_asked_type() -> None:
    vlm = untrained.build(TINY, mx.float16)
    assert vlm.model.language.layers[0].mlp.down.weight.dtype == mx.float16
    assert vlm.model.language.embedding.weight.shape == (512, 64)
    assert float(mx.std(vlm.model.language.embedding.weight.astype(mx.float32))) == pytest.approx(0.02, 0.1)


def test_random_models_can_be_packed() -> None:
    config = untrained.packed(TINY, 4)
    vlm = untrained.build(config, mx.float16)
    assert vlm.model.language.layers[1].mlp.gate_up.weight.dtype == mx.uint32
    assert vlm.model.language.embedding.weight.dtype == mx.uint32
    assert vlm.model.language.layers[1].mlp.down.weight.dtype == mx.float16  # 96 columns: no groups of 64
    assert vlm.model.projector.fc1.weight.dtype == mx.float16
    assert measure(vlm, picture(), Case(64, 1), 2).tokens == 2


def test_too_little_memory_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"7b at 1024 px takes 15\.\d\d GB \(0\.29 tower \+ 15\.23.*has 8"):
        fitting.refuse_beyond(VARIANTS["7b"], "7b", 1024, 1, 2, memory=8_000_000_000)
    fitting.refuse_beyond(VARIANTS["7b"], "7b", 1024, 1, 2, memory=24_000_000_000)


def test_bench_tells_a_table_and_writes_every_run(run: Run, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "b.json", "--markdown", tmp_path / "b.md")
    done = run("bench", "-m", MODEL, *FAST, "--no-cold", *files)
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "b.json").read_text())
    assert body["complete"]
    assert (body["model"], body["dtype"], body["cold_start_s"]) == (str(MODEL), "float32", None)
    assert body["machine"]["mlx"] == mx.__version__
    assert min(body["load_s"], body["resident_bytes"], body["machine"]["memory_bytes"]) > 0
    assert [case["size"] for case in body["cases"]] == [64, 128]
    for case in body["cases"]:
        assert [len(case["runs"]), case["tokens"], case["batch"]] == [2, 3, 1]
        values = [one["ttft_s"] for one in case["runs"]]
        assert min(values) <= case["median"]["ttft_s"] <= max(values)
        assert min(case["tokens_per_s"], case["peak_bytes"]) > 0
    markdown = (tmp_path / "b.md").read_text()
    for said in (done.out, markdown):
        assert all(word in said for word in ("projector", "prefill", "TTFT", "tokens/s", "Medians of 2"))
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_a_cold_start_is_a_process_that_answers(run: Run) -> None:
    done = run("bench", "-m", MODEL, "--sizes", 64, "--runs", 1, "--tokens", 2)
    assert done.code == 0
    assert "cold start" in done.out


def test_room_is_made_for_every_tile() -> None:
    def sides(size: int) -> tuple[tuple[int, int], ...]:
        return ImageOptions(size, "tiles", (2, 2)).sides(*measuring.SIDES)

    how = {"batch": 1, "tokens": 32, "width": 2}
    seven = VARIANTS["7b"]
    alone, tiled = (fitting.needed(seven, 512, 1, 2, pieces) for pieces in (1, 5))
    assert tiled > alone
    for memory, sizes in ((tiled, [256, 512]), (tiled - 1, [256])):
        assert fitting.chosen(None, (256, 512), seven, "7b", memory=memory, sides=sides, **how) == sizes
    short = replace(TINY, text=replace(TINY.text, context=180))  # 84 beside text and answer
    assert fitting.chosen(None, (256, 512), short, "tiny", memory=10**9, sides=sides, **how) == [256]
    with pytest.raises(ConfigError, match="512 px make 320 positions"):
        fitting.chosen([512], (), short, "tiny", memory=10**9, sides=sides, **how)


@pytest.mark.usefixtures("interrupted")
def test_interrupted_what_was_measured_is_kept_and_marked(run: Run, tmp_path: Path) -> None:
    done = run("bench", "-m", MODEL, *FAST, "--no-cold", "--json", tmp_path / "b.json")
    assert done.code == 130
    body = json.loads((tmp_path / "b.json").read_text())
    assert not body["complete"]
    assert [(case["size"], len(case["runs"])) for case in body["cases"]] == [(64, 1)]


def test_the_room_set_aside_for_text_is_enough(vlm: VLM) -> None:
    assert measure(vlm, picture(), Case(64, 1), 2).text_tokens < fitting.TEXT_POSITIONS


def test_the_picture_alone_has_no_text(vlm: VLM) -> None:
    run = measure(vlm, picture(), Case(128, 1, asks=False), 2)
    assert (run.image_tokens, run.text_tokens) == (4, 0)


def test_of_the_default_sizes_those_that_fit_are_taken() -> None:
    how = {"batch": 1, "tokens": 32, "width": 2}
    defaults = fitting.SIZES
    everything = fitting.chosen(None, defaults, VARIANTS["7b"], "7b", memory=64 * 10**9, **how)
    assert everything == list(defaults)
    least = fitting.needed(VARIANTS["7b"], 512, 1, 2)
    assert fitting.chosen(None, defaults, VARIANTS["7b"], "7b", memory=least, **how) == [256, 512]
    with pytest.raises(ConfigError, match="7b at 1024 px takes"):
        fitting.chosen([512, 1024], defaults, VARIANTS["7b"], "7b", memory=least, **how)
    short = replace(TINY, text=replace(TINY.text, context=120))
    assert fitting.chosen(None, defaults, short, "tiny", memory=10**9, **how) == [256]
    tight = replace(TINY, text=replace(TINY.text, context=100))
    with pytest.raises(ConfigError, match=r"256 px make 16 positions.*room for 4; give smaller --sizes"):
        fitting.chosen(None, defaults, tight, "tiny", memory=10**9, **how)


def test_the_variable_names_a_model_only_where_none_is_given(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, "nowhere")
    done = run("bench", "--random", "9b")
    assert "no model '9b'" in done.err
    done = run("bench", "--no-cold", "--sizes", 64)
    assert "nowhere" in done.err


@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_the_plot_is_a_picture_of_1200_px(run: Run, tmp_path: Path, kind: str) -> None:
    drawn = tmp_path / f"b{kind}"
    done = run("bench", "-m", MODEL, *FAST, "--no-cold", "--plot", drawn)
    assert (done.code, done.err) == (0, "")
    if kind == ".png":
        assert image.open_image(drawn).size == (1200, 675)
    else:
        assert drawn.read_text().startswith("<?xml")


def test_without_matplotlib_the_plot_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("bench", "-m", MODEL, *FAST, "--plot", tmp_path / "b.png")
    assert_refused(done, "matplotlib", r"pip install 'fastvlm-mlx\[plot\]'")
    assert not list(tmp_path.iterdir())


def test_interrupted_before_any_run_nothing_is_drawn(tmp_path: Path) -> None:
    plot.breakdown(None, {Case(64, 1): []}, tmp_path / "b.png")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


REFUSED = {
    "two models": Refusal(
        lambda at: ["bench", "-m", MODEL, "--random", "7b"], "exclude each other", "give one"
    ),
    "an unknown variant": Refusal(lambda at: ["bench", "--random", "9b"], "'9b'", "choose one of 0.5b"),
    "an odd size": Refusal(lambda at: ["bench", "-m", MODEL, "--sizes", "100"], "100", "choose 64 or 128"),
    "no number": Refusal(lambda at: ["bench", "-m", MODEL, "--sizes", "64;128"], "64;128", "give numbers"),
    "negative runs": Refusal(lambda at: ["bench", "--runs", -1], "--runs", "--help", 2),
    "no batch": Refusal(lambda at: ["bench", "--batch", 0], "--batch", "--help", 2),
    "no such folder": Refusal(
        lambda at: ["bench", "-m", MODEL, "--json", at / "gone" / "b.json"], "no folder", "make it first"
    ),
    "no folder for the plot": Refusal(
        lambda at: ["bench", "-m", MODEL, "--plot", at / "gone" / "b.png"], "no folder", "make it first"
    ),
    "an unknown kind of plot": Refusal(
        lambda at: ["bench", "-m", MODEL, "--plot", at / "b.gif"], "b.gif", "give a name that ends so"
    ),
    "no such type": Refusal(
        lambda at: ["bench", "--random", "0.5b", "--dtype", "int3"], "'int3'", "choose one of float16"
    ),
    "more than it reads": Refusal(
        lambda at: ["bench", "-m", golden("apple-train"), "--no-cold", "--sizes", "16384"],
        "positions",
        "smaller",
    ),
    "a model the paper has no times of": Refusal(
        lambda at: ["bench", "-m", MODEL, "--no-cold", "--paper"], "has no times", "drop --paper"
    ),
    "an unknown rival": Refusal(lambda at: ["bench", "--against", "vit-g"], "'vit-g'", "choose from vit-l"),
    "a size that a rival does not read": Refusal(
        lambda at: ["bench", "--against", "llava-onevision", "--sizes", "1024"], "multiples of 384", "leave"
    ),
    "a rival and a roofline": Refusal(
        lambda at: ["bench", "--against", "fastvit", "--roofline"], "--against", "drop"
    ),
    "a batch against a rival": Refusal(
        lambda at: ["bench", "--against", "fastvit", "--batch", 2], "--batch 2", "drop --batch"
    ),
    "a grid without tiles": Refusal(
        lambda at: ["bench", "-m", MODEL, "--grid", "2x2"], "image mode has no tiles", "choose tiles"
    ),
    "tiles beside the paper": Refusal(
        lambda at: ["bench", "--paper", "--image-mode", "tiles"], "whole squares", "drop --image-mode"
    ),
    "more tiles than it reads": Refusal(
        lambda at: ["bench", "-m", MODEL, "--sizes", "512", "--image-mode", "tiles", "--grid", "20x10"],
        "512 px make 12864 positions",
        "smaller",
    ),
    "a plan without a time": Refusal(lambda at: ["bench", "--plan"], "needs --ttft", "give both"),
    "a time without a plan": Refusal(lambda at: ["bench", "--ttft", "1s"], "--ttft", "give both"),
    "a time without a unit": Refusal(
        lambda at: ["bench", "--plan", "--ttft", "200"], "'200'", "with its unit, such as 200ms"
    ),
    "no memory": Refusal(
        lambda at: ["bench", "--plan", "--ttft", "1s", "--memory", "0GB"], "'0GB'", "such as 4GB"
    ),
    "a plan for one's own model": Refusal(
        lambda at: ["bench", "--plan", "--ttft", "1s", "-m", MODEL], "--plan", "drop --model"
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Refusal
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*case.make(tmp_path))
    assert snapshot(tmp_path) == {}
    assert_refused(done, case.names, case.repair, case.code)


def test_memory_of_a_random_model_is_checked_before_it_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvlm_mlx.inference import allocator

    monkeypatch.setattr(allocator, "memory_bytes", lambda: 2**30)
    monkeypatch.setattr(untrained, "build", None)
    done = run("bench", "--random", "7b")
    assert done.code == 1
    assert "7b at 256 px takes" in done.err
