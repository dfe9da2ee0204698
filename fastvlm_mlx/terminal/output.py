"""How results are told: answers on stdout, everything else on stderr."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import blas

if TYPE_CHECKING:
    from ..convert.run import Converted
    from ..inference.decoding import Event
    from ..inference.generate import Answer


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def status(text: str) -> None:
    sys.stderr.write(text + "\n")


def print_stream(events: Iterator[Event]) -> Iterator[Event]:
    """Show the answer as it comes."""
    from ..inference.decoding import Finished, Token

    for event in events:
        if isinstance(event, Token):
            sys.stdout.write(event.text)
            sys.stdout.flush()
        elif isinstance(event, Finished):
            print_line(event.text)
        yield event


def as_dict(answer: Answer, model: str) -> dict[str, object]:
    return {
        "text": answer.text,
        "model": model,
        "reason": answer.reason,
        "tokens": len(answer.ids),
        "image_tokens": answer.image_tokens,
        "text_tokens": answer.text_tokens,
        "read_s": round(answer.read_s, 4),
        "vision_s": round(answer.vision_s, 4),
        "prefill_s": round(answer.prefill_s, 4),
        "decode_s": round(answer.decode_s, 4),
        "tokens_per_s": round(answer.tokens_per_s, 2),
        "peak_bytes": answer.peak_bytes,
        "resident_bytes": resident_bytes(),
    }


def describe_stats(answer: Answer, frames: int = 0) -> str:
    asked = answer.image_tokens + answer.text_tokens
    known = f", {answer.cached_tokens} known before" if answer.cached_tokens else ""
    guessed = f"guessed  {answer.drafted} tokens, {answer.accepted} of them right\n" if answer.drafted else ""
    seen = f" of {frames} frames" if frames else ""
    read = f"read     {answer.read_s:8.3f} s   the language model\n" if answer.read_s else ""
    products = f"\nblas     {described}" if (described := blas.in_use()) else ""
    return (
        f"{read}vision   {answer.vision_s:8.3f} s   {answer.image_tokens} picture tokens{seen}\n"
        f"prefill  {answer.prefill_s:8.3f} s   {asked} positions ({answer.text_tokens} of text){known}\n"
        f"decode   {answer.decode_s:8.3f} s   {len(answer.ids)} tokens, {answer.tokens_per_s:.1f} tokens/s, "
        f"ended by {answer.reason}\n{guessed}"
        f"memory   {answer.peak_bytes / 2**30:8.2f} GiB at most in MLX, "
        f"{resident_bytes() / 2**30:.2f} GiB resident{products}"
    )


def resident_bytes() -> int:
    """The most memory that this process has had at once."""
    if sys.platform == "linux":  # where the other figure may be the parent's
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def upload(directory: Path, repo: str, *, private: bool, dry: bool) -> None:
    """The address of what was uploaded; of a dry run, what would be."""
    from ..weights import hub

    if not dry:
        print_line(hub.upload(directory, repo, private=private))
        return
    files = hub.listing(directory)
    for name, count in files:
        print_line(f"{count / 1e6:12,.1f} MB  {name}")
    total = sum(count for _, count in files)
    status(f"{len(files)} files, {total / 1e6:,.1f} MB would go to {repo}{' (private)' if private else ''}")


def report_conversion(done: Converted) -> None:
    status(
        f"{done.destination}: {done.bytes / 1e6:,.1f} MB from the {done.layout} layout, language model "
        f"{done.bits_per_weight:.2f} bits per weight"
    )
    for remark in done.remarks:
        status(f"note: {remark}")
    if done.verification:
        for what, value in done.verification.rows():
            status(f"  {what:<48}  {value}")
    if done.licence:
        status(done.licence)
