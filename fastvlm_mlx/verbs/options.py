"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import KERNELS_VARIABLE
from ..inputs.tiling import MAX_FRAMES, MAX_TILES, ImageOptions, parse_grid
from ..terminal import output
from ..terminal.units import parse_bytes
from ..weights import hub

MODEL_VARIABLE = "FASTVLM_MLX_MODEL"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        help="Model directory, hub id such as apple/FastVLM-1.5B, or 0.5b, 1.5b, 7b. Default: tiny.",
    ),
]
AdapterPath = Annotated[
    Path | None, typer.Option("--adapter-path", help="LoRA adapter directory, OUT/adapter of a training run.")
]
System = Annotated[
    str | None, typer.Option(help="System prompt; an empty string removes it. Default: the model's.")
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-n", min=0, help="Maximum number of tokens to generate.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", "--temp", help="Sampling temperature; 0 is greedy decoding.")
]
TopP = Annotated[float, typer.Option(help="Sample from the most likely tokens whose probabilities sum to N.")]
TopK = Annotated[int, typer.Option(help="Sample from the N most likely tokens; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below N times the top probability; 0 is off.")]
Seed = Annotated[int | None, typer.Option(help="Random seed, for repeatable sampling.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Penalty for repeated tokens, above 1; 1 is off.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Image side in pixels, a multiple of 64: the square, the longer side for native, or one tile. "
        "Larger is sharper and slower. Default: the model's."
    ),
]
ImageMode = Annotated[
    str | None,
    typer.Option(
        metavar="pad|crop|stretch|native|tiles",
        help="How to fit a picture into the square. native keeps the aspect ratio and needs fewer tokens; "
        "tiles adds squares cut from the picture to an overview. Default: the model's.",
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="COLUMNSxROWS",
        help="Tile grid for tiles mode, such as 2x2. Default: chosen by aspect ratio, up to --max-tiles.",
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option("--max-tiles", help=f"Maximum number of tiles per picture. Default: {MAX_TILES}."),
]
Fps = Annotated[
    float | None,
    typer.Option("--fps", help="Video frames per second to sample, up to --max-frames."),
]
MaxFrames = Annotated[
    int | None,
    typer.Option("--max-frames", help=f"Maximum number of video frames. Default: {MAX_FRAMES}."),
]
Frames = Annotated[
    str | None,
    typer.Option(
        "--frames",
        metavar="even|scenes",
        help="How to choose video frames: evenly spaced, or at scene changes. Default: even.",
    ),
]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference",
        help="Preprocess pictures exactly as the PyTorch reference does; this ignores EXIF and transparency.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="float16|bfloat16|float32", help="Data type for computation. Default: as stored."),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        metavar="4|8",
        help="Quantize the KV cache to 4 or 8 bits: a quarter or half of its size in float16.",
    ),
]
KvGroupSize = Annotated[
    int,
    typer.Option(
        "--kv-group-size",
        metavar="32|64|128",
        help="Group size for --kv-bits; a smaller one is used if it does not divide the head size.",
    ),
]
UploadRepo = Annotated[str | None, typer.Option(help="Upload the result to this Hugging Face repository.")]
HubPrivate = Annotated[bool, typer.Option("--hub-private", help="Create the repository as private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Upload nothing; list the files and sizes.")]


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
        help="tuned uses the choices of `fastvlm-mlx tune`, if you ran it; stock uses MLX's own operations. "
        "Default: tuned.",
    ),
]
Wired = Annotated[
    bool,
    typer.Option(
        "--wired",
        help="On a Mac, keep memory wired during generation; several programs doing so can crash the system.",
    ),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(
        "--cache-limit",
        metavar="SIZE",
        help="Maximum size of MLX's cache of freed buffers. Default: 1/16 of the memory; 32 MiB on the CPU.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]


def named(model: str | None, *, speaks: bool = True) -> str:
    """The requested model, or the built-in one, with a note on stderr if this process `speaks`."""
    if model is None and speaks:
        output.status(
            "using the built-in model, which knows shapes, short texts and small charts. For photographs, "
            "--model 0.5b downloads FastVLM-0.5B (1.2 GB, Apple's research license)"
        )
    return hub.DEFAULT if model is None else model


def limit_cache(cache_limit: str | None) -> None:
    from ..inference.allocator import limit_cache as limit

    limit(None if cache_limit is None else int(parse_bytes(cache_limit, "--cache-limit")))


def can_wire(wired: bool) -> bool:
    """Whether to wire memory; prints a note if the device does not support it."""
    if not wired:
        return False
    from ..inference.allocator import working_set_bytes

    if working_set_bytes():
        return True
    output.status("note: --wired has no effect here; only Macs report a working set")
    return False


def image_options(
    image_size: int | None, image_mode: str | None, grid: str | None, max_tiles: int | None, reference: bool
) -> ImageOptions:
    """The picture options, validated before a model is loaded."""
    return ImageOptions(image_size, image_mode, parse_grid(grid), max_tiles, reference)
