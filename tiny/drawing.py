"""A scene as a picture. Small masks are drawn large, reduced and pasted; the canvas itself stays small."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .scenes import BLUE, RED, RGB, SIDE, WHITE, Background, Chart, Line, Scene, Sign, Thing
from .strokes import polylines

Points = list[tuple[float, float]]
_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
_FINE = 4  # supersampling of things and signs
_CAP, _MARGIN = 96, 20  # px of a master letter's capital height, and around it
_STROKE_WIDTH = (9, 14, 20)
_YELLOW = (250, 205, 30)


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene, (256, 256, 3)."""
    canvas = Image.fromarray(_ground(scene.background))
    if scene.chart:
        _chart(canvas, scene.chart)
    if scene.sign:
        _sign(canvas, scene.sign)
    for thing in scene.things:
        _thing(canvas, thing)
    for line in scene.lettering():
        _line(canvas, line)
    return np.asarray(canvas)


def _ground(background: Background) -> NDArray[np.uint8]:
    first, second = np.array(background.first, np.float32), np.array(background.second, np.float32)
    shares = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    ramp = np.rint(first + (second - first) * shares).astype(np.uint8)
    if background.kind == "plain":
        return np.full((SIDE, SIDE, 3), ramp[0])
    picture: NDArray[np.uint8] = ramp[_pattern(background)]
    return picture


