"""A stand-in of the Hugging Face hub: the part of its HTTP API by which files of a repository are downloaded."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

_TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@dataclass
class Hub:
    """A hub on this machine. Repositories, and what was asked for.

    Args:
        repositories: name to revision to commit.
        commits: commit to files.
        answers: name of a repository to a status, and the error code that the hub gives with it.
    """

    repositories: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def goes_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on nobody answers, and huggingface_hub does not wait before it tries again."""
        from huggingface_hub import constants

        nowhere = "http://127.0.0.1:9"  # the port of the discard service, which nobody has
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + _TEMPLATE)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def add(self, name: str, folder: Path, *revisions: str) -> str:
        """A commit of the files in a folder, at some revisions; returns the commit."""
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        digest = hashlib.sha1(b"".join(k.encode() + v for k, v in sorted(files.items())))
        commit = digest.hexdigest()
        self.commits[commit] = files
        for revision in (commit, *revisions):
            self.repositories.setdefault(name, {})[revision] = commit
        return commit


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            pass

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                parts = [*parts[2:4], "api", *parts[5:6]]
            name = "/".join(parts[:2])
            if name in hub.answers:
                status, code = hub.answers[name]
                return self._answer(status, **({"X_Error_Code": code} if code else {}))
            if name not in hub.repositories:
                return self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            revision = parts[3] if len(parts) > 3 else "main"
            commit = hub.repositories[name].get(revision)
            if commit is None:
                return self._answer(404, X_Error_Code="RevisionNotFound")
            files = hub.commits[commit]
            if parts[2] == "api":
                siblings = [{"rfilename": file} for file in files]
                body = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
                return self._answer(200, body, Content_Type="application/json")
            file = "/".join(parts[4:])
            if file not in files:
                return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            return self._answer(200, files[file], ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")

    return Handler


def serve_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, that huggingface_hub talks to in this process, with a cache of its own."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + _TEMPLATE
    )  # of HF_ENDPOINT, read on import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield made
    server.shutdown()
    server.server_close()
    thread.join()
