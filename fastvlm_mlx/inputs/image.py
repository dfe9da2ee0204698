"""A picture from anywhere -> upright 8-bit RGB -> a square, or several -> floats for the vision tower.

    open_image("photo.jpg")           a PIL picture: EXIF-upright, transparency over white, RGB
    squared(picture, 1024, "pad")     a 1024×1024 PIL picture
    preprocess("photo.jpg", 1024)     both, then float32 (1024, 1024, 3) in [0, 1]
    pieces("photo.jpg", options)      the same for any `ImageOptions`: an overview and its tiles, say

`reference=True` reproduces the PyTorch pipeline bit for bit: `Image.open(f).convert("RGB")`, which ignores
the EXIF orientation, drops alpha and clips 16-bit gray. Not covered: ICC profiles (ignored, as in the
reference) and frames after the first.
"""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import IO, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from ..config import SQUARE_MODES
from ..errors import ConfigError, ImageError
from .tiling import MAX_PIXELS, NATIVE, TILES, ImageOptions, fit_within, grid_name

MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT_S = 30.0

Source: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]

# What Pillow's decoders raise on damaged data: no common base class. UserWarning: where warnings are errors.
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BROKEN = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, RuntimeError, MemoryError, UserWarning, struct.error, zlib.error, *_BOMB),
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
PICTURE_BRANDS = (*_HEIF_BRANDS, b"avif", b"avis")  # in a header that videos have too
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# transformers 4.48 rescales in float64 and rounds once; float32 arithmetic differs for 126 of the 256 values.
_UNIT = (np.arange(256) * (1 / 255)).astype(np.float32)


class SourceBytes(bytes):
    """Encoded bytes that remember where they came from, so that errors can name it."""

    origin = ""


def preprocess(
    source: Source, size: int, mode: str = "pad", *, reference: bool = False
) -> npt.NDArray[np.float32]:
    """The vision tower's input, without the batch axis: (size, size, 3) in [0, 1]; native has other sides."""
    options = ImageOptions(size, mode, reference=reference)  # before a large file is decoded in vain
    if mode == TILES:
        raise ConfigError("tiles are several pictures; call image.pieces, or choose another mode")
    return preprocess_all(source, options)[0]


def preprocess_all(source: Source, options: ImageOptions) -> list[npt.NDArray[np.float32]]:
    """The vision tower's inputs for one picture: with tiles the overview first, then tiles row by row."""
    opened = source if _is_open(source) else open_image(source, reference=options.reference)
    return [_UNIT[np.asarray(piece)] for piece in split_image(opened, options)]


