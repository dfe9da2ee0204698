"""What draws the independent test: matplotlib, cairo, and a browser that shows SVG and HTML."""

from __future__ import annotations

import base64
import io
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cairo
import matplotlib
import numpy as np
from PIL import Image, ImageFont

from .elsewhere import Sheet

matplotlib.use("Agg")
from matplotlib import patches, pyplot

Drawer = Callable[[Sheet], Image.Image]
FAMILIES = ("Open Sans", "FreeSans", "Noto Serif", "Aileron")  # the last is Pillow's, from its own bytes
_DPI = 100

# What has no name for the model, as SVG paths and their fills in a box of 100 × 100.
UNKNOWN_PATHS: dict[str, tuple[tuple[str, str], ...]] = {
    "tree": (
        ("M44 60h12v38h-12z", "#8b5a2b"),
        ("M50 4C80 4 92 30 78 46 96 60 70 72 50 66 30 72 4 60 22 46 8 30 20 4 50 4z", "#2e8b57"),
    ),
    "car": (
        ("M6 60h12l14-22h36l14 22h12v16H6z", "#b22222"),
        ("M24 68a9 9 0 1 0 .1 0zM76 68a9 9 0 1 0 .1 0z", "#222222"),
    ),
    "fish": (
        ("M8 50C26 24 60 24 76 48L94 30v40L76 52C60 76 26 76 8 50z", "#e07b39"),
        ("M24 42a4 4 0 1 0 .1 0z", "#111111"),
    ),
    "cup": (("M20 26h48l-6 58H26z", "#5577aa"), ("M66 36c26-4 26 34-2 32l1-8c14 2 14-18 0-16z", "#5577aa")),
    "face": (
        ("M50 8a42 42 0 1 0 .1 0z", "#ffcc4d"),
        ("M35 36a6 6 0 1 0 .1 0zM65 36a6 6 0 1 0 .1 0zM28 60c10 22 34 22 44 0z", "#664422"),
    ),
    "key": (("M24 34a17 17 0 1 0 .1 0zM38 46h56v9h-8v12h-8V55h-8v10h-8V55H38z", "#b8962e"),),
    "umbrella": (
        ("M6 52C10 4 90 4 94 52 84 42 74 42 65 52 58 42 42 42 35 52 26 42 16 42 6 52z", "#7744aa"),
        ("M48 48h4v38c0 14-18 14-18 0h4c0 8 10 8 10 0z", "#333333"),
    ),
    "spiral": (
        (
            "M50 50c4-6 12 0 10 8-4 12-22 10-26-2-4-20 20-32 36-20 20 16 10 48-14 52"
            "-34 4-52-32-36-58l6 4C12 56 26 84 56 82c18-4 26-28 12-42C56 30 38 40 40 54c2 8 14 10 16 2z",
            "#444444",
        ),
    ),
}


@cache
def pillows_face() -> bytes:
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert isinstance(font.path, io.BytesIO)
    return font.path.getvalue()


def photograph(sheet: Sheet) -> Image.Image:
    """A piece of matplotlib's sample photograph; another with every size of the sheet."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    rng = np.random.default_rng([sheet.width, sheet.height, len(sheet.ground), *map(ord, sheet.ground)])
    side = rng.uniform(0.45, 0.9) * min(picture.size)
    left, top = (rng.uniform(0, length - side) for length in picture.size)
    piece = picture.crop((round(left), round(top), round(left + side), round(top + side)))
    return piece.resize((sheet.width, sheet.height), Image.Resampling.LANCZOS)


@contextmanager
def drawers() -> Iterator[tuple[Drawer, ...]]:
    """One of each library; what has no name is drawn by the browser for all."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()

        def in_browser(sheet: Sheet) -> Image.Image:
            page.set_viewport_size({"width": sheet.width, "height": sheet.height})
            page.set_content(html(sheet))
            page.evaluate("document.fonts.ready")
            return Image.open(io.BytesIO(page.screenshot())).convert("RGB")

        def known(draw: Drawer) -> Drawer:
            def by_what_it_shows(sheet: Sheet) -> Image.Image:
                if sheet.unknown == "photo":
                    return photograph(sheet)
                return in_browser(sheet) if sheet.unknown else draw(sheet)

            return by_what_it_shows

        yield tuple(map(known, (by_matplotlib, by_cairo, in_browser)))
        browser.close()


