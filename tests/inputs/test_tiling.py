"""How pictures are laid out: tables of cases, the reference's numbers, and what holds for any sides."""

from __future__ import annotations

import json
import math
import random

import pytest
from checkpoints import GOLDEN

from fastvlm_mlx.config import STRIDE
from fastvlm_mlx.errors import ConfigError
from fastvlm_mlx.inputs.tiling import (
    MAX_TILES,
    MODES,
    ImageOptions,
    fit_within,
    fitting_grid,
    native_sides,
    parse_grid,
)

CHOSEN = json.loads((GOLDEN / "images" / "tiles.json").read_text())["chosen"]
SOME = random.Random(5)
PICTURES = [(SOME.randint(1, 6000), SOME.randint(1, 6000)) for _ in range(300)]


@pytest.mark.parametrize(
    ("width", "height", "size", "sides"),
    [
        (1920, 1080, 1024, (1024, 576)),
        (1080, 1920, 1024, (576, 1024)),
        (640, 480, 1024, (1024, 768)),  # scaled up, as padded ones are
        (640, 480, 512, (512, 384)),
        (640, 480, 256, (256, 192)),
        (1000, 1000, 1024, (1024, 1024)),
        (1242, 2688, 1024, (448, 1024)),  # 7.39 of 16: 7
        (1000, 475, 256, (256, 128)),
        (1000, 608, 256, (256, 128)),  # 2.43 of 4, and √6 is 2.45
        (1000, 614, 256, (256, 192)),
        (1, 1, 64, (64, 64)),
        (100, 1, 1024, (1024, 64)),  # too narrow for its shape
        (1, 100_000, 512, (64, 512)),
        (1920, 1080, 2048, (2048, 1152)),
    ],
)
def test_native_sides(width: int, height: int, size: int, sides: tuple[int, int]) -> None:
    assert native_sides(width, height, size) == sides


@pytest.mark.parametrize("size", [64, 256, 1024, 1536])
def test_native_keeps_the_shape_within_the_square(size: int) -> None:
    for width, height in PICTURES:
        wide, tall = native_sides(width, height, size)
        assert max(wide, tall) == size
        assert wide % STRIDE == tall % STRIDE == 0 < min(wide, tall)
        assert wide * tall <= size * size
        assert (wide >= tall) == (width >= height) or wide == tall
        assert native_sides(height, width, size) == (tall, wide)
        distortion = abs(math.log(wide / tall * height / width))
        for other in (min(wide, tall) - STRIDE, min(wide, tall) + STRIDE):  # no neighbour is nearer
            if STRIDE <= other <= size:
                shape = size / other if width >= height else other / size
                assert distortion <= abs(math.log(shape * height / width)) + 1e-12
        if size * min(width, height) >= STRIDE * max(width, height):
            assert distortion <= math.log(2) / 2 + 1e-12


def test_a_wide_picture_takes_44_per_cent_fewer_tokens_than_its_square() -> None:
    assert ImageOptions(1024, "pad").positions(1920, 1080) == 256
    assert ImageOptions(1024, "native").positions(1920, 1080) == 144
    assert round(100 * (1 - 144 / 256)) == 44


def test_grids_and_places_in_them_are_the_references() -> None:
    for width, height, size, most, columns, rows, wide, tall in CHOSEN:
        case = (width, height, size, most)
        assert fitting_grid(*case) == (columns, rows), case
        assert fit_within(width, height, (columns * size, rows * size)) == (wide, tall), case


@pytest.mark.parametrize("most", [1, 2, 4, 7, 12])
def test_a_grid_has_at_most_so_many_tiles_and_turns_with_the_picture(most: int) -> None:
    for width, height in PICTURES:
        columns, rows = fitting_grid(width, height, 512, most)
        assert 1 <= columns * rows <= most
        assert math.prod(fitting_grid(height, width, 512, most)) == columns * rows
        assert max(width, height) > 512 or (columns, rows) == (1, 1)


