"""How a picture is read: which pieces the tower gets and what sides they have, as arithmetic alone.

    ImageOptions(1024, "pad").sides(1920, 1080)      one square, ((1024, 1024),)
    ImageOptions(1024, "native").sides(1920, 1080)   one rectangle, ((1024, 576),)
    ImageOptions(1024, "tiles").sides(1920, 1080)    an overview and 2×2 tiles, ((1024, 1024),) * 5

Grids, and where a picture lies in one, are LLaVA's: sides are rounded as its code rounds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import SQUARE_MODES, STRIDE
from ..errors import ConfigError

NATIVE, TILES = "native", "tiles"
MODES: tuple[str, ...] = (*SQUARE_MODES, NATIVE, TILES)
MAX_PIXELS = 2**28
MAX_TILES = 4  # where nothing else is asked for, as LLaVA's largest grid
SCENES = "scenes"
FRAME_CHOICES = ("even", SCENES)  # which frames of a video
MAX_FRAMES = 8  # where nothing else is asked for
VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".webm", ".wmv"),
)

Grid = tuple[int, int]  # columns, rows
Sides = tuple[int, int]  # width, height


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a picture becomes the pixels that the model reads. `VLM` replaces None by the model's own.

    `mode` is pad, crop or stretch, which make a square; native, which keeps the shape; or tiles: an overview
    and then tiles row by row, in a `grid` or in one of at most `max_tiles` that fits the picture.
    """

    size: int | None = None  # side of a square or tile, native's longer side; None: the model's
    mode: str | None = None  # None: the model's
    grid: Grid | None = None  # of tiles; None: by each picture's own sides
    max_tiles: int | None = None  # in a grid by the picture's sides; None: MAX_TILES
    reference: bool = False  # open files as the PyTorch reference does: no EXIF rotation, no transparency

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise ConfigError(f"unknown image mode {self.mode!r}; choose one of {', '.join(MODES)}")
        size = STRIDE if self.size is None else self.size
        _check_size(size)
        if self.mode != TILES and (self.grid is not None or self.max_tiles is not None):
            mode = "the model's image mode" if self.mode is None else f"image mode {self.mode}"
            raise ConfigError(
                f"{mode} has no tiles; choose tiles (--image-mode), or leave grid and max-tiles out"
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"max-tiles is {self.max_tiles}; choose 1 or more, such as {MAX_TILES}")
        most = MAX_TILES if self.max_tiles is None else self.max_tiles
        if self.grid is not None:
            if not (isinstance(self.grid, tuple) and [type(side) for side in self.grid] == [int, int]):
                raise ConfigError(f"no grid {self.grid!r}; give (columns, rows), such as (2, 2)")
            if min(self.grid) < 1:
                raise ConfigError(f"a grid of {grid_name(self.grid)} has no tiles; choose 1x1 or more")
            count = math.prod(self.grid)
            if self.max_tiles is not None and count > most:
                raise ConfigError(
                    f"a grid of {grid_name(self.grid)} has {count} tiles and max-tiles is {most}; choose a "
                    "smaller grid, or leave max-tiles out"
                )
            most = count
        if self.mode == TILES and most * size**2 > MAX_PIXELS:
            raise ConfigError(
                f"{most} tiles of {size} have more than {MAX_PIXELS} pixels; choose fewer tiles or a "
                "smaller image size"
            )

    def filled(self, size: int, mode: str) -> ImageOptions:
        """The same with a model's own size and mode where these options have none."""
        return replace(
            self, size=size if self.size is None else self.size, mode=mode if self.mode is None else self.mode
        )

    @property
    def size_and_mode(self) -> tuple[int, str]:
        if self.size is None or self.mode is None:
            raise ConfigError(f"{self} leave size or mode to a model; give both, or use `filled`")
        return self.size, self.mode

    @property
    def label(self) -> str:
        """
        >>> ImageOptions(512, "tiles", (2, 2)).label
        '512 tiles 2x2'
        """
        size, mode = self.size_and_mode
        tiles = f"at most {self.max_tiles}" if self.max_tiles else ""
        parts = [str(size), "" if mode == "pad" else mode, grid_name(self.grid) if self.grid else tiles]
        return " ".join(filter(None, parts))

    @property
    def by_picture(self) -> bool:
        """Whether the pieces depend on the picture's own sides."""
        return self.mode == NATIVE or (self.mode == TILES and self.grid is None)

    def grid_of(self, width: int, height: int) -> Grid:
        """The requested grid, or the one that fits a picture of these sides."""
        if self.grid is not None:
            return self.grid
        size, _ = self.size_and_mode
        return fitting_grid(width, height, size, self.max_tiles or MAX_TILES)

    def sides(self, width: int, height: int) -> tuple[Sides, ...]:
        """The pieces of a picture of these sides, in the order the model reads them."""
        size, mode = self.size_and_mode
        if mode == NATIVE:
            return (native_sides(width, height, size),)
        tiles = math.prod(self.grid_of(width, height)) if mode == TILES else 1
        return ((size, size),) * (1 if tiles == 1 else 1 + tiles)

    def positions(self, width: int, height: int) -> int:
        """Of the language model's context."""
        return sum((wide // STRIDE) * (tall // STRIDE) for wide, tall in self.sides(width, height))


def grid_name(grid: Grid) -> str:
    columns, rows = grid
    return f"{columns}x{rows}"


def parse_grid(text: str | None) -> Grid | None:
    """
    >>> parsed_grid("3x2")
    (3, 2)
    """
    if text is None:
        return None
    columns, _, rows = text.partition("x")
    if not (columns.isdecimal() and rows.isdecimal() and len(text) < 20):
        raise ConfigError(f"no grid {text!r}; give columns and rows, such as 2x2 or 3x1")
    return int(columns), int(rows)


def native_sides(width: int, height: int, size: int) -> Sides:
    """As large as in the padded square, so never more pixels than that: the longer side is `size`, the other
    one the multiple of 64 that distorts least, and at least 64.

    >>> native_sides(1920, 1080, 1024)
    (1024, 576)
    """
    exact = size * min(width, height) / max(width, height) / STRIDE
    below = int(exact)
    # Too short by exact ÷ below, or too long by (below + 1) ÷ exact.
    short = STRIDE * (below if exact**2 <= below * (below + 1) else below + 1)
    return (size, short) if width >= height else (short, size)


def fitting_grid(width: int, height: int, size: int, max_tiles: int) -> Grid:
    """Of at most so many tiles, the one that keeps most of the picture's pixels and then wastes least.

    >>> fitting_grid(1920, 1080, 1024, 4)
    (2, 2)
    """
    grids = [(wide, tall) for wide in range(1, max_tiles + 1) for tall in range(1, max_tiles // wide + 1)]
    grids.sort(key=lambda grid: (math.prod(grid), grid[1]))

    def kept_and_wasted(grid: Grid) -> tuple[int, int]:
        whole = grid[0] * size, grid[1] * size
        scale = min(whole[0] / width, whole[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - math.prod(whole)

    return max(grids, key=kept_and_wasted)  # of equals the first: few tiles, then wide ones


def fit_within(width: int, height: int, whole: Sides) -> Sides:
    """How large a picture is that fills `whole` one way and keeps its shape."""
    wide, tall = whole[0] / width, whole[1] / height
    if wide < tall:
        return whole[0], min(math.ceil(height * wide), whole[1])
    return min(math.ceil(width * tall), whole[0]), whole[1]


def _check_size(size: int) -> None:
    if size * size > MAX_PIXELS:
        raise ConfigError(f"image size {size} is too large; choose 16384 or less, such as 1024")
    if size < STRIDE:
        raise ConfigError(f"image size {size} is too small; choose {STRIDE} or more, such as 1024")
    if size % STRIDE:
        below = size // STRIDE * STRIDE
        raise ConfigError(f"image size {size} is not a multiple of 64; choose {below} or {below + STRIDE}")
