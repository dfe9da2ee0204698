"""`fastvlm-mlx chat`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, DataError
from ..terminal import output
from .options import (
    AdapterPath,
    CacheLimit,
    Dtype,
    GridOption,
    ImageMode,
    ImageSize,
    Kernels,
    KvBits,
    KvGroupSize,
    MaxTiles,
    MaxTokens,
    MinP,
    Model,
    Reference,
    RepetitionPenalty,
    Revision,
    Seed,
    System,
    Temperature,
    TopK,
    TopP,
    Wired,
    can_wire,
    image_options,
    limit_cache,
    named,
)


def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Pictures or videos for the first question: paths or http(s) URLs.",
        ),
    ] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    system: System = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue a conversation that /save wrote.")
    ] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    image_size: ImageSize = None,
    image_mode: ImageMode = None,
    grid: GridOption = None,
    max_tiles: MaxTiles = None,
    reference: Reference = False,
    dtype: Dtype = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = 64,
    wired: Wired = False,
    cache_limit: CacheLimit = None,
    kernels: Kernels = None,
    revision: Revision = None,
    preview: Annotated[
        bool, typer.Option("--preview/--no-preview", help="Show pictures inline if the terminal supports it.")
    ] = True,
) -> None:
    """Talk about pictures in the terminal.

    Each picture is encoded once; later questions process only new text. Drop pictures onto the terminal,
    type their paths, or use /image; /help lists the commands. Ctrl-C stops an answer, ctrl-D exits. Piped
    input is answered line by line.

    \b
    Examples:
      fastvlm-mlx chat cat.jpg --model 0.5b
      fastvlm-mlx chat -m 1.5b --system "Answer in one sentence." --temp 0.7
      fastvlm-mlx chat -m 0.5b --resume cats.session
    """
    name = named(model)
    if "-" in (images or []):
        raise ConfigError("standard input is for the questions; give a picture's path")
    if resume is not None and not resume.is_file():
        raise DataError(f"{resume}: no such file; give a conversation file that /save wrote")

    from PIL import Image

    from ..inference.sampling import Sampling
    from ..inputs.image import open_image, open_source
    from ..inputs.video import Video, first_frame, is_video

    options = image_options(image_size, image_mode, grid, max_tiles, reference)
    pictures: list[Image.Image | Video] = []
    for source in map(open_source, images or []):
        if is_video(source):
            video = Video(source)
            first_frame(video)  # fails now if it is not a video
            pictures.append(video)
        else:
            pictures.append(open_image(source, reference=reference))
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)

    from .. import vlm as runtime
    from ..inference.session import Session
    from ..terminal.chat import PROMPT, Chat, ChatOptions, run
    from ..terminal.line_editor import reader

    limit_cache(cache_limit)
    vlm = runtime.load(
        name, dtype, revision=revision, adapter=adapter, kv_bits=kv_bits, kv_group_size=kv_group_size
    )
    session = Session(vlm) if resume is None else Session.restore(vlm, resume)
    if system is not None:
        session.system = system
    how = ChatOptions(max_tokens, sampling, options, preview, can_wire(wired))
    talking = Chat(session, how, sys.stdin is not None and sys.stdin.isatty(), resume)
    if talking.interactive:
        output.status(f"[{name}, {str(vlm.dtype).removeprefix('mlx.core.')}; /help lists the commands]")
    for picture in pictures:
        talking.show(picture)
    run(talking, reader(PROMPT))
