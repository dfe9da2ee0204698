"""`fastvlm-mlx caption`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..config import STRIDE
from ..errors import ConfigError, DataError, PromptError
from ..terminal import output
from .generate import DEFAULT_QUESTION
from .options import (
    AdapterPath,
    CacheLimit,
    Dtype,
    ImageMode,
    ImageSize,
    Kernels,
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
    limit_cache,
    named,
)


def caption(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, glob patterns, tar files, tables (CSV, TSV, JSONL, Parquet) or pictures.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The result file. Unfinished work is in OUT.run.")],
    model: Model = None,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The question about every picture.")
    ] = DEFAULT_QUESTION,
    template: Annotated[
        str | None,
        typer.Option(help="A question with fields: {name}, {folder}, or a table's columns."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="jsonl|parquet|metadata",
            help="Result format; metadata is for Hugging Face's ImageFolder. Default: by OUT's name.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures per batch; more is faster and takes more memory.")
    ] = 16,
    column: Annotated[str | None, typer.Option(help="The table column with the pictures.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Base folder for paths in tables. Default: the table's folder.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Caption only the first N pictures.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry pictures that failed before.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard existing results and start over.")
    ] = False,
    adapter: AdapterPath = None,
    system: System = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    image_size: ImageSize = None,
    image_mode: ImageMode = None,
    reference: Reference = False,
    dtype: Dtype = None,
    wired: Wired = False,
    cache_limit: CacheLimit = None,
    kernels: Kernels = None,
    revision: Revision = None,
) -> None:
    """Caption many pictures, each exactly once.

    Every caption is written to the folder OUT.run at once. After an interruption, the same command resumes;
    it also captions pictures added since. When all are done, OUT has the captions in the order of SOURCE.
    OUT.run/failed.jsonl lists unreadable pictures with the reason.

    Several processes can share the work: run the same command by hand or with mlx.launch, on machines that
    share the folder. Each takes unclaimed pictures, including those of processes that died.

    \b
    Examples:
      fastvlm-mlx caption photos --out captions.jsonl -m 0.5b
      fastvlm-mlx caption 'shards/*.tar' -o captions.parquet -m 1.5b --prompt "One sentence." --batch 32
      fastvlm-mlx caption shop.csv -o shop.jsonl -m 0.5b --template "Describe this {category}, {title}."
      fastvlm-mlx caption photos -o photos/metadata.jsonl -m 0.5b
      mlx.launch --hostfile hosts.json -- fastvlm-mlx caption /shared/photos -o /shared/captions.jsonl -m 0.5b
    """
    from ..caption import ledger as ledgers
    from ..caption import results, wording
    from ..caption.sources import find
    from ..caption.tables import Reading
    from ..files.atomic import require_writable
    from ..inference.sampling import Sampling
    from ..inputs.image import check_options
    from ..inputs.prompt import render

    if template is not None and prompt != DEFAULT_QUESTION:
        raise ConfigError("--prompt and --template exclude each other; give one of them")
    if not (prompt if template is None else template).strip():
        raise PromptError(f'the question is empty; ask something, for example --prompt "{DEFAULT_QUESTION}"')
    fields = frozenset[str]() if template is None else wording.names(template)
    name = named(model)
    Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    check_options(STRIDE if image_size is None else image_size, "pad" if image_mode is None else image_mode)
    form = results.format_of(out, form)
    require_writable(out)
    ledgers.refuse(out, overwrite)
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures; check --images")
    found = find(sources, Reading(images, column, fields), limit)
    if str(out.absolute()) in found.files:
        raise DataError(f"{out}: --out is also a source; choose another --out")
    wording.require(fields, found.items)
    results.check(form, out, found.items)
    if template is None:
        render(prompt, 1, system)  # fails before a model is loaded if either is invalid
    if found.left_out:
        output.status(f"note: {found.left_out} files skipped; their names do not end like a picture's")

    from .. import vlm as runtime
    from ..caption import crew as crews
    from ..caption.run import Asking, Work
    from ..inference import allocator
    from ..terminal import progress
    from ..weights import checkpoint

    crew = crews.met(ledgers.folder_of(out))
    limit_cache(cache_limit)
    vlm = runtime.load(name, dtype, revision=revision, adapter=adapter)
    settings = ledgers.CaptionSettings(
        weights=checkpoint.fingerprint(vlm.model),
        template=template is not None,
        dtype=str(vlm.dtype).rpartition(".")[2],
        prompt=prompt if template is None else template,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        image_size=image_size or vlm.config.image.size,
        image_mode=image_mode or vlm.config.image.mode,
        reference=reference,
    )
    asking = Asking(batch, fields, retry_failed)
    with (
        ledgers.opened(out, settings, crew.launch, overwrite) as ledger,
        progress.bar("captioning", "pictures") as advance,
    ):
        numbers = crew.order(ledger.parts)
        ours = set(numbers)
        items = [item for item in found.items if ledger.part_of(item) in ours]
        work = Work(vlm, settings, asking, ledger, advance, output.status)
        began = time.perf_counter()
        with allocator.wired(vlm, can_wire(wired)):
            work.finish(items, numbers)
        rate = work.made / (time.perf_counter() - began)
        tally = results.settle(form, out, items, ledger)
    who = f"rank {crew.rank} of {crew.size}: " if crew.size > 1 else ""
    output.status(f"{who}{out}: {tally.captions:,} captions; {work.made:,} new, {rate:.1f} pictures/s")
    if tally.failed:
        output.status(f"note: {tally.failed:,} pictures failed; {tally.why} lists the reasons")
    if not crew.one_folder:
        output.status(
            f"note: {who}these machines share no folder, so {out} has one share; for all in one, copy the "
            f"part files of every {ledger.folder.name} into one of them and run the command there, alone"
        )
