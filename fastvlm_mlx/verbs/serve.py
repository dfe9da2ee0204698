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
_OF_PICTURES = 1 / 4  # of the memory for what may be asked about again


def serve(
    model: Model = None,
    adapter: AdapterPath = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY_VARIABLE, help="Answer only who sends it as a bearer token.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: the last part of --model.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answer so many side by side.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Let so many wait; turn away the next.")] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, help="Of an answer, where a client does not say.")
    ] = 512,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="For pictures and texts that may be asked about again.")
    ] = "1GB",
    remote: Annotated[
        bool,
        typer.Option("--allow-remote-images", help="Fetch pictures from public http(s) addresses."),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let this site's pages ask, such as https://example.org."),
    ] = None,
    max_request: Annotated[str, typer.Option(metavar="SIZE", help="Refuse requests beyond it.")] = "50MB",
    max_image: Annotated[str, typer.Option(metavar="SIZE", help="Refuse picture files beyond it.")] = "20MB",
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that answers get to end when the server is stopped.")
    ] = 30.0,
    dtype: Dtype = None,
    kv_bits: KvBits = None,
    kv_group_size: KvGroupSize = 64,
    cache_limit: CacheLimit = None,
    kernels: Kernels = None,
    revision: Revision = None,
) -> None:
    """Answer OpenAI's chat completions on a port, with a page for the camera.

    Pictures and the beginnings of conversations are worked out once for all who ask about them, and answers
    are made side by side. docs/serve.md says what requests may hold.

    \b
    Examples:
      fastvlm-mlx serve --model 0.5b        (then open http://127.0.0.1:8080/)
      fastvlm-mlx serve -m 0.5b --host 0.0.0.0 --api-key "$KEY"
    """
    named_model = named(model)
    if missing := [module for module in _NEEDED if importlib.util.find_spec(module) is None]:
        raise ConfigError(f"serve needs {', '.join(missing)}; run pip install 'fastvlm-mlx[serve]'")
    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or leave it out")

    from ..serve.app import Settings
    from ..serve.engine import Engine
    from ..serve.listen import LOCAL_NAMES, bound, is_local, serve
    from ..serve.pictures import Limits
    from ..terminal.units import size_bytes
    from ..vlm import VLM, load

    kept = size_bytes(memory, "--memory")
    settings = Settings(
        name=name or Path(named_model).name or named_model,
        queue=queue,
        max_tokens=max_tokens,
        api_key=api_key,
        origins=tuple(cors or ()),
        hosts=LOCAL_NAMES if is_local(host) else (),
        body_bytes=int(size_bytes(max_request, "--max-request")),
        limits=Limits(remote=remote, most_bytes=int(size_bytes(max_image, "--max-image"))),
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
        output.say(f"[{settings.name}, {computed}; ctrl-C stops]\npage  {address}/\nAPI   {address}/v1")
        if not is_local(host) and api_key is None:
            output.say(f"[whoever can reach this machine may ask; --api-key or {KEY_VARIABLE} sets a key]")

    serve(listening, settings, engine, ready, drain)
