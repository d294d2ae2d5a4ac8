"""Weights from a server of our own on this machine, and from torchvision's and timm's zoos as those answer."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision.models as zoo

from octvideo.errors import UserError
from octvideo.models.weight_sources import cache_path, download
from octvideo.models.weights import PixelScale, read_weights

CONTENT = bytes(range(256)) * 400
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server(ThreadingHTTPServer):
    """Serves `files`; says a file's whole length but sends only `lengths` bytes, request by request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.lengths: list[int] = []
        self.versions: list[str] = []  # ETag of each request, then "1"
        self.asked: list[str | None] = []  # the Range of each request
        self.knows_ranges = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        first, version = 0, server.versions.pop(0) if server.versions else '"1"'
        if asked and server.knows_ranges and self.headers["If-Range"] == version:
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("ETag", version)
        self.end_headers()
        sent = server.lengths.pop(0) if server.lengths else len(content)
        self.wfile.write(content[first : first + sent])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")


# -- downloading ------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Server) -> None:
    server.files = {"/a/model.bin": CONTENT, "/b/model.bin": b"other"}
    for _ in range(2):
        assert download(server.url("/a/model.bin")).read_bytes() == CONTENT
    assert server.asked == [None]
    assert download(server.url("/b/model.bin")).read_bytes() == b"other"  # of the same name


def test_a_broken_connection_is_taken_up_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files[f"/net-{HASH}.pth"] = CONTENT
    server.lengths = [1000, 5000]
    assert download(server.url(f"/net-{HASH}.pth")).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=6000-"]
    assert kept(tmp_path) == [f"net-{HASH}.pth"]


@pytest.mark.parametrize("why", ["changed", "knows no ranges"])
def test_what_cannot_be_taken_up_starts_again(server: Server, why: str) -> None:
    server.files["/net.pth"] = CONTENT
    server.lengths = [1000]
    server.versions = ['"1"', '"2"'] if why == "changed" else []
    server.knows_ranges = why == "changed"
    assert download(server.url("/net.pth")).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_a_connection_that_stays_broken_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/net.pth"] = CONTENT
    server.lengths = [10, 10, 10, 10]
    url = server.url("/net.pth")
    with pytest.raises(UserError) as caught:
        download(url)
    assert str(caught.value) == (
        f"{url} can't be downloaded (the connection broke after 40 of {len(CONTENT)} bytes): check the address "
        f"and the connection, or put the file at {cache_path(url)} by hand"
    )
    assert kept(tmp_path) == []
    assert download(url).read_bytes() == CONTENT  # and the next try starts afresh


def test_a_damaged_file_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.files[f"/net-{HASH}.pth"] = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=rf"is damaged: its SHA-256 is \w{{8}}\.\.\., expected {HASH} as in its name"):
        download(server.url(f"/net-{HASH}.pth"))
    assert kept(tmp_path) == []


def test_what_is_not_there_is_asked_for_once(server: Server) -> None:
    with pytest.raises(UserError, match=r"none\.pth can't be downloaded \(404 Not Found\): check the address"):
        download(server.url("/none.pth"))
    assert server.asked == [None]


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("octvideo.download.urlopen", offline)
    with pytest.raises(UserError, match=r"https://example\.org/net\.pth can't be downloaded \(no network\)"):
        read_weights("https://example.org/net.pth")
    assert kept(tmp_path) == []


def test_files_are_kept_by_host_path_and_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", "/t")
    start = Path("/t/hub/checkpoints/a.org_80")
    assert cache_path("http://a.org:80/x//../y/m.bin") == start / "x/y/m.bin"
    names = [cache_path(f"http://a.org:80/m.bin?v={v}").name for v in (1, 2)]
    assert names[0] != names[1] and all(re.fullmatch(r"[0-9a-f]{8}-m\.bin", name) for name in names)


def test_weights_at_a_url(server: Server, tmp_path: Path) -> None:
    torch.save({"model_state": {"a": torch.ones(2)}}, tmp_path / "w.pyth")
    server.files = {"/w.pyth": (tmp_path / "w.pyth").read_bytes(), "/page.pth": b"<html>"}
    weights = read_weights(server.url("/w.pyth"))
    assert list(weights.tensors) == ["a"] and weights.source == server.url("/w.pyth")
    with pytest.raises(UserError) as caught:
        read_weights(server.url("/page.pth"))
    said, place = str(caught.value), cache_path(server.url("/page.pth"))
    assert said.startswith(f"{server.url('/page.pth')} can't be read as weights: it is not a file of torch.save")
    assert said.endswith(f"What was downloaded is {place}: delete it to download it again")


# -- zoos -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("resnet50", "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"),
        ("ResNet50_Weights.IMAGENET1K_V1", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
    ],
)
def test_torchvisions_weights(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def answer(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((url, options))
        return {"conv1.weight": torch.ones(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", answer)
    weights = read_weights(f"torchvision:{name}")
    assert weights.source == f"torchvision:{name}" and list(weights.tensors) == ["conv1.weight"]
    assert weights.pixels == PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert asked[0][0] == url and asked[0][1]["check_hash"] is True and asked[0][1]["weights_only"] is True


@pytest.mark.parametrize("name", ["resnet5000", "ResNet50_Weights.V9", "Nothing_Weights.V1"])
def test_unknown_names_of_torchvision(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"no weights torchvision:{re.escape(name)}: .* for example torchvision:resnet50"
    ):
        read_weights(f"torchvision:{name}")


def test_torchvision_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    url = zoo.get_model_weights("resnet18").DEFAULT.url  # type: ignore[attr-defined]
    with pytest.raises(
        UserError, match=rf"torchvision:resnet18 can't be downloaded from {re.escape(url)} \(.*no network"
    ):
        read_weights("torchvision:resnet18")


def test_timms_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    build, asked = timm.create_model, []

    def answer(name: str, *, pretrained: bool) -> torch.nn.Module:
        asked.append((name, pretrained))
        return build(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", answer)
    with torch.device("meta"):
        weights = read_weights("timm:resnet26.bt_in1k")
    assert asked == [("resnet26.bt_in1k", True)] and "layer1.0.conv1.weight" in weights.tensors
    assert weights.pixels == PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_names_that_timm_has_not() -> None:
    pytest.importorskip("timm")
    for name in ("resnet5000", "resnet50.nobody_in1k"):
        with pytest.raises(
            UserError, match=rf"timm:{re.escape(name)} can't be had \(.*; names with weights: timm\.list"
        ):
            read_weights(f"timm:{name}")


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as caught:
        read_weights("timm:resnet50")
    assert str(caught.value) == "timm:resnet50 needs timm, which is not installed: pip install 'octvideo[image]'"
