"""The table of chips, the bounds worked out from it, and the paper's figures beside ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import GOLDEN
from command import MODEL, Run

from fastvlm_mlx.bench import limits, paper, untrained
from fastvlm_mlx.bench.chips import CHIPS, Work, least_s
from fastvlm_mlx.bench.machine import Machine, this_machine
from fastvlm_mlx.bench.measure import Case
from fastvlm_mlx.bench.measure import Run as Measured
from fastvlm_mlx.bench.variants import VARIANTS
from fastvlm_mlx.convert.doctor.inspect import Seen
from fastvlm_mlx.convert.export.check import device_memory
from fastvlm_mlx.weights.tensorfile import TensorInfo

M1_MAX = CHIPS["Apple M1 Max"]
ON_M1_MAX = Machine("Apple M1 Max", "gpu", 32, 10, 2**36, "macOS", "3.13", "0.32", "0", None)


def run_of(**times: float) -> Measured:
    parts = dict.fromkeys(("read_s", "preprocess_s", "prompt_s", "vision_s", "projector_s"), 0.0)
    parts |= dict.fromkeys(("prefill_s", "first_token_s", "ttft_s", "decode_s"), 1.0) | times
    return Measured(**parts, image_tokens=256, text_tokens=40, tokens=11, peak_bytes=0)  # type: ignore[arg-type]


def test_every_chip_says_its_source_and_lies_in_reason() -> None:
    for name, chip in CHIPS.items():
        assert name == chip.name
        assert name.startswith("Apple ")
        assert chip.source
        assert 0.25 < chip.tflops / chip.cores < 0.5, name


@pytest.mark.parametrize("family", ["M1", "M2", "M3", "M4"])
def test_larger_chips_of_a_family_are_no_slower(family: str) -> None:
    rows = [CHIPS[f"Apple {family}{suffix}"] for suffix in ("", " Pro", " Max")]
    assert [chip.tflops for chip in rows] == sorted(chip.tflops for chip in rows)
    assert [chip.gb_s or 0 for chip in rows] == sorted(chip.gb_s or 0 for chip in rows)


def test_the_bound_is_the_slower_of_computing_and_reading() -> None:
    assert least_s(Work(5_200_000_000_000, 1), M1_MAX) == pytest.approx(1)
    assert least_s(Work(5_200_000_000_000, 1), M1_MAX, cores=16) == pytest.approx(2)
    assert least_s(Work(1, 400_000_000_000), M1_MAX) == pytest.approx(1)
    assert least_s(Work(1, 400_000_000_000), replace(M1_MAX, gb_s=None)) < 1e-9


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_wait_for_memory_and_pictures_for_arithmetic_on_every_chip(name: str) -> None:
    work = limits.works(VARIANTS[name], Case(1024, 1), 512, 32, 2, None)
    balances = [1e3 * chip.tflops / chip.gb_s for chip in CHIPS.values() if chip.gb_s]  # operations a byte
    assert 2 * work["a token"].macs / work["a token"].bytes < min(balances)
    for stage in ("vision", "projector", "prefill"):
        assert 2 * work[stage].macs / work[stage].bytes > max(balances)


def test_a_batch_reads_weights_once() -> None:
    one, four = (limits.works(VARIANTS["0.5b"], Case(512, n), 100, 32, 2, None) for n in (1, 4))
    for stage in limits.STAGES:
        assert four[stage].macs == 4 * one[stage].macs
        assert one[stage].bytes <= four[stage].bytes < 2 * one[stage].bytes


def test_packed_matrices_are_read_as_such() -> None:
    packed = untrained.packed(VARIANTS["0.5b"], 4)
    floats, bits = (
        limits.works(VARIANTS["0.5b"], Case(512, 1), 100, 32, 2, how)["a token"].bytes
        for how in (None, limits.cost.packed_as(packed))
    )
    assert 3.3 < floats / bits < 4


def test_the_share_of_the_limit_is_told_on_a_known_gpu_alone() -> None:
    cases = {Case(1024, 1): [run_of(vision_s=0.5)]}
    known = limits.limits(VARIANTS["0.5b"], cases, 2, ON_M1_MAX)
    vision = known[0]
    assert (vision.stage, vision.measured_s) == ("vision", 0.5)
    assert vision.reached == pytest.approx(2 * 243.4e9 / 10.4e12 / 0.5, rel=1e-3)
    assert known[-1].measured_s == pytest.approx(0.1)  # a token: ten after the first
    for on in (replace(ON_M1_MAX, device="cpu"), replace(ON_M1_MAX, chip="another")):
        unknown = limits.limits(VARIANTS["0.5b"], cases, 2, on)
        assert {row.least_s for row in unknown} == {row.reached for row in unknown} == {None}
        assert "No limit is told" in limits.limit_table(unknown, on).as_text()


def test_fewer_bits_take_less_memory_and_larger_models_more() -> None:
    rows = limits.on_devices()
    assert [row.bytes for row in rows if row.variant == "7b"] == sorted(
        (row.bytes for row in rows if row.variant == "7b"), reverse=True
    )
    fits = {(row.variant, row.weights): row.fits["iPhone, 8 GB"] for row in rows}
    assert fits["0.5b", "float16"] == "fits"
    assert fits["7b", "float16"] == "too large"
    assert len(limits.device_table(rows).rows) == 9


@pytest.mark.parametrize("name", VARIANTS)
def test_a_telephone_needs_what_the_check_of_an_export_says(name: str, tmp_path: Path) -> None:
    tensors = json.loads((GOLDEN / "real" / f"tensors_{name}.json").read_text())["tensors"]
    config = VARIANTS[name]
    kept = {key: shape for key, shape in tensors.items() if not (config.text.tied and "lm_head" in key)}
    stored = {key: TensorInfo(mx.float16, tuple(shape)) for key, shape in kept.items()}
    seen = Seen(tmp_path, stored=stored, vision=config.vision, text=config.text, size=1024)
    told = device_memory.facts(seen)
    [row] = [row for row in limits.on_devices() if (row.variant, row.weights) == (name, "float16")]
    said = float(told["memory"].split()[1])
    assert row.bytes / 1e9 == pytest.approx(said, abs=0.011)  # the check counts the unused head, and rounds
    short = {told[device]: verdict for device, verdict in row.fits.items()}
    assert set(short.items()) <= {
        ("fits", "fits"),
        ("too large without the increased-memory entitlement", "with entitlement"),
        ("too large", "too large"),
    }


# --- the paper's figures ---


def test_published_times_are_the_papers() -> None:
    told = {(row.variant, row.size): round(1e3 * row.ttft_s) for row in paper.PUBLISHED}
    assert told == {
        ("1.5b", 768): 152,
        ("7b", 768): 446,
        ("0.5b", 1024): 167,  # 166 in the paper, of parts that are rounded
        ("1.5b", 1024): 232,  # 233
        ("7b", 1024): 641,
    }
    assert {len(values) for values in paper.ACCURACY.values()} == {10}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_known_by_its_sizes(name: str) -> None:
    assert paper.variant_of(VARIANTS[name]) == name
    assert paper.variant_of(replace(VARIANTS[name], text=replace(VARIANTS[name].text, layers=7))) is None


def test_ours_stand_beside_the_rows_of_the_same_model_and_size_without_text() -> None:
    alone, asking = Case(1024, 1, asks=False), Case(1024, 1)
    runs = [run_of(vision_s=0.2, projector_s=0.1, prefill_s=0.5)]
    rows = {(row.variant, row.size): row for row in paper.compare("0.5b", {alone: runs, asking: [run_of()]})}
    ours = rows["0.5b", 1024]
    assert (ours.vision_s, ours.prefill_s, ours.ttft_s) == (pytest.approx(0.3), 0.5, pytest.approx(0.8))
    assert ours.ratio == pytest.approx(0.8 / 0.1668)
    assert [row.ttft_s for key, row in rows.items() if key != ("0.5b", 1024)] == [None] * 4
    assert paper.compare("0.5b", {asking: [run_of()], alone: []})[2].ratio is None
    assert "4.80×" in paper.table(list(rows.values()), "here").as_markdown()


def test_paper_and_roofline_are_sections_of_one_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper, "variant_of", lambda config: "0.5b")
    monkeypatch.setattr(paper, "PUBLISHED", (paper.Published("0.5b", 128, 0.1, 0.1),))
    files = ("--json", tmp_path / "b.json", "--markdown", tmp_path / "b.md")
    done = run("bench", "-m", MODEL, "--runs", 1, "--tokens", 3, "--no-cold", "--paper", "--roofline", *files)
    assert (done.code, done.err) == (0, "")
    body = json.loads((tmp_path / "b.json").read_text())
    assert [(case["size"], case["asks"]) for case in body["cases"]] == [(128, True)]  # the paper's sizes
    assert [(case["size"], case["text_tokens"]) for case in body["paper_cases"]] == [(128, 0)]
    [row] = body["paper"]
    assert row["ratio"] == pytest.approx((row["vision_s"] + row["prefill_s"]) / 0.2)
    assert [row["stage"] for row in body["roofline"]] == list(limits.STAGES)
    assert len(body["devices"]) == 9
    markdown = (tmp_path / "b.md").read_text()
    for said in (done.out, markdown):
        assert all(word in said for word in ("Method: vision", "Lower bounds", "Apple M4 Max", "iPad, 16 GB"))
    assert this_machine().chip in done.out
