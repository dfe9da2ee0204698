"""`--help` in sections: which option is listed under which heading."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

OTHERS = "Other options"
SECTIONS = {  # parameter names of all verbs; unlisted ones go under OTHERS
    "Input": "prompt template image images column limit retry_failed system image_size image_mode grid "
    "max_tiles fps max_frames frames reference prompt_suffix blind metric resume",
    "Model": "model random adapter dtype revision name",
    "Sampling": "max_tokens temperature top_p top_k min_p seed repetition_penalty",
    "Speed and memory": "batch kernels draft_model repetitions shard vision_backend vision_package kv_bits "
    "kv_group_size low_memory wired cache_limit memory minutes processes workers",
    "Measurement": "sizes runs tokens cold paper roofline against plan ttft",
    "Quantization": "quantize q_bits q_group_size recipe quantize_vision bits weights",
    "Output": "out output form overwrite predictions json_file as_json markdown plot show preview stats "
    "upload_repo hub_private dry_run",
}
_SECTION_OF = {name: title for title, names in SECTIONS.items() for name in names.split()}


class SectionedCommand(TyperCommand):
    """A command whose help lists its options by section."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", *SECTIONS, OTHERS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                records[_title(parameter)].append(record)
        for title, listed in records.items():
            if listed:
                with formatter.section(title):
                    formatter.write_dl(listed)


def _title(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return _SECTION_OF.get(parameter.name, OTHERS)
