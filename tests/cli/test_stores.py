"""Addresses in commands: videos over HTTP and in a bucket, results into a bucket; resumed, joined, and said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import octvideo.stores.copies as copies
from octvideo.cli import main
from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings
from tests.file_server import FileServer, file_server, s3_bucket

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=1, num_crops=1, short_side_px=32, crop_px=32)
NAMES = ["down", "left", "right"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25, width=8)
    path = tmp_path_factory.mktemp("weights") / "last.ckpt"
    block = make_block(network, NAMES, views=VIEWS, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "octvideo": block}, path)
    return path


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    return ["--ckpt", str(checkpoint), "--device", "cpu", "--engine", "eager", "--precision", "f32"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Not by OCTVIDEO_CACHE: the kernel would be compiled anew.
    monkeypatch.setattr(copies, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("octvideo.stores.requests.WAITS_SEC", (0.0,))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def server(tiny_data: Path) -> Iterator[FileServer]:
    with file_server() as server:
        for number, video in enumerate(sorted((tiny_data / "test").rglob("*.mp4"))):
            server.contents[f"v{number}.mp4"] = video.read_bytes()
        yield server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tiny_data: Path) -> Iterator[Any]:
    """With all videos and lists below bucket/tiny/."""
    with s3_bucket(monkeypatch) as bucket:
        for file in tiny_data.rglob("*.*"):
            bucket.pipe_file(f"bucket/tiny/{file.relative_to(tiny_data)}", file.read_bytes())
        yield bucket


def results(text: str | bytes) -> dict[str, Any]:
    lines = [json.loads(line) for line in (text.decode() if isinstance(text, bytes) else text).splitlines()[1:]]
    return {line["path"]: line.get("top") or line["reason"] for line in lines}


def test_infer_reads_addresses(
    server: FileServer,
    bucket: Any,
    tiny_data: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.contents["rotten.mp4"] = b"no video"
    server.faults["v3.mp4"] = ["503"] * 2
    (tmp_path / "names.txt").write_text(
        "\n".join([*(server.url(f"v{n}.mp4?token=secret", "me:pw@") for n in (0, 1, 3)), server.url("rotten.mp4")])
    )
    server.contents["more.txt"] = "\n".join([server.url("gone.mp4"), "nosuch://x.mp4", "s3://bucket/no.mp4"]).encode()
    named = ["@names.txt", f"@{server.url('more.txt')}", "s3://bucket/tiny/test/", str(tiny_data / "test")]
    assert main(["infer", *named, *words, "-o", "out.jsonl"]) == 1
    told, found = capsys.readouterr(), results((tmp_path / "out.jsonl").read_text())
    assert "secret" not in (tmp_path / "out.jsonl").read_text() and "pw" not in told.out + told.err
    local = {path: top for path, top in found.items() if path.startswith(str(tiny_data))}
    assert len(local) == 5 and len(found) == 4 + 3 + 5 + 5
    for path, top in local.items():
        assert found[path.replace(str(tiny_data), "s3://bucket/tiny")] == top
    assert found[server.url("v0.mp4?token=***", "***@")] == next(iter(local.values()))
    assert found[server.url("v3.mp4?token=***", "***@")] == "the server answers 503 Service Unavailable"
    assert found[server.url("gone.mp4")] == found["s3://bucket/no.mp4"] == "no such file"
    assert found["nosuch://x.mp4"].startswith("got nosuch://, expected https://, s3:// or gs://")
    # What the network's trouble hid is tried again, also under an address that was signed anew; all else is known.
    (tmp_path / "names.txt").write_text((tmp_path / "names.txt").read_text().replace("secret", "other"))
    server.asked.clear()
    assert main(["infer", *named, *words, "-o", "out.jsonl"]) == 0
    assert [asked.name for asked in server.asked] == ["more.txt", "v3.mp4"]
    again = results((tmp_path / "out.jsonl").read_text())
    assert again.pop(server.url("v3.mp4?token=***", "***@")) == list(local.values())[3]
    assert again.items() <= found.items()
    assert "17 results are in out.jsonl, 4 of them of videos that can't be read" in capsys.readouterr().err


def test_results_go_into_a_bucket(
    server: FileServer,
    bucket: Any,
    words: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    urls, out = [server.url(f"v{n}.mp4") for n in range(5)], "s3://bucket/out/r.jsonl"
    command = ["infer", *words, "-o", out]
    assert main([*command, *urls[:2]]) == 0
    assert f"2 results are in {out}" in capsys.readouterr().err
    first = bucket.cat_file("bucket/out/r.jsonl")
    assert list(results(first)) == urls[:2]
    # A kill between two uploads: the file here has more, and counts.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies.StoredCopy, "upload", lambda self: None)
        assert main([*command, *urls[:3]]) == 0
    assert bucket.cat_file("bucket/out/r.jsonl") == first
    server.asked.clear()
    assert main([*command, *urls[:4]]) == 0
    assert [asked.name for asked in server.asked] == ["v3.mp4"] and list(
        results(bucket.cat_file("bucket/out/r.jsonl"))
    ) == urls[:4]
    # Another machine, which has nothing here, goes on with what is there; with other settings it may not.
    monkeypatch.setattr(copies, "cache_folder", lambda: Path(f"{cache}2"))
    assert main([*command, "--topk", "1", *urls]) == 2
    assert f"error: {out} is of another model, or of other settings (topk: 5, now 1)" in capsys.readouterr().err
    server.asked.clear()
    assert main([*command, *urls]) == 0
    assert [asked.name for asked in server.asked] == ["v4.mp4"] and list(
        results(bucket.cat_file("bucket/out/r.jsonl"))
    ) == urls
    # The first machine again: it has less, and takes what is there.
    monkeypatch.setattr(copies, "cache_folder", lambda: cache)
    server.asked.clear()
    assert main([*command, *urls]) == 0 and server.asked == []
    # Neither an earlier nor a later state: nobody's lines are lost.
    bucket.pipe_file("bucket/out/r.jsonl", b"other things")
    assert main([*command, *urls]) == 2 and "is not what an earlier run here had written" in capsys.readouterr().err
    assert bucket.cat_file("bucket/out/r.jsonl") == b"other things"
    # Removed by somebody: begun anew.
    bucket.rm_file("bucket/out/r.jsonl")
    assert main([*command, *urls[:1]]) == 0 and list(results(bucket.cat_file("bucket/out/r.jsonl"))) == urls[:1]


def test_uploads_on_the_way_and_after_a_stop(
    server: FileServer,
    bucket: Any,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(copies, "EVERY_SEC", 0.0)
    monkeypatch.setattr(copies, "_SHARE", 0)
    sizes: list[int] = []
    real = copies.put_file

    def stops(file: Path, name: str) -> None:
        real(file, name)
        sizes.append(len(bucket.cat_file("bucket/r.jsonl").splitlines()))
        if len(sizes) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(copies, "put_file", stops)
    assert main(["infer", *words, *(server.url(f"v{n}.mp4") for n in range(5)), "-o", "s3://bucket/r.jsonl"]) == 130
    assert sizes == [1, 2, 3, 3] and len(results(bucket.cat_file("bucket/r.jsonl"))) == 2


def test_a_bucket_that_is_gone_loses_nothing(
    server: FileServer, bucket: Any, words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["infer", *words, server.url("v0.mp4"), "-o"]
    assert main([*command, "s3://nobucket/r.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "error: can't write s3://nobucket/r.jsonl: no such file; all is in " in said
    (kept,) = cache.rglob("r.jsonl")
    assert len(results(kept.read_text())) == 1
    bucket.mkdir("nobucket")
    server.asked.clear()
    assert main([*command, "s3://nobucket/r.jsonl"]) == 0 and server.asked == []
    assert bucket.cat_file("nobucket/r.jsonl") == kept.read_bytes()


def test_parts_join_in_a_bucket(bucket: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = "s3://bucket/tiny/train/"
    for part in ("1/2", "2/2"):
        out = f"s3://bucket/out/part-{part[0]}.jsonl"
        assert main(["infer", folder, *words, "--part", part, "-o", out]) == 0
    join = ["join", "s3://bucket/out/part-*.jsonl", "-o", "s3://bucket/out/all.jsonl", "--list", folder]
    assert main([*join, "s3://bucket/tiny/test/"]) == 1
    assert bucket.cat_file("bucket/out/all.jsonl.missing.txt").decode().count("s3://bucket/tiny/test/") == 5
    assert main(join) == 2 and "error: s3://bucket/out/all.jsonl is there" in capsys.readouterr().err
    assert main([*join, "--overwrite"]) == 0 and not bucket.exists("bucket/out/all.jsonl.missing.txt")
    assert len(results(bucket.cat_file("bucket/out/all.jsonl"))) == 9
    assert "s3://bucket/out/all.jsonl: 9 videos of 2 files" in capsys.readouterr().out
    assert main(["join", "s3://bucket/none/*", "-o", "here.jsonl"]) == 2
    assert "error: nothing at s3://bucket/none/*" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["infer", "a.mp4", "-o", "https://me:pw@host/r.jsonl"],
            "-o/--output: https://***@host/r.jsonl: nothing can be written there",
        ),
        (["check", "a.mp4", "-o", "s3://b/c"], "--output: got s3://b/c, expected a path on this machine"),
        (["features", "a.mp4", "-o", "s3://b/c"], "--output: got s3://b/c, expected a path on this machine"),
        (["shards", "a.txt", "-o", "s3://b/c"], "--output: got s3://b/c, expected a path on this machine"),
        (["explain", "a.mp4", "--ckpt", "a", "-o", "s3://b/c.png"], "--output: got s3://b/c.png, expected a path"),
        (["prepare", "reencode", "a", "s3://b/c"], "OUTPUT: got s3://b/c, expected a path on this machine"),
        (["timeline", "a.mp4", "--picture", "gs://b/c.png"], "--picture: got gs://b/c.png, expected a path on this"),
        (["timeline", "a.mp4", "--segments", "s3://b/c.csv"], "--segments: got s3://b/c.csv, expected a path on this"),
        (["infer", "a.mp4", "--runs_dir", "s3://b/c"], "--runs_dir: got s3://b/c, expected a path on this machine"),
        (
            ["export", "--engine", "onnx", "-o", "s3://b/c"],
            "--output: got s3://b/c, expected a path on this machine",
        ),
        (["infer", "s3://b/names.txt"], "s3://b/names.txt is no video: give @s3://b/names.txt for the names in it"),
    ],
)
def test_addresses_that_cannot_be_meant(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is in the dev extra")
    assert main(command) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []  # noqa: PTH208 (and no folder called s3:)
