from pathlib import Path

import pytest

from fastvlm_mlx import HubError, hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Hugging Face cache that is empty, and no network."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_exists_is_a_path_even_when_it_looks_like_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7b").mkdir()
    assert hub.resolve("7b") == Path("7b")


@pytest.mark.parametrize("name", ["./nothing/here", "a b/c", "12b", "owner/name/more", Path("owner/name")])
def test_what_is_neither_path_nor_id_is_refused(name: str | Path) -> None:
    with pytest.raises(HubError, match="no such directory"):
        hub.resolve(name)


@pytest.mark.parametrize(
    ("name", "repo"), [("0.5b", "apple/FastVLM-0.5B"), ("7B", "apple/FastVLM-7B"), ("o/n", "o/n")]
)
def test_offline_says_what_to_do(offline: Path, name: str, repo: str) -> None:
    with pytest.raises(HubError, match=f"{repo}: not in the local cache.*go online once"):
        hub.resolve(name)


def test_the_cache_serves_offline_and_by_revision(offline: Path) -> None:
    snapshot = offline / "models--o--n" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    refs = offline / "models--o--n" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    assert hub.resolve("o/n") == snapshot
    assert hub.resolve("o/n", "a" * 40) == snapshot
    with pytest.raises(HubError, match="o/n@other"):
        hub.resolve("o/n", "other")


def test_an_upload_without_a_token_is_refused_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.utils._auth._get_token_from_google_colab", lambda: None)
    with pytest.raises(HubError, match="needs a token"):
        hub.require_token("me/model")
