import json
from pathlib import Path

import pytest
from command import MODEL, Run

from fastvlm_mlx import HubError
from fastvlm_mlx.weights import hub


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


def test_no_folder_takes_the_place_of_a_model_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert hub.resolve("tiny") == hub.BUILT_IN["tiny"]
    for folder in ("./tiny", Path("tiny")):
        assert hub.resolve(folder) == Path("tiny")


ABSENT = (
    "./nothing/here",
    "./gone",
    "../gone",
    "a b/c",
    "12b",
    "owner/name/more",
    "a/b--c",
    "a-/b",
    Path("a/b"),
)


@pytest.mark.parametrize("name", ABSENT)
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


def test_models_lists_what_is_known_and_what_is_here(
    offline: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(offline), raising=False)
    assert run("models").out.count("not downloaded") == len(hub.ALIASES)
    for repo in ("apple--FastVLM-0.5B", "me--my-FastVLM", "me--a-llama"):
        folder = offline / f"models--{repo}"
        (folder / "blobs").mkdir(parents=True)
        (folder / "blobs" / "b").write_bytes(b"0" * 2_000_000)
        snapshot = folder / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(folder / "blobs" / "b")
    done = run("models")
    inside, lines = done.out.splitlines()[: len(hub.BUILT_IN)], done.out.splitlines()[len(hub.BUILT_IN) :]
    assert (done.code, len(lines)) == (0, 4)
    assert [line.split()[0] for line in inside] == list(hub.BUILT_IN)
    assert all("in the package" in line for line in inside)
    assert lines[0].split()[:4] == ["0.5b", "apple/FastVLM-0.5B", "2.0", "MB"]
    assert "not downloaded" in lines[1]
    assert lines[3].split()[0] == "me/my-FastVLM"
    rows = [json.loads(line) for line in run("models", "--json").out.splitlines()]
    assert [row["bytes"] for row in rows if row["repo"]] == [2_000_000, 0, 0, 2_000_000]
    assert [row["bytes"] > 1_000_000 for row in rows if not row["repo"]] == [True] * len(hub.BUILT_IN)


def test_a_dry_run_lists_files_and_sizes_and_asks_for_no_token(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("export", MODEL, "-o", out, "--upload-repo", "me/mine", "--hub-private", "--dry-run")
    assert done.code == 0
    for path in out.iterdir():
        assert f"MB  {path.name}" in done.out
    assert "would go to me/mine (private)" in done.err


def test_an_upload_sends_the_whole_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, object]] = []

    class Api:
        def create_repo(self, repo: str, **options: object) -> None:
            asked.append({"repo": repo, **options})

        def upload_folder(self, **options: object) -> str:
            asked.append(options)
            if len(asked) == 2:
                raise OSError("the line went dead")
            return "https://huggingface.co/me/mine"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    out = tmp_path / "out"
    command = ("export", MODEL, "-o", out, "--overwrite", "--upload-repo", "me/mine", "--hub-private")
    failed = run(*command)
    assert failed.code == 1
    assert f"hf upload me/mine {out}` goes on" in failed.err
    done = run(*command)
    assert done.out.endswith("https://huggingface.co/me/mine\n")
    assert asked[2:] == [
        {"repo": "me/mine", "private": True, "exist_ok": True},
        {"repo_id": "me/mine", "folder_path": out},
    ]
