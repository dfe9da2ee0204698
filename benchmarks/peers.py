"""Import a peer's module without running the `__init__` of the packages around it.

mlx-lm and mlx-vlm import whole applications there (transformers, servers, audio); the modules themselves
need none of it and are used unchanged. Installed by `pip install --no-deps -r requirements-peers.txt`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def load(module: str) -> ModuleType:
    parts = module.split(".")
    for name in (".".join(parts[:end]) for end in range(1, len(parts))):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            assert spec is not None, f"{name} is not installed"
            sys.modules[name] = bare = ModuleType(name)
            bare.__spec__, bare.__path__ = spec, list(spec.submodule_search_locations or ())
    return importlib.import_module(module)
