"""A model's name to a local directory: paths, short names, hub ids; the Hugging Face cache; offline."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError, HubError

ALIASES = {
    "0.5b": "apple/FastVLM-0.5B",
    "1.5b": "apple/FastVLM-1.5B",
    "7b": "apple/FastVLM-7B",
}
_ASSETS = Path(__file__).parents[1] / "assets"
BUILT_IN = {"tiny": _ASSETS / "tiny", "tiny-4bit": _ASSETS / "tiny-4bit"}
DEFAULT = "tiny"
_PART = r"\w(?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*", "README.md"]


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """A directory with the model's files, downloaded to the Hugging Face cache if necessary.

    Looks for a built-in model, then a path on disk, then a short name, then a hub id owner/name. Built-in
    names come first, so that a folder `tiny` cannot replace the default; pass `./tiny` or a Path for the
    folder."""
    if isinstance(name, str) and name.lower() in BUILT_IN:
        return BUILT_IN[name.lower()]
    path = Path(name).expanduser()
    if path.exists():
        return path
    repo = ALIASES.get(str(name).lower(), str(name))
    if not _HUB_ID.fullmatch(repo) or isinstance(name, Path):
        raise HubError(
            f"{name}: no such directory, and not a hub id (owner/name) or a short name "
            f"({', '.join([*BUILT_IN, *ALIASES])}); check the spelling"
        )
    return _download(repo, revision)


def _download(repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HUB_OFFLINE
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise HubError(f"{repo}: downloading needs huggingface_hub ({error}); pip install it") from None
    at = f"{repo}@{revision}" if revision else repo
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        why = "needs you to accept its terms on huggingface.co, then `hf auth login`"
    except RepositoryNotFoundError:
        why = "no such repository on the hub, or a private one; check the name, or `hf auth login`"
    except RevisionNotFoundError:
        why = "the repository has no such revision; leave --revision out for the newest"
    except HfHubHTTPError as error:
        why = f"the hub refused ({error.response.status_code}); try again later, or give a local directory"
    except (LocalEntryNotFoundError, OSError):
        offline = " (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else ""
        why = (
            f"not in the local cache, and the hub cannot be reached{offline}; "
            "go online once, or give the path of a downloaded directory"
        )
    raise HubError(f"{at}: {why}")


def cached() -> dict[str, tuple[Path, int]]:
    """Each repository in the Hugging Face cache: its directory and its bytes on disk."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {one.repo_id: (Path(one.repo_path), one.size_on_disk) for one in repos if one.repo_type == "model"}


def check_upload(repo: str | None, *, private: bool, dry: bool = False) -> None:
    """Raise before any work if the upload would fail."""
    if repo is None:
        if private or dry:
            option = "--hub-private" if private else "--dry-run"
            raise ConfigError(f"{option} speaks of an upload; pass --upload-repo as well")
    elif not _HUB_ID.fullmatch(repo):
        raise ConfigError(f"--upload-repo {repo}: not of the form owner/name")
    elif not dry:
        require_token(repo)


def listing(directory: Path) -> list[tuple[str, int]]:
    """The files that an upload would send, with their sizes in bytes."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(path.relative_to(directory).as_posix(), path.stat().st_size) for path in files]


def require_token(repo: str) -> None:
    """Raise if no token may write to the repository."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise HubError(f"{repo}: uploading needs a token; `hf auth login`, or set HF_TOKEN, then try again")


def upload(directory: Path, repo: str, *, private: bool) -> str:
    """Create the repository if necessary, upload the directory and return the address.

    A repeated upload skips the files that an interrupted one already sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=directory))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise HubError(
            f"{repo}: upload failed ({first[:160]}); the result is whole in {directory}, and "
            f"`hf upload {repo} {directory}` goes on with it"
        ) from None