# --- matplotlib ---


def by_matplotlib(sheet: Sheet) -> Image.Image:
    size = sheet.width / _DPI, sheet.height / _DPI
    figure = pyplot.figure(figsize=size, dpi=_DPI, facecolor=sheet.ground)
    if sheet.bars:
        axes = figure.add_subplot()
        axes.bar(sheet.bars.labels, sheet.bars.heights, color=sheet.bars.css)
        axes.tick_params(labelsize=_label_size(sheet) * 72 / _DPI)
        axes.tick_params(axis="y", labelsize=7)
        if sheet.bars.title:
            axes.set_title(sheet.bars.title)
        figure.tight_layout()
    else:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, sheet.width), ylim=(sheet.height, 0))
        axes.set_axis_off()
        for shape in sheet.shapes:
            wide = shape.wide if shape.name == "oval" else shape.half
            patch: patches.Patch = patches.Ellipse((shape.x, shape.y), 2 * wide, 2 * shape.half)
            if shape.path:
                patch = patches.Polygon(shape.path, closed=True)
            patch.set(facecolor=shape.css, edgecolor=shape.line or "none", linewidth=2)
            axes.add_patch(patch)
        for text in sheet.texts:
            axes.text(
                sheet.width / 2,
                text.y,
                text.text,
                color=text.css,
                fontsize=text.size * 72 / _DPI,
                ha="center",
                va="center",
            )
    stored = io.BytesIO()
    figure.savefig(stored, dpi=_DPI, facecolor=figure.get_facecolor())
    pyplot.close(figure)
    return Image.open(stored).convert("RGB")


def _label_size(sheet: Sheet) -> float:
    """px of a bar's label: what can be read where the picture is made 256 px wide."""
    return 0.055 * max(sheet.width, sheet.height)


# --- cairo ---


