"""Networks of the Hugging Face hub, by its HTTP API on this machine: downloaded once, and every refusal in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octvideo.errors import UserError
from octvideo.models.hub import download_repository, name_of_cached
from octvideo.models.shared_files import SHARED_FILES
from tests.fake_hub import Hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a repository; they are no network, which this part does not look at."""
    made = tmp_path / "files"
    made.mkdir()
    for name in (*SHARED_FILES, "README.md", "evil.py"):
        (made / name).write_text(f"{name}, first")
    return made


def test_the_two_files_are_downloaded_once(hub: Hub, folder: Path) -> None:
    commit = hub.add("me/net", folder, "main")
    found = download_repository("hf:me/net", SHARED_FILES)
    assert {file.name for file in found.iterdir()} == set(SHARED_FILES)
    assert (found / "config.json").read_text() == "config.json, first"
    assert name_of_cached(found) == f"hf:me/net@{commit[:12]}" and name_of_cached("runs/a") == "runs/a"
    hub.asked.clear()
    assert download_repository("hf:me/net", SHARED_FILES) == found
    assert [word for word in hub.asked if word.startswith("GET /me")] == []


def test_without_a_network_the_cache_serves(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("me/net", folder, "main", "v1")
    found = download_repository("hf:me/net@v1", SHARED_FILES)
    hub.goes_down(monkeypatch)
    assert download_repository("hf:me/net@v1", SHARED_FILES) == found
    assert download_repository("hf:me/net", SHARED_FILES, revision=commit) == found
    with pytest.raises(UserError, match=r"hf:me/net: config.json is not in the cache, and the hub can't be reached"):
        download_repository("hf:me/net", SHARED_FILES)


def test_a_revision_is_what_it_was(hub: Hub, folder: Path) -> None:
    first = hub.add("me/net", folder, "main", "v1")
    (folder / "config.json").write_text("config.json, second")
    hub.add("me/net", folder, "main")
    for name, revision, text in (
        ("hf:me/net", None, "second"),
        ("hf:me/net@main", None, "second"),
        ("hf:me/net@v1", None, "first"),
        ("hf:me/net", "v1", "first"),
        ("hf:me/net@v1", "v1", "first"),
        (f"hf:me/net@{first}", None, "first"),
    ):
        found = download_repository(name, SHARED_FILES, revision=revision)
        assert (found / "config.json").read_text() == f"config.json, {text}"
    with pytest.raises(UserError, match=r"hf:me/net@v1 with revision v2: both name a revision"):
        download_repository("hf:me/net@v1", SHARED_FILES, revision="v2")
    with pytest.raises(UserError, match=r"hf:me/net has no revision v3: give a branch, a tag or a whole commit"):
        download_repository("hf:me/net@v3", SHARED_FILES)


def test_both_files_are_of_one_commit(hub: Hub, folder: Path) -> None:
    """A branch that moves between them does not mix two networks."""
    first = hub.add("me/net", folder, "main")

    class Moving(dict):  # type: ignore[type-arg]
        def get(self, revision: str, default: str | None = None) -> str | None:
            found = super().get(revision, default)
            if revision == "main" and len([word for word in hub.asked if word.startswith("GET /me")]) == 1:
                (folder / "model.safetensors").write_text("second")
                hub.add("me/net", folder, "main")
            return found

    hub.repositories["me/net"] = Moving(hub.repositories["me/net"])
    found = download_repository("hf:me/net", SHARED_FILES)
    assert found.name == first and (found / "model.safetensors").read_text() == "model.safetensors, first"


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("me/nothing", None, r"no repository hf:me/nothing \(status 401\), or a private one: check the name"),
        ("me/net", (404, "RepoNotFound"), r"no repository hf:me/net \(status 404\)"),
        ("me/net", (401, ""), r"\(status 401\), or a private one: .* log in \(hf auth login\), or set HF_TOKEN"),
        ("me/net", (403, "GatedRepo"), r"is for those who were given access \(status 403\)"),
        ("me/net", (403, ""), r"config.json is not in the cache, and the hub answers with status 403"),
        ("me/net", (503, ""), r"and the hub answers with status 503: try again later"),
    ],
)
def test_refusals(
    hub: Hub, folder: Path, name: str, answer: tuple[int, str] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/net", folder, "main")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if answer is not None:
        hub.answers[name] = answer
    with pytest.raises(UserError, match=said) as caught:
        download_repository(f"hf:{name}", SHARED_FILES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf:", "hf:net", "hf:a/b/c", "hf:../x", "hf:a b/c", "hf:-/..", "hf:/etc"])
def test_names_that_are_none(name: str, hub: Hub) -> None:
    with pytest.raises(UserError, match=r"expected hf:USER/NAME or hf:USER/NAME@REVISION"):
        download_repository(name, SHARED_FILES)
    assert [word for word in hub.asked if "harness" not in word] == []


def test_a_repository_of_something_else(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    hub.add("me/net", folder, "main")
    with pytest.raises(UserError, match=r"hf:me/net has no model.safetensors, so it is no network of octvideo"):
        download_repository("hf:me/net", SHARED_FILES)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"hf:me/net needs huggingface_hub: pip install 'octvideo\[hub\]'"):
        download_repository("hf:me/net", SHARED_FILES)
