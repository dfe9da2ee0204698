"""The table of chips and the bounds worked out from it."""

from __future__ import annotations

import pytest

from fastvlm_mlx.bench.chips import CHIPS, roofline
from fastvlm_mlx.bench.cost import Op, language, total
from fastvlm_mlx.bench.variants import VARIANTS


def test_every_row_says_its_sources_and_lies_in_reason() -> None:
    for name, chip in CHIPS.items():
        assert name == chip.name
        assert name.startswith("Apple ")
        assert chip.tflops_source
        assert chip.gb_s_source
        assert 0.25 < chip.tflops / chip.cores < 0.45, name


def test_larger_chips_of_a_family_are_no_slower() -> None:
    for family in ("M1", "M2", "M3", "M4"):
        rows = [CHIPS[f"Apple {family}{suffix}"] for suffix in ("", " Pro", " Max")]
        assert [chip.tflops for chip in rows] == sorted(chip.tflops for chip in rows)
        assert [chip.gb_s for chip in rows] == sorted(chip.gb_s for chip in rows)


def test_a_gpu_with_half_the_cores_has_half_the_rate() -> None:
    chip = CHIPS["Apple M1 Max"]
    assert chip.with_cores(16) == chip.tflops / 2


def test_the_bound_is_the_slower_of_computing_and_reading() -> None:
    chip = CHIPS["Apple M1 Max"]
    busy = roofline(total([Op("dense", macs=5_200_000_000_000)]), chip)
    assert (busy.compute_s, busy.s) == (pytest.approx(1), busy.compute_s)
    read = roofline(total([Op("dense", matrix=100_000_000_000, cached=100_000_000_000)]), chip, width=2)
    assert (read.memory_s, read.s) == (pytest.approx(1), read.memory_s)


def test_decoding_is_bound_by_memory_and_reading_a_picture_by_arithmetic() -> None:
    for chip in CHIPS.values():
        for config in VARIANTS.values():
            token, prompt = (roofline(total(language(config.text, n)), chip) for n in (1, 512))
            assert token.s == token.memory_s
            assert prompt.s == prompt.compute_s
