"""`fastvlm-mlx serve`"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..terminal import output
from .options import (
    AdapterPath,
    CacheLimit,
    Dtype,
    Kernels,
    KvBits,
    KvGroupSize,
    Model,
    Revision,
    limit_cache,
    named,
)

KEY_VARIABLE = "FASTVLM_MLX_API_KEY"
_NEEDED = ("starlette", "uvicorn", "prometheus_client", "llguidance")
_OF_PICTURES = 1 / 4  # share of --memory for image features; prefixes get the rest


def serve(
    model: Model = None,
    adapter: AdapterPath = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="Require this bearer token from clients.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name in the API. Default: the last part of --model.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Maximum number of concurrent answers.")] = 16,
    queue: Annotated[
        int, typer.Option(min=0, help="Maximum number of waiting requests; more are refused.")
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, help="Default token limit for requests without one.")
    ] = 512,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Size of the feature and prefix caches.")
    ] = "1GB",
    remote: Annotated[
        bool,
        typer.Option("--allow-remote-images", help="Fetch pictures from public http(s) URLs."),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Allow requests from this web origin, such as https://example.org; repeatable.",
        ),
    ] = None,
    max_request: Annotated[str, typer.Option(metavar="SIZE", help="Maximum request size.")] = "50MB",
    max_image: Annotated[str, typer.Option(metavar="SIZE", help="Maximum picture file size.")] = "20MB",
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds to let answers finish when the server stops.")
    ] = 30.0,
    dtype: Dtype = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = 64,
    cache_limit: CacheLimit = None,
    kernels: Kernels = None,
    revision: Revision = None,
) -> None:
    """Serve OpenAI's chat completions API, with a web page for the camera.

    Clients share encoded pictures and prompt prefixes, and requests are batched continuously. docs/serve.md
    lists the supported request fields.

    \b
    Examples:
      fastvlm-mlx serve --model 0.5b        (then open http://127.0.0.1:8080/)
      fastvlm-mlx serve -m 0.5b --host 0.0.0.0 --api-key "$KEY"
    """
    named_model = named(model)
    if missing := [module for module in _NEEDED if importlib.util.find_spec(module) is None]:
        raise ConfigError(f"serve needs {', '.join(missing)}; run pip install 'fastvlm-mlx[serve]'")
    if api_key is not None and not api_key.strip():
        raise ConfigError("--api-key is empty; give a key, or drop the option")

    from ..serve.app import Settings
    from ..serve.engine import Engine
    from ..serve.listen import LOCAL_NAMES, bound, is_local, serve
    from ..serve.pictures import Limits
    from ..terminal.units import parse_bytes
    from ..vlm import VLM, load

    kept = parse_bytes(memory, "--memory")
    settings = Settings(
        name=name or Path(named_model).name or named_model,
        queue=queue,
        max_tokens=max_tokens,
        api_key=api_key,
        origins=tuple(cors or ()),
        hosts=LOCAL_NAMES if is_local(host) else (),
        body_bytes=int(parse_bytes(max_request, "--max-request")),
        limits=Limits(remote=remote, most_bytes=int(parse_bytes(max_image, "--max-image"))),
    )
    limit_cache(cache_limit)
    listening = bound(host, port)
    engine = Engine(
        lambda: load(
            named_model,
            dtype,
            revision=revision,
            adapter=adapter,
            kv_bits=kv_bits,
            kv_group_size=kv_group_size,
        ),
        places=batch,
        feature_bytes=int(kept * _OF_PICTURES),
        prefix_bytes=int(kept * (1 - _OF_PICTURES)),
    )

    def ready(vlm: VLM) -> None:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        computed = str(vlm.dtype).removeprefix("mlx.core.")
        output.status(f"[{settings.name}, {computed}; ctrl-C stops]\npage  {address}/\nAPI   {address}/v1")
        if not is_local(host) and api_key is None:
            output.status(f"[whoever can reach this machine may ask; --api-key or {KEY_VARIABLE} sets a key]")

    serve(listening, settings, engine, ready, drain)