def _pattern(background: Background) -> NDArray[np.uint8]:
    """How much of the second colour each pixel has, 0 to 255."""
    period = background.period
    along = _X * math.cos(background.angle) + _Y * math.sin(background.angle)
    match background.kind:
        case "gradient":
            low, high = along.min(), along.max()
            share = (along - low) / (high - low)
        case "stripes":
            share = np.clip(np.abs(along % period - period / 2) - period / 4 + 0.5, 0, 1)
        case "checks":
            step = round(period)
            share = ((_X // step + _Y // step) % 2).astype(np.float32)
        case "dots":
            x, y = _X % period - period / 2, _Y % period - period / 2
            share = np.clip(min(period / 5, 3.0) - np.sqrt(x * x + y * y) + 0.5, 0, 1)
        case _:
            count = int(8 + 2 * period)
            grain = np.random.default_rng(background.seed).integers(0, 256, (count, count), dtype=np.uint8)
            return np.asarray(Image.fromarray(grain).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return (share * 255).astype(np.uint8)


def _paste(canvas: Image.Image, rgb: RGB, mask: Image.Image, x: float, y: float) -> None:
    canvas.paste(rgb, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


def _turned(points: Points, degrees: float, scale: float, middle: float) -> Points:
    cos, sin = math.cos(math.radians(degrees)) * scale, math.sin(math.radians(degrees)) * scale
    return [(middle + x * cos - y * sin, middle + x * sin + y * cos) for x, y in points]


def _around(count: int, radii: tuple[float, ...] = (1.0,), start: float = -90) -> Points:
    angles = (math.radians(start + 360 * i / count) for i in range(count))
    return [
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _heart() -> Points:
    turns = (2 * math.pi * i / 40 for i in range(40))
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.13,
        )
        for t in turns
    ]


# Outlines within the unit circle, y downwards.
_OUTLINES: dict[str, Points] = {
    "circle": _around(48),
    "ring": _around(48),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0, -1.05), (0.78, 0), (0, 1.05), (-0.78, 0)],
    "star": [(x * 1.08, y * 1.08 + 0.06) for x, y in _around(10, (1.0, 0.42))],
    "heart": _heart(),
    "cross": [
        *((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)),
        *((0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
    ],
}


def _thing(canvas: Image.Image, thing: Thing) -> None:
    half = math.ceil(thing.span * 0.62) + 1
    middle, radius = half * _FINE, thing.span / 2 * _FINE
    mask = Image.new("L", (2 * middle, 2 * middle))
    pen = ImageDraw.Draw(mask)
    pen.polygon(_turned(_OUTLINES[thing.shape], thing.angle, radius, middle), fill=255)
    if thing.shape == "ring":
        pen.polygon(_turned(_OUTLINES["circle"], 0, radius * 0.55, middle), fill=0)
    _paste(canvas, thing.rgb, mask.reduce(_FINE), thing.x, thing.y)


def _line(canvas: Image.Image, line: Line) -> None:
    if line.plate is not None:
        pad, half = 5, line.style.cap / 2 + 6
        right = line.x + (len(line.text) - 0.5) * line.advance
        box = (line.x - line.advance / 2 - pad, line.y - half, right + pad, line.y + half)
        ImageDraw.Draw(canvas).rectangle(box, fill=line.plate)
    style = line.style
    for letter, x in line.letters():
        master = _master(style.font, style.weight, style.slant, letter)
        scale = style.cap / _CAP
        width = max(2, round(min(master.width * scale, line.advance * (1.04 if style.slant else 0.88))))
        mask = master.resize((width, round(master.height * scale)), Image.Resampling.BOX)
        _paste(canvas, style.rgb, mask, x, line.y)


@cache
def _master(font: str, weight: int, slant: float, letter: str) -> Image.Image:
    """A large mask of one letter: as wide as its ink, `_MARGIN` above and below its capital height."""
    made = _FACES[font](letter, weight)
    if slant:
        shear = (1, slant, -slant * made.height / 2, 0, 1, 0)
        made = made.transform(made.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    left, _, right, _ = made.getbbox() or (0, 0, *made.size)
    return made.crop((left, 0, right, made.height))


def _stroked(letter: str, weight: int) -> Image.Image:
    width = _STROKE_WIDTH[weight]
    unit, inset = (_CAP - width) / 6, 40
    made = Image.new("L", (200, _CAP + 2 * _MARGIN))
    pen = ImageDraw.Draw(made)
    for run in polylines(letter):
        points = [(inset + x * unit, _MARGIN + width / 2 + y * unit) for x, y in run]
        pen.line(points, fill=255, width=width, joint="curve")
        for x, y in points:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return made


def _aileron(letter: str, weight: int) -> Image.Image:
    font = _sized_aileron()
    made = Image.new("L", (260, _CAP + 2 * _MARGIN))
    ImageDraw.Draw(made).text(
        (50, _MARGIN + _CAP), letter, fill=255, font=font, anchor="ls", stroke_width=3 * weight
    )
    return made


@cache
def _sized_aileron() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for size in range(100, 200):
        font = ImageFont.load_default(size)
        _, top, _, bottom = font.getbbox("H", anchor="ls")
        if bottom - top >= _CAP:
            return font
    return ImageFont.load_default(134)


def _bitmap(letter: str, weight: int) -> Image.Image:
    """The pixel face, its pixels kept square."""
    small = Image.new("L", (24, 16))
    font = ImageFont.load_default_imagefont()
    ImageDraw.Draw(small).text(
        (0, 2), f" {letter}", fill=255, font=font
    )  # a first letter loses its left edge
    left, top, right, bottom = small.getbbox() or (0, 0, *small.size)
    ink = small.crop((left, top, right, bottom))
    unit = _CAP / ink.height
    ink = ink.resize((round(ink.width * unit * (0.9 + 0.15 * weight)), _CAP), Image.Resampling.NEAREST)
    made = Image.new("L", (ink.width + 80, _CAP + 2 * _MARGIN))
    made.paste(ink, (40, _MARGIN))
    return made


_FACES = {"stroke": _stroked, "aileron": _aileron, "bitmap": _bitmap}


def _chart(canvas: Image.Image, chart: Chart) -> None:
    pen = ImageDraw.Draw(canvas)
    left, right = chart.bars[0].x - chart.width / 2 - 8, chart.bars[-1].x + chart.width / 2 + 8
    if chart.grid:
        faint = canvas.getpixel((2, 2))
        assert isinstance(faint, tuple)
        shade = tuple(round(0.8 * a + 0.2 * b) for a, b in zip(faint, chart.ink, strict=True))
        for i in range(1, int((chart.base - 10) / chart.grid) + 1):
            y = round(chart.base - i * chart.grid)
            pen.line((left, y, right, y), fill=shade)
    for bar in chart.bars:
        box = (
            round(bar.x - chart.width / 2),
            round(bar.top),
            round(bar.x + chart.width / 2),
            round(chart.base),
        )
        pen.rectangle(box, fill=bar.rgb)
    if chart.axis:
        pen.line((left, round(chart.base) + 1, right, round(chart.base) + 1), fill=chart.ink, width=2)
        pen.line((left, 14, left, round(chart.base) + 1), fill=chart.ink, width=2)


# Each sign as layers: an outline, how far it reaches as a share of the half span, its colour.
_DISC, _OCTAGON, _DOWN = _around(64), _around(8, start=22.5), [(-1.0, -0.87), (1.0, -0.87), (0.0, 0.87)]
_DIAMOND = _around(4)
_ARROW: Points = [(-1, 0), (-0.2, -0.6), (-0.2, -0.22), (1, -0.22), (1, 0.22), (-0.2, 0.22), (-0.2, 0.6)]
_BAND: Points = [(-1, -0.26), (1, -0.26), (1, 0.26), (-1, 0.26)]
_INNER: Points = [(x, y - 0.16) for x, y in _DOWN]
_LAYERS: dict[str, tuple[tuple[Points, float, RGB], ...]] = {
    "stop": ((_OCTAGON, 1.0, RED), (_OCTAGON, 0.95, WHITE), (_OCTAGON, 0.9, RED)),
    "yield": ((_DOWN, 1.0, RED), (_INNER, 0.62, WHITE)),
    "no entry": ((_DISC, 1.0, RED), (_BAND, 0.72, WHITE)),
    "speed limit": ((_DISC, 1.0, RED), (_DISC, 0.8, WHITE)),
    "priority road": ((_DIAMOND, 1.0, WHITE), (_DIAMOND, 0.74, _YELLOW)),
    "one way left": ((_DISC, 1.0, BLUE), (_ARROW, 0.68, WHITE)),
    "one way right": ((_DISC, 1.0, BLUE), ([(-x, y) for x, y in _ARROW], 0.68, WHITE)),
}


def _sign(canvas: Image.Image, sign: Sign) -> None:
    half = math.ceil(sign.span / 2) + 1
    for outline, reach, rgb in _LAYERS[sign.kind]:
        mask = Image.new("L", (2 * half * _FINE, 2 * half * _FINE))
        points = _turned(outline, 0, reach * sign.span / 2 * _FINE, half * _FINE)
        ImageDraw.Draw(mask).polygon(points, fill=255)
        _paste(canvas, rgb, mask.reduce(_FINE), sign.x, sign.y)
