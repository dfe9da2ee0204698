"""`fastvlm-mlx generate`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, PromptError
from ..inputs.tiling import FRAME_CHOICES, MAX_FRAMES
from ..terminal import output, progress
from ..weights import hub
from . import machines
from .options import (
    AdapterPath,
    Dtype,
    Fps,
    Frames,
    GridOption,
    ImageMode,
    ImageSize,
    Kernels,
    KvBits,
    KvGroupSize,
    MaxFrames,
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
    named,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..inputs.prompt import Clip, Prompt

BACKENDS = ("mlx", "coreml")
DEFAULT_QUESTION = "Describe the image."
DEFAULT_VIDEO_QUESTION = "Describe the video."


def generate(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Pictures and videos: paths, - for standard input, or http(s) URLs.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="The question. <image> marks where a picture goes; by default at the start.",
        ),
    ] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="Another picture; repeatable.")] = None,
    model: Model = None,
    adapter: AdapterPath = None,
    system: System = None,
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
    fps: Fps = None,
    max_frames: MaxFrames = None,
    frames: Frames = None,
    reference: Reference = False,
    dtype: Dtype = None,
    kernels: Kernels = None,
    draft_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Speculative decoding with a smaller draft model, such as 0.5b for 7b; same answer.",
        ),
    ] = None,
    repetitions: Annotated[
        bool,
        typer.Option(
            "--repetitions", help="Speculative decoding from earlier text; faster for repetitive answers."
        ),
    ] = False,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Shard the language model across the machines of `mlx.launch`, if it is too large for one.",
        ),
    ] = False,
    vision_backend: Annotated[
        str,
        typer.Option(
            metavar="mlx|coreml",
            help="What runs the vision tower; coreml (macOS) can use the Neural Engine.",
        ),
    ] = "mlx",
    vision_package: Annotated[
        Path | None,
        typer.Option(
            help="Core ML package from `export --target coreml`. Default: the one in the model's directory."
        ),
    ] = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = 64,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Encode pictures one at a time and free the vision tower before loading the language model.",
        ),
    ] = False,
    wired: Wired = False,
    revision: Revision = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the pictures on stderr as color blocks.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print timings and memory to stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a question about pictures or videos.

    A video becomes a sequence of frames, each after its time, such as [0:04].

    Without --model, the small built-in model answers; it knows shapes, short texts and small charts.

    \b
    Examples:
      fastvlm-mlx generate examples/pictures/shapes.png -p "What lies below the cross?"
      fastvlm-mlx generate cat.jpg --model 0.5b
      fastvlm-mlx generate page.png -m 1.5b -p "Read the text." --stats
      fastvlm-mlx generate plan.png -m 0.5b --image-mode tiles --grid 2x2
      fastvlm-mlx generate clip.mp4 -m 0.5b --max-frames 16 --image-size 512
      fastvlm-mlx generate cat.jpg -m 7b --draft-model 0.5b --stats
      fastvlm-mlx generate a.jpg b.jpg -m 7b -p "First <image>, then <image>: what changed?"
      mlx.launch --hostfile hosts.json -- fastvlm-mlx generate cat.jpg -m 7b --shard
    """
    group = machines.joined() if shard else None
    speaks = group is None or group.rank() == 0
    clips: dict[int, Clip] = {}
    with machines.agreed(group):
        sources = [*(images or []), *(image or [])]
        if prompt is None and not sources:
            raise ConfigError("nothing to do: give a picture, or a question with --prompt")
        if prompt is not None and not prompt.strip():
            raise PromptError(f'--prompt is empty; ask something, for example -p "{DEFAULT_QUESTION}"')
        name = named(model, speaks=speaks)
        if vision_backend not in BACKENDS:
            raise ConfigError(f"no vision backend {vision_backend!r}; choose one of {', '.join(BACKENDS)}")
        if temperature and (draft_model or repetitions):
            raise ConfigError(
                "speculative decoding needs temperature 0; drop --temperature, or drop --draft-model "
                "and --repetitions"
            )
        if shard and draft_model:
            raise ConfigError(
                "--shard does not support --draft-model; drop one of them, or use --repetitions"
            )
        if low_memory and (shard or draft_model):
            raise ConfigError(
                "--low-memory loads one part of one model at a time; drop --shard and --draft-model"
            )
        if vision_package is not None and vision_backend != "coreml":
            raise ConfigError("--vision-package needs Core ML; pass --vision-backend coreml as well")
        if sources.count("-") > 1:
            raise ConfigError("standard input (-) holds one picture; give paths for the others")

        from ..inputs.image import open_image, open_source
        from ..inputs.video import Video, first_frame, is_video
        from ..terminal.preview import blocks

        options = image_options(image_size, image_mode, grid, max_tiles, reference)
        videos: dict[int, Video] = {}
        pictures: list[Image] = []
        if speaks:
            fetched = [open_source(source) for source in sources]
            most = MAX_FRAMES if max_frames is None else max_frames
            way = FRAME_CHOICES[0] if frames is None else frames
            videos = {n: Video(one, fps, most, way) for n, one in enumerate(fetched) if is_video(one)}
            if not videos and (fps, max_frames, frames) != (None, None, None):
                raise ConfigError(
                    "--fps, --max-frames and --frames apply to videos; give a video, or drop them"
                )
            pictures = [
                first_frame(videos[n]) if n in videos else open_image(one, reference=reference)
                for n, one in enumerate(fetched)
            ]
        for picture in pictures if show else ():
            output.status(blocks(picture))

        from .. import vlm as runtime
        from ..inference import allocator
        from ..inference.generate import collect
        from ..inference.sampling import Sampling

        sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
        wired = can_wire(wired)
        package = vision_package
        if vision_backend == "coreml" and package is None:
            from ..models import coreml_tower

            coreml_tower.require()
            package = hub.resolve(name, revision)
        vlm = runtime.load(
            name,
            dtype,
            revision=revision,
            adapter=adapter,
            vision_package=package,
            group=group,
            low_memory=low_memory,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
        )
        draft = (
            None
            if draft_model is None
            else runtime.load(draft_model, dtype, kv_bits=kv_bits, kv_group_size=kv_group_size)
        )
        for n, video in videos.items():
            with progress.bars("frames") as advance:
                clips[n] = vlm.clip(video, options, progress=advance)
            if damaged := clips[n].damaged:
                output.status(f"note: {sources[n]}: skipped {damaged} damaged packet(s)")
        question: Prompt = ()
        if speaks:
            question = vlm.prompt(
                prompt or (DEFAULT_VIDEO_QUESTION if videos else DEFAULT_QUESTION),
                [clips.get(n, picture) for n, picture in enumerate(pictures)],
                system,
                options=options,
            )
    if group is not None:
        from ..inference.sharding import share_prompt

        question = share_prompt(question, group)
    with machines.together(group), allocator.wired(vlm, wired):
        events = vlm.stream(
            question, max_tokens=max_tokens, draft=draft, repetitions=repetitions, sampling=sampling
        )
        answer = collect(output.print_stream(events) if speaks and not as_json else events)
    if speaks and as_json:
        told = output.as_dict(answer, name)
        if clips:
            told["frames_s"] = [[round(time_s, 3) for time_s in clip.times_s] for clip in clips.values()]
        output.print_line(json.dumps(told, ensure_ascii=False))
    if speaks and stats:
        output.status(output.describe_stats(answer, sum(len(clip.frames) for clip in clips.values())))
