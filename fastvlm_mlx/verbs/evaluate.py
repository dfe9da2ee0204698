"""`fastvlm-mlx eval`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import output
from .options import (
    AdapterPath,
    CacheLimit,
    Dtype,
    GridOption,
    ImageMode,
    ImageSize,
    Kernels,
    MaxTiles,
    Revision,
    Wired,
    can_wire,
    image_options,
    limit_cache,
)


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model directory, hub id, or 0.5b, 1.5b, 7b.")
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="JSONL file of questions with answers; see below.")
    ],
    images: Annotated[
        Path | None, typer.Option(help="Base folder for picture paths. Default: DATA's folder.")
    ] = None,
    adapter: AdapterPath = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="auto|exact|vqa|anls|relaxed|yesno",
            help="Metric; auto is vqa if every question has ten answers, else exact.",
        ),
    ] = "auto",
    prompt_suffix: Annotated[
        str, typer.Option(help='Text to append to each question, such as "Answer with a single word."')
    ] = "",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=0, help="Maximum number of tokens per answer.")
    ] = 64,
    batch: Annotated[
        int, typer.Option(min=1, help="Questions per batch; more is faster and takes more memory.")
    ] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first N questions.")] = None,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="Swap pictures between rows, to test whether the model looks at them."),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(help="JSONL file for every answer; an interrupted run resumes from it."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    image_size: ImageSize = None,
    image_mode: ImageMode = None,
    grid: GridOption = None,
    max_tiles: MaxTiles = None,
    dtype: Dtype = None,
    wired: Wired = False,
    cache_limit: CacheLimit = None,
    kernels: Kernels = None,
    revision: Revision = None,
) -> None:
    """Score a model on questions with known answers.

    A row of DATA has a question, one or more answers, and pictures, in the fields of TextVQA, DocVQA,
    ChartQA, POPE, GQA or VQAv2; or it has a conversation, as in LLaVA's data. If rows have a "category",
    each category gets its own score.

    \b
    {"image": "a.png", "question": "What is it?", "answer": "a cat", "category": "animals"}
    {"images": ["a.png"], "messages": [{"role": "user", "content": "What is it?"}, ...]}

    \b
    Metrics: exact (ignores case, articles and surrounding punctuation), vqa (agreement with ten people),
    anls (DocVQA), relaxed (ChartQA: numbers within 5%), yesno (POPE).

    \b
    Examples:
      fastvlm-mlx eval 0.5b textvqa/val.jsonl --prompt-suffix "Answer with a single word or phrase."
      fastvlm-mlx eval ./tuned docvqa.jsonl --metric anls --images scans --predictions tuned.jsonl
      fastvlm-mlx eval ./tuned pope.jsonl --blind --limit 500 --json blind.json
    """
    from ..evaluate import data as datasets
    from ..evaluate import report as reports
    from ..evaluate.predictions import Predictions
    from ..evaluate.run import ask, check_metric, metric_of, settings_of
    from ..files.atomic import require_writable, write_file

    check_metric(metric)
    options = image_options(image_size, image_mode, grid, max_tiles, reference=False)
    for file in (predictions, json_file, markdown):
        if file is not None:
            require_writable(file)
    questions = datasets.read(data, images)
    if blind:
        questions = datasets.shuffle_pictures(questions)
    questions = datasets.locate_pictures(replace(questions, rows=questions.rows[:limit]))
    metric = metric_of(metric, questions)

    from .. import vlm as runtime
    from ..inference import allocator
    from ..terminal import progress

    limit_cache(cache_limit)
    vlm = runtime.load(model, dtype, revision=revision, adapter=adapter)
    settings = settings_of(
        vlm,
        model,
        questions,
        metric,
        max_tokens=max_tokens,
        prompt_suffix=prompt_suffix,
        blind=blind,
        options=options,
    )
    with Predictions(predictions, settings) as kept, progress.bar("answering", "rows") as advance:
        with allocator.wired(vlm, can_wire(wired)):
            ask(vlm, questions, settings, kept, batch=batch, progress=advance)
        report = reports.summarize(settings, questions.rows, kept.said)
    output.print_line(reports.as_text(report))
    if json_file:
        write_file(json_file, reports.as_json(report))
    if markdown:
        write_file(markdown, reports.as_markdown(report))