def to_uint8(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """Pixels that `preprocess` made, as the 8 bits that they came from; others have none."""
    whole = np.rint(np.clip(pixels, 0, 1) * np.float32(255)).astype(np.uint8)
    return whole if np.array_equal(_UNIT[whole], pixels) else None


def to_floats(whole: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The other way."""
    pixels: npt.NDArray[np.float32] = _UNIT[whole]
    return pixels


def check_options(size: int, mode: str) -> None:
    """Say what is wrong with them before anything is read."""
    ImageOptions(size, mode)


def split_image(image: Image.Image, options: ImageOptions) -> list[Image.Image]:
    """An RGB picture as the pieces that the model reads; their sides are `options.sides(*image.size)`.

    Tiles are cut from the picture in the middle of its grid, in front of black; the overview is all of it,
    stretched to one tile. Both are the reference's. What one tile shows whole is one padded square.
    """
    (size, mode), bicubic = options.size_and_mode, Image.Resampling.BICUBIC
    if mode == NATIVE:
        return [image.resize(options.sides(*image.size)[0], bicubic)]
    if mode != TILES:
        return [to_square(image, size, mode)]
    columns, rows = grid = options.grid_of(*image.size)
    if grid == (1, 1):
        return [to_square(image, size, "pad")]
    if image.width < columns or image.height < rows:
        found = f"a picture of {image.width}×{image.height} has too few pixels for {grid_name(grid)} tiles"
        raise ImageError(f"{found}; leave the grid out to have one that fits")
    whole = columns * size, rows * size
    wide, tall = fit_within(*image.size, whole)
    canvas = Image.new("RGB", whole)
    canvas.paste(image.resize((wide, tall), bicubic), ((whole[0] - wide) // 2, (whole[1] - tall) // 2))
    corners = [(left, top) for top in range(0, whole[1], size) for left in range(0, whole[0], size)]
    tiles = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
    return [image.resize((size, size), bicubic), *tiles]


def to_square(image: Image.Image, size: int, mode: str) -> Image.Image:
    """An RGB picture as size×size. pad: black bars, the reference. crop: what HF's CLIP processor does."""
    check_options(size, mode)
    if mode not in SQUARE_MODES:
        raise ConfigError(f"image mode {mode} makes no square; choose one of {', '.join(SQUARE_MODES)}")
    bicubic = Image.Resampling.BICUBIC
    (width, height), short, long = image.size, min(image.size), max(image.size)
    if mode == "stretch":
        return image.resize((size, size), bicubic)
    if mode == "pad":
        if long * long > MAX_PIXELS:
            found = f"a picture of {width}×{height} padded to a square has more than {MAX_PIXELS} pixels"
            raise ImageError(f"{found}; use mode crop or stretch, or make it smaller")
        square = Image.new("RGB", (long, long))
        square.paste(image, ((long - width) // 2, (long - height) // 2))
        return square.resize((size, size), bicubic)
    scaled = int(size * long / short)
    wide, tall = (size, scaled) if width <= height else (scaled, size)
    left, top = (wide - size) // 2, (tall - size) // 2
    box = (left, top, left + size, top + size)
    if wide * tall <= MAX_PIXELS:
        return image.resize((wide, tall), bicubic).crop(box)
    # An extreme strip: the same geometry without the intermediate picture (its last bits may differ).
    x, y = width / wide, height / tall
    return image.resize((size, size), bicubic, box=(box[0] * x, box[1] * y, box[2] * x, box[3] * y))


def open_image(source: Source, *, reference: bool = False, most_pixels: int | None = None) -> Image.Image:
    """The picture as a person sees it, mode "RGB", fully decoded; see the module for `reference`.

    Encoded pictures of more than `most_pixels` (else MAX_PIXELS) are refused by their headers.
    """
    name = source_name(source)
    most = MAX_PIXELS if most_pixels is None else most_pixels
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source), name, reference)
    if isinstance(source, Image.Image):
        return _rgb(source, name, reference)
    if isinstance(source, bytes):
        return _rgb(_identify(io.BytesIO(source), name, most), name, reference)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"cannot read a picture from {name}; pass a path, bytes, a PIL image or an array")
    try:
        with open(source, "rb") as file:
            stream = file if file.seekable() else io.BytesIO(file.read())
            return _rgb(_identify(stream, name, most), name, reference)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = one_line(getattr(error, "strerror", None) or error)
        raise ImageError(f"cannot read {name} ({reason}); pass the path of a readable picture") from error


def _is_open(source: Source) -> TypeGuard[Image.Image]:
    """Whether `open_image` would return an equal copy, as it does for a picture that it returned before."""
    plain = type(source) is Image.Image and source.mode == "RGB" and not source.info and 0 not in source.size
    return plain and not source.getexif()  # type: ignore[union-attr]


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height as a file holds them: not turned upright, and nothing is decoded."""
    name = source_name(path)
    try:
        with open(path, "rb") as file:
            return _identify(file, name, MAX_PIXELS).size
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise ImageError(f"cannot read {name} ({reason}); pass the path of a readable picture") from error


def open_source(source: str) -> Path | SourceBytes:
    """A command-line argument as a source: "-" is standard input, http(s):// is downloaded, else a path.

    Not for addresses from strangers: it follows them into the local network.
    """
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise ImageError("'-' reads a picture from standard input, but none is piped in; name a file")
        data, origin = sys.stdin.buffer.read(), "standard input"
    elif source.lower().startswith(("http://", "https://")):
        data, origin = _download(source), source
    else:
        return Path(source)
    fetched = SourceBytes(data)
    fetched.origin = origin
    return fetched


def _download(url: str) -> bytes:
    import http.client  # these bring ssl along, which reading a local file does not need
    import urllib.error
    import urllib.parse
    from urllib import request

    # Without urllib's file:, ftp: and data: handlers, also after a redirect.
    handlers: tuple[type[request.BaseHandler], ...] = (
        *(request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler),
        *(request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor),
    )
    opener = request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler())
    name = _quoted(url)
    too_large = f"{name} is larger than {MAX_DOWNLOAD_BYTES} bytes; download it yourself and pass the file"
    try:
        ascii_url = urllib.parse.quote(url, safe=":/?#[]@!$&'()*+,;=%~")
        query = request.Request(
            ascii_url, headers={"User-Agent": "fastvlm-mlx", "Accept": "image/*, video/*"}
        )
        with opener.open(query, timeout=DOWNLOAD_TIMEOUT_S) as response:
            if int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD_BYTES:
                raise ImageError(too_large)
            data: bytes = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(
            f"{name} answered {error.code} {one_line(error.reason)}; check the address"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", error))
        raise ImageError(f"cannot download {name} ({reason}); check the address") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ImageError(too_large)
    return data


def _identify(stream: IO[bytes], name: str, most_pixels: int) -> Image.Image:
    """PIL.Image.open, except that it refuses by our limit: Pillow's own is one global that other threads
    see, so it is left alone. PostScript is left out: Pillow would run it as a program."""
    head = stream.read(64)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes); download or copy it again")
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _HEIF_BRANDS and b"avif" not in head:  # AVIF files may lead with mif1 too
        try:
            import pillow_heif
        except ImportError as error:
            raise ImageError(f"{name} is a HEIC picture; run pip install 'fastvlm-mlx[heic]'") from error
        pillow_heif.register_heif_opener()
    failure: Exception | None = None
    for load_plugins in (Image.preinit, Image.init):  # the common formats first, as Pillow does
        load_plugins()
        for plugin in [plugin for plugin in Image.ID if plugin != "EPS"]:
            factory, accept = Image.OPEN[plugin]
            try:
                verdict = accept(head[:16].ljust(16, b"\0")) if accept else True  # some need four bytes
                if not verdict or isinstance(verdict, str):  # a string says why it is not supported
                    continue
                stream.seek(0)
                image = factory(stream, "")
            except _BROKEN as error:
                failure = failure or (error if accept else None)
                continue
            if image.width * image.height > most_pixels:
                size = f"{image.width}×{image.height}"
                raise ImageError(f"{name} is {size}, more than {most_pixels} pixels; make it smaller")
            return image
    if failure:
        raise _undecodable(name, failure) from failure
    if brand in (b"avif", b"avis"):
        raise ImageError(f"{name} is AVIF, which this Pillow cannot read; run pip install -U pillow")
    raise ImageError(f"{name} is not a picture (it starts with {head[:12]!r}); pass a PNG, JPEG or the like")


def _rgb(image: Image.Image, name: str, reference: bool) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels ({image.width}×{image.height}); pass another picture")
    try:
        image.load()
        if not reference:
            return _upright(_opaque(image), image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.copy()
            del image.info["transparency"]  # the same pixels, without the warning that Pillow emits
        converted = image.convert("RGB")
        converted.info.clear()  # an orientation that was ignored stays ignored
        return converted
    except _BROKEN as error:
        raise _undecodable(name, error) from error


def _undecodable(name: str, error: Exception) -> ImageError:
    if isinstance(error, _BOMB):
        return ImageError(f"{name} is too large ({one_line(error)}); make it smaller")
    return ImageError(f"{name} is damaged or cut short ({one_line(error)}); copy or download it again")


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    try:
        orientation = original.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN:  # a picture whose EXIF block is torn is still a picture
        orientation = None
    upright = image.transpose(_TO_UPRIGHT[orientation]) if orientation in _TO_UPRIGHT else image
    upright.info.clear()  # an orientation that was followed must not be followed again
    return upright


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_wide_gray(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # premultiplied: Pillow knows only this way out
        image = image.convert("LA")
    pixels = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), pixels).convert("RGB")


def _from_wide_gray(image: Image.Image) -> Image.Image:
    """16-bit gray is value/257. 32-bit and float have no agreed white: their own range becomes 0..255."""
    values = np.asarray(image)
    # Pillow holds 16-bit PNG (before 11.0) and PGM files in the 32-bit mode.
    if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        gray = ((np.arange(2**16) + 128) // 257).astype(np.uint8)[np.clip(values, 0, 2**16 - 1)]
        if isinstance(clear := image.info.get("transparency"), int):
            gray[values == clear] = 255
        return Image.fromarray(gray)
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    within = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return Image.fromarray(np.rint((within - low) * (255 / ((high - low) or 1.0))).astype(np.uint8))


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        found = f"an array of {array.dtype} {array.shape} is not a picture"
        raise ImageError(f"{found}; pass uint8 of shape (H, W), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(np.ascontiguousarray(array))


def source_name(source: object) -> str:
    """How messages call it."""
    if isinstance(source, (str, os.PathLike)):
        return _quoted(os.fspath(source))
    if isinstance(source, SourceBytes):
        return _quoted(source.origin)
    if isinstance(source, bytes):
        return f"the picture ({len(source)} bytes)"
    if isinstance(source, Image.Image):
        return _quoted(filename) if (filename := getattr(source, "filename", "")) else "the picture"
    return f"a {type(source).__name__}"


def _quoted(name: str | bytes) -> str:
    text = repr(name)  # one line, whatever it holds
    return text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}"


def one_line(error: object) -> str:
    """What an error says."""
    return " ".join(str(error).split()) or type(error).__name__