def by_cairo(sheet: Sheet) -> Image.Image:
    surface = cairo.ImageSurface(cairo.FORMAT_RGB24, sheet.width, sheet.height)
    pen = cairo.Context(surface)
    _set(pen, sheet.ground)
    pen.paint()
    for shape in sheet.shapes:
        if shape.path:
            pen.move_to(*shape.path[0])
            for point in shape.path[1:]:
                pen.line_to(*point)
            pen.close_path()
        else:
            pen.save()
            pen.translate(shape.x, shape.y)
            pen.scale(shape.wide if shape.name == "oval" else shape.half, shape.half)
            pen.arc(0, 0, 1, 0, 2 * math.pi)
            pen.restore()
        _set(pen, shape.css)
        pen.fill_preserve()
        if shape.line:
            _set(pen, shape.line)
            pen.set_line_width(max(1.5, 0.06 * shape.half))
            pen.stroke_preserve()
        pen.new_path()
    for text in sheet.texts:
        _write(pen, text.text, FAMILIES[text.font % 3], text.size, sheet.width / 2, text.y, text.css)
    if sheet.bars:
        _cairo_bars(pen, sheet)
    pixels = np.ndarray((sheet.height, surface.get_stride() // 4, 4), np.uint8, surface.get_data())
    return Image.fromarray(np.ascontiguousarray(pixels[:, : sheet.width, 2::-1]))


def _set(pen: cairo.Context[cairo.ImageSurface], css: str) -> None:
    pen.set_source_rgb(*(int(css[i : i + 2], 16) / 255 for i in (1, 3, 5)))


def _write(
    pen: cairo.Context[cairo.ImageSurface], text: str, family: str, size: float, x: float, y: float, css: str
) -> None:
    """Centered at a place."""
    pen.select_font_face(family, cairo.FontSlant.NORMAL, cairo.FontWeight.NORMAL)
    pen.set_font_size(size)
    extents = pen.text_extents(text)
    pen.move_to(x - extents.width / 2 - extents.x_bearing, y - extents.height / 2 - extents.y_bearing)
    _set(pen, css)
    pen.show_text(text)


def _cairo_bars(pen: cairo.Context[cairo.ImageSurface], sheet: Sheet) -> None:
    assert sheet.bars
    size = _label_size(sheet)
    left, right, top, base = (
        0.06 * sheet.width,
        0.96 * sheet.width,
        0.1 * sheet.height,
        sheet.height - 2.2 * size,
    )
    pitch = (right - left) / len(sheet.bars.labels)
    for i, (label, height, css) in enumerate(
        zip(sheet.bars.labels, sheet.bars.heights, sheet.bars.css, strict=True)
    ):
        high = height / max(sheet.bars.heights) * (base - top)
        _set(pen, css)
        pen.rectangle(left + (i + 0.2) * pitch, base - high, 0.6 * pitch, high)
        pen.fill()
        _write(pen, label, "Open Sans", size, left + (i + 0.5) * pitch, base + size, "#000000")
    _set(pen, "#000000")
    pen.set_line_width(1.5)
    pen.move_to(left, top)
    pen.line_to(left, base)
    pen.line_to(right, base)
    pen.stroke()


# --- the browser ---


def html(sheet: Sheet) -> str:
    face = base64.b64encode(pillows_face()).decode()
    style = (
        f"@font-face{{font-family:Aileron;src:url(data:font/ttf;base64,{face})}}"
        f"*{{margin:0;box-sizing:border-box}}body{{background:{sheet.ground};overflow:hidden}}"
    )
    return f"<style>{style}</style>{_html_bars(sheet) if sheet.bars else _svg(sheet)}"


def _svg(sheet: Sheet) -> str:
    parts = []
    for shape in sheet.shapes:
        style = f'fill="{shape.css}"' + (f' stroke="{shape.line}" stroke-width="2"' if shape.line else "")
        if shape.path:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.path)
            parts.append(f'<polygon points="{points}" {style}/>')
        else:
            wide = shape.wide if shape.name == "oval" else shape.half
            parts.append(f'<ellipse cx="{shape.x}" cy="{shape.y}" rx="{wide}" ry="{shape.half}" {style}/>')
    for text in sheet.texts:
        family = FAMILIES[(text.font // 3) % len(FAMILIES)]
        parts.append(
            f'<text x="50%" y="{text.y}" font-family="{family}" font-size="{text.size}" fill="{text.css}" '
            f'text-anchor="middle" dominant-baseline="middle">{text.text}</text>'
        )
    scale = min(sheet.width, sheet.height) / 125
    left, top = sheet.width / 2 - 50 * scale, sheet.height / 2 - 50 * scale
    for path, fill in UNKNOWN_PATHS.get(sheet.unknown, ()):
        parts.append(f'<path d="{path}" fill="{fill}" transform="translate({left} {top}) scale({scale})"/>')
    return f'<svg width="{sheet.width}" height="{sheet.height}">{"".join(parts)}</svg>'


def _html_bars(sheet: Sheet) -> str:
    assert sheet.bars
    size = _label_size(sheet)
    room = sheet.height - 3.4 * size
    columns = "".join(
        f'<div style="flex:1;text-align:center"><div style="margin:0 14%;height:'
        f'{height / max(sheet.bars.heights) * room:.1f}px;background:{css}"></div>'
        f'<div style="height:{1.5 * size}px;border-top:1px solid #555">{label}</div></div>'
        for label, height, css in zip(sheet.bars.labels, sheet.bars.heights, sheet.bars.css, strict=True)
    )
    return (
        f'<div style="height:{sheet.height}px;padding:4px 8px;display:flex;align-items:flex-end;'
        f'font:{size}px Aileron">{columns}</div>'
    )
