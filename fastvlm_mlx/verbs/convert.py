"""`fastvlm-mlx convert`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CheckpointError, ConfigError
from ..terminal.output import report_conversion, upload
from .options import DryRun, HubPrivate, Revision, UploadRepo

if TYPE_CHECKING:
    from ..convert.quantize import Recipe
    from ..convert.verify import Oracle


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Model directory in any known layout, hub id, or 0.5b…")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", "--mlx-path", help="The output directory.")],
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Quantize the language model.")] = False,
    q_bits: Annotated[
        int | None, typer.Option(help="Bits per weight, 4 or 8; implies -q. Default: 4.")
    ] = None,
    q_group_size: Annotated[int, typer.Option(help="Quantization group size: 32, 64 or 128.")] = 64,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="4bit|8bit|mixed-4-8", help="A quantization recipe; implies -q."),
    ] = None,
    quantize_vision: Annotated[
        bool,
        typer.Option("--quantize-vision", help="Also quantize the matrices of vision tower and projector."),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float16|bfloat16|float32", help="Data type for floats. Default: the source's."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output directory.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare with the unfused source; exit with 1 if a limit is exceeded. Needs memory for the "
            "model in float32.",
        ),
    ] = False,
    verify_against: Annotated[
        str | None,
        typer.Option(
            metavar="transformers", help="Also compare with this library, if installed; implies --verify."
        ),
    ] = None,
    revision: Revision = None,
    upload_repo: UploadRepo = None,
    hub_private: HubPrivate = False,
    dry_run: DryRun = False,
) -> None:
    """Convert a checkpoint: fuse, translate and quantize it into a directory that loads fast.

    Reads checkpoints of Apple (fused or in training form), transformers/timm and mlx-vlm (float or
    quantized). Never changes the source. Writes the complete result or nothing.

    \b
    Examples:
      fastvlm-mlx convert apple/FastVLM-0.5B -o FastVLM-0.5B-4bit -q
      fastvlm-mlx convert ./my-checkpoint -o out --dtype float16 --recipe mixed-4-8 --verify
    """
    from ..config import Quantization
    from ..weights import hub
    from ..weights.checkpoint import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    chosen = _recipe(quantize, q_bits, recipe, quantize_vision)
    Quantization(4, q_group_size)  # fails early if the group size is invalid
    oracle = _oracle(verify_against)
    hub.check_upload(upload_repo, private=hub_private, dry=dry_run)

    from ..convert.run import UNVERIFIED
    from ..convert.run import convert as run
    from ..files.atomic import refuse
    from ..terminal import progress

    refuse(output, overwrite)
    with progress.bar(f"writing {output.name}") as advance:
        done = run(
            hub.resolve(source, revision),
            output,
            recipe=chosen,
            group_size=q_group_size,
            dtype=DTYPES[dtype] if dtype else None,
            overwrite=overwrite,
            verify=verify or oracle is not None,
            oracle=oracle,
            progress=advance,
        )
    report_conversion(done)
    if done.verification and (problem := done.verification.problem):
        raise CheckpointError(f"{output}: {problem}; the result is kept, and marked by {UNVERIFIED}")
    if upload_repo:
        upload(output, upload_repo, private=hub_private, dry=dry_run)


def _oracle(name: str | None) -> Oracle | None:
    if name is None:
        return None
    if name != "transformers":
        raise ConfigError(f"no program {name!r} to verify against; choose transformers")
    from ..bench import peer, peer_transformers

    peer.require(f"--verify-against {name}", peer_transformers.PACKAGES, peer_transformers.INSTALL)
    return peer_transformers.outputs


def _recipe(quantize: bool, bits: int | None, name: str | None, pictures: bool) -> Recipe | None:
    from ..convert.quantize import RECIPES, uniform

    if name is not None and name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; choose one of {', '.join(RECIPES)}")
    if bits not in (None, 4, 8):
        raise ConfigError(f"--q-bits is {bits}; choose 4 or 8")
    if name and bits:
        raise ConfigError(f"--recipe {name} already sets the bits; drop --q-bits")
    if not (quantize or name or bits):
        if pictures:
            raise ConfigError("--quantize-vision extends a quantization; pass -q or --recipe as well")
        return None
    recipe = RECIPES[name] if name else uniform(bits or 4)
    return recipe.with_pictures() if pictures else recipe
