"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import KERNELS_VARIABLE
from ..inputs.tiling import MAX_FRAMES, MAX_TILES, ImageOptions, parsed_grid
from ..terminal import output
from ..terminal.units import size_bytes
from ..weights import hub

MODEL_VARIABLE = "FASTVLM_MLX_MODEL"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        help="A directory, a hub id such as apple/FastVLM-1.5B, or 0.5b, 1.5b, 7b. Default: tiny.",
    ),
]
AdapterPath = Annotated[
    Path | None, typer.Option("--adapter-path", help="A directory that fine-tuning wrote, OUT/adapter.")
]
System = Annotated[str | None, typer.Option(help="Another system prompt; an empty one leaves it out.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=0, help="Stop after so many.")]
Temperature = Annotated[
    float, typer.Option("--temperature", "--temp", help="0 always takes the likeliest token.")
]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that sum to this.")]
TopK = Annotated[int, typer.Option(help="Sample from so many likeliest tokens; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens this much rarer than the likeliest; 0 is off.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 discourages repeats; 1 is off.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Side in pixels, a multiple of 64, of the square, of native's longer side or of a tile; more is "
        "sharper and slower. Default: the model's."
    ),
]
ImageMode = Annotated[
    str | None,
    typer.Option(
        metavar="pad|crop|stretch|native|tiles",
        help="How a picture becomes square; native keeps its shape, in fewer tokens; tiles are an overview "
        "and squares cut from it. Default: the model's.",
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="COLUMNSxROWS",
        help="For tiles: such as 2x2. Default: by the picture's sides, of at most --max-tiles.",
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option("--max-tiles", help=f"For tiles: the most that a picture has. Default: {MAX_TILES}."),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", help="Of a video: take so many frames a second, and not more than --max-frames."),
]
MaxFrames = Annotated[
    int | None,
    typer.Option(
        "--max-frames", help=f"Of a video: take at most so many, evenly spread. Default: {MAX_FRAMES}."
    ),
]
Frames = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar="even|scenes",
        help="Of a video: scenes takes the frames with which the picture changes most. Default: even.",
    ),
]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference",
        help="Read pictures exactly as the PyTorch reference does: EXIF and transparency ignored.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="float16|bfloat16|float32", help="Compute in this type. Default: as stored."),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="4|8",
        help="Keep keys and values in so many bits: a quarter or half of their memory in half precision.",
    ),
]
KvGroupSize = Annotated[
    int,
    typer.Option(
        "--kv-group-size",
        metavar="32|64|128",
        help="Of --kv-bits: values that share a scale; where it does not divide a head, the next smaller.",
    ),
]
UploadRepo = Annotated[str | None, typer.Option(help="Upload the result to this hub repository.")]
HubPrivate = Annotated[bool, typer.Option("--hub-private", help="Make that repository private.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Upload nothing: list the files and sizes that would be.")
]


def _use_kernels(mode: str | None) -> str | None:
    if mode is not None:
        from ..kernels import choice

        choice.use(mode)
    return mode


Kernels = Annotated[
    str | None,
    typer.Option(
        "--kernels",
        metavar="tuned|stock",
        envvar=KERNELS_VARIABLE,
        callback=_use_kernels,
        help="tuned uses what `fastvlm-mlx tune` chose, if you ran it; stock "
        "takes MLX's own operations. Default: tuned.",
    ),
]
Wired = Annotated[
    bool,
    typer.Option(
        "--wired",
        help="On a Mac, keep memory wired while answering; several programs that do so can crash the system.",
    ),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        metavar="SIZE",
        help="Keep at most SIZE of freed memory for reuse. Default: 1/16 of the memory, on the CPU 32 MiB.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]


def named(model: str | None, *, speaks: bool = True) -> str:
    """The model asked for, or the one in the package, which says what it is where this process speaks."""
    if model is None and speaks:
        output.say(
            "the built-in model answers: it knows shapes, short texts and small charts. For photographs, "
            "--model 0.5b downloads FastVLM-0.5B (1.2 GB, Apple's licence for research)"
        )
    return hub.DEFAULT if model is None else model


def limit_cache(cache_limit: str | None) -> None:
    from ..inference.allocator import limit_cache as limit

    limit(None if cache_limit is None else int(size_bytes(cache_limit, "--cache-limit")))


def can_wire(wired: bool) -> bool:
    """Whether to wire memory, with a note where the device cannot."""
    if not wired:
        return False
    from ..inference.allocator import working_set_bytes

    if working_set_bytes():
        return True
    output.say("note: --wired has no effect here; this device reports no working set, as Macs do")
    return False


def image_options(
    image_size: int | None, image_mode: str | None, grid: str | None, max_tiles: int | None, reference: bool
) -> ImageOptions:
    """The options together, checked before a model is loaded."""
    return ImageOptions(image_size, image_mode, parsed_grid(grid), max_tiles, reference)