@pytest.mark.parametrize(
    ("reading", "picture", "pieces", "positions"),
    [
        (ImageOptions(1024, "pad"), (1920, 1080), 1, 256),
        (ImageOptions(2048, "pad"), (1920, 1080), 1, 1024),
        (ImageOptions(1536, "native"), (1920, 1080), 1, 24 * 14),
        (ImageOptions(1024, "tiles", (2, 2)), (1920, 1080), 5, 1280),
        (ImageOptions(1024, "tiles", (3, 3)), (5, 5), 10, 2560),
        (ImageOptions(512, "tiles", (3, 1)), (1920, 1080), 4, 256),
        (ImageOptions(1024, "tiles", (1, 1)), (1920, 1080), 1, 256),  # the picture by itself
        (ImageOptions(1024, "tiles"), (1024, 700), 1, 256),
        (ImageOptions(1024, "tiles"), (1920, 1080), 5, 1280),
        (ImageOptions(1024, "tiles", max_tiles=3), (1920, 1080), 3, 768),
        (ImageOptions(512, "tiles", max_tiles=9), (1920, 1080), 9, 576),
    ],
    ids=lambda value: value.label if isinstance(value, ImageOptions) else "",
)
def test_pieces_and_positions(
    reading: ImageOptions, picture: tuple[int, int], pieces: int, positions: int
) -> None:
    sides = reading.sides(*picture)
    assert len(sides) == pieces
    assert reading.positions(*picture) == positions
    if reading.mode != "native":
        assert set(sides) == {(reading.size, reading.size)}


def test_what_depends_on_the_picture_is_known() -> None:
    for mode in MODES:
        reading = ImageOptions(256, mode)
        differ = len({reading.sides(*picture) for picture in PICTURES}) > 1
        assert reading.by_picture == differ, mode
    assert not ImageOptions(256, "tiles", (2, 3)).by_picture


def test_a_model_fills_in_what_the_options_leave_out() -> None:
    assert ImageOptions().filled(512, "crop") == ImageOptions(512, "crop")
    assert ImageOptions(256, reference=True).filled(512, "crop") == ImageOptions(256, "crop", reference=True)
    tiles = ImageOptions(mode="tiles", grid=(17, 16))
    assert tiles.filled(512, "crop") == ImageOptions(512, "tiles", (17, 16))
    with pytest.raises(ConfigError, match="272 tiles of 1024 have more than"):
        tiles.filled(1024, "crop")


@pytest.mark.parametrize("options", [ImageOptions(), ImageOptions(512), ImageOptions(mode="pad")])
def test_options_that_no_model_filled_in_cut_nothing(options: ImageOptions) -> None:
    with pytest.raises(ConfigError, match="leave size or mode to a model; give both"):
        options.sides(100, 100)


def test_without_a_number_of_tiles_there_are_at_most_llavas() -> None:
    most = max(math.prod(ImageOptions(256, "tiles").grid_of(*picture)) for picture in PICTURES)
    assert most == MAX_TILES == 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "zoom"}, "choose one of pad, crop, stretch, native, tiles"),
        ({"size": 100, "mode": "native"}, "choose 64 or 128"),
        ({"grid": (2, 2)}, "the model's image mode has no tiles; choose tiles"),
        ({"mode": "native", "max_tiles": 4}, "image mode native has no tiles; choose tiles"),
        ({"mode": "tiles", "grid": "2x2"}, r"no grid '2x2'; give \(columns, rows\)"),
        ({"mode": "tiles", "grid": (2,)}, r"give \(columns, rows\)"),
        ({"mode": "tiles", "grid": (2.0, 2)}, r"give \(columns, rows\)"),
        ({"mode": "tiles", "grid": (0, 2)}, "0x2 has no tiles; choose 1x1"),
        ({"mode": "tiles", "max_tiles": 0}, "max-tiles is 0; choose 1 or more"),
        (
            {"mode": "tiles", "grid": (3, 3), "max_tiles": 4},
            "3x3 has 9 tiles and max-tiles is 4; choose",
        ),
        ({"size": 1024, "mode": "tiles", "grid": (17, 16)}, "272 tiles of 1024 have.*choose fewer tiles"),
        ({"mode": "tiles", "max_tiles": 10**9}, "choose fewer tiles"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ImageOptions(**wrong)  # type: ignore[arg-type]


def test_a_grid_is_columns_and_rows() -> None:
    assert parse_grid("3x2") == (3, 2)
    assert parse_grid(None) is None
    for wrong in (
        "",
        "3",
        "x",
        "3x",
        "x2",
        "3x2x1",
        "-1x2",
        "2 x 2",
        "a x b",
        "2X2",
        "2×2",
        f"{'9' * 5000}x1",
    ):
        with pytest.raises(ConfigError, match=r"no grid .* give columns and rows, such as 2x2"):
            parse_grid(wrong)


@pytest.mark.parametrize(
    ("reading", "label"),
    [
        (ImageOptions(1024, "pad"), "1024"),
        (ImageOptions(512, "crop"), "512 crop"),
        (ImageOptions(512, "tiles"), "512 tiles"),
        (ImageOptions(512, "tiles", (3, 2), 9), "512 tiles 3x2"),
        (ImageOptions(512, "tiles", max_tiles=9), "512 tiles at most 9"),
    ],
)
def test_a_reading_is_named(reading: ImageOptions, label: str) -> None:
    assert reading.label == label
