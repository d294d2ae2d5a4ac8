"""Addresses in commands: videos over HTTP and in a bucket, results into a bucket; resumed, joined, and said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import octvideo.stores.copies as copies
from octvideo.cli import main
from octvideo.errors import UserError
from octvideo.json_lines import JsonLines, Words
from octvideo.models import i3d_small
from octvideo.stores import StoredFolder
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings
from tests.cli.conftest import TINY_CONFIG
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
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    monkeypatch.setenv("OCTVIDEO_REMOTE_TRIES", "2")
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
    assert main(["infer", *named, *words, "-o", "out.jsonl"]) == 1
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


def test_two_commands_write_no_file_of_a_bucket(bucket: Any) -> None:
    """The second moves nothing away, whatever it finds there; the first never writes over what others did."""
    kind, words = {"results": 1}, Words("file", "others", "name another file")
    copy = copies.StoredCopy("s3://bucket/r.jsonl")
    first = JsonLines(copy, kind, words)
    first.add({"path": "a"})
    copy.upload()
    bucket.rm_file("bucket/r.jsonl")
    with pytest.raises(UserError, match=r"another process writes s3://bucket/r\.jsonl: wait for it, or name another"):
        JsonLines(copies.StoredCopy("s3://bucket/r.jsonl"), kind, words)
    for spelling in ("s3://bucket/r.jsonl/", "s3a://bucket/r.jsonl", "S3://bucket/r.jsonl"):
        with pytest.raises(UserError, match="another process writes"):
            JsonLines(copies.StoredCopy(spelling), kind, words)
    first.add({"path": "b"})
    with pytest.raises(UserError, match=r"s3://bucket/r\.jsonl is gone: nothing is put there; all of this run is in"):
        first.close()
    assert len(list(first.entries())) == 2 and not bucket.exists("bucket/r.jsonl")
    JsonLines(copies.StoredCopy("s3://bucket/r.jsonl"), kind, words).close()  # free again, and begun anew
    assert len(bucket.cat_file("bucket/r.jsonl").splitlines()) == 1


def test_a_bucket_that_is_gone_loses_nothing(
    server: FileServer,
    bucket: Any,
    words: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["infer", *words, server.url("v0.mp4"), "-o"]
    server.asked.clear()
    assert main([*command, "s3://nobucket/r.jsonl"]) == 2
    assert "error: s3://nobucket/r.jsonl: there is no bucket called nobucket" in capsys.readouterr().err
    with pytest.raises(UserError, match="s3://nobucket/f: there is no bucket called nobucket"):
        StoredFolder("s3://nobucket/f").sizes()
    Path("one.jsonl").write_text('{"results": "octvideo infer 1"}\n')
    assert main(["join", "one.jsonl", "-o", "s3://nobucket/r.jsonl"]) == 2
    told = capsys.readouterr()
    assert not told.out and "s3://nobucket/r.jsonl: there is no bucket called nobucket" in told.err
    assert main(["infer", *words, "s3://nobucket/a.mp4"]) == 2 and server.asked == []
    assert "error: s3://nobucket/a.mp4: there is no bucket called nobucket" in capsys.readouterr().err
    monkeypatch.setattr(copies, "check_stores", lambda names: None)  # as where nobody may look at buckets
    assert main([*command, "s3://nobucket/r.jsonl"]) == 2 and server.asked == []  # before any video is read
    assert "error: can't write s3://nobucket/r.jsonl: no such file; all is in " in capsys.readouterr().err
    bucket.mkdir("nobucket")
    real = copies.put_file

    def removes(file: Path, name: str) -> None:
        real(file, name)
        bucket.rm("nobucket/r.jsonl")
        bucket.rmdir("nobucket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "put_file", removes)  # somebody else, after the beginning
        assert main([*command, "s3://nobucket/r.jsonl"]) == 2
    told = "error: s3://nobucket/r.jsonl is gone: nothing is put there; all of this run is in"
    assert told in capsys.readouterr().err
    (kept,) = cache.rglob("r.jsonl")
    assert len(results(kept.read_text())) == 1
    bucket.mkdir("nobucket")
    assert main([*command, "s3://nobucket/r.jsonl"]) == 0  # begun anew, and what was here stays
    assert bucket.cat_file("nobucket/r.jsonl") == kept.read_bytes()
    assert len(results(kept.with_name("r.jsonl.before").read_text())) == 1


@pytest.mark.slow
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
        (["shards", "--index", "s3://b/c"], "--index: got s3://b/c, expected a path on this machine"),
        (["shards", "a.txt", "-o", "https://b/c"], "-o/--output: https://b/c: nothing can be written there"),
        (["similar", "s3://b/c", "a.mp4"], "DIR: got s3://b/c, expected a path on this machine"),
        (["explain", "a.mp4", "--ckpt", "a", "-o", "s3://b/c.png"], "--output: got s3://b/c.png, expected a path"),
        (["prepare", "reencode", "a", "http://b/c"], "OUTPUT: http://b/c: nothing can be written there"),
        (["timeline", "a.mp4", "--picture", "gs://b/c.png"], "--picture: got gs://b/c.png, expected a path on this"),
        (["timeline", "a.mp4", "--segments", "s3://b/c.csv"], "--segments: got s3://b/c.csv, expected a path on this"),
        (["infer", "a.mp4", "--runs_dir", "s3://b/c"], "--runs_dir: got s3://b/c, expected a path on this machine"),
        (
            ["export", "--engine", "onnx", "-o", "s3://b/c"],
            "--output: got s3://b/c, expected a path on this machine",
        ),
        (
            ["fit", "-c", "i3d_oct", "--runs_dir", "s3://b/c"],
            "runs_dir: got s3://b/c, expected a folder",
        ),
        (["fit", "-c", "i3d_oct", "--name", "s3://b/c"], "a run can't be called 's3://b/c'"),
        (
            ["infer", "a.mp4", "-o", "s3:/b/c"],
            "-o/--output: got s3:/b/c, which is no path: an address begins with s3://",
        ),
        (["infer", "s3://b/names.txt"], "s3://b/names.txt is no video: give @s3://b/names.txt for the names in it"),
    ],
)
def test_addresses_that_cannot_be_meant(
    command: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is in the extra bucket")
    assert main(command) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []  # noqa: PTH208 (and no folder called s3:)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]


@pytest.mark.slow
def test_timelines_features_and_pictures_of_a_bucket(
    bucket: Any,
    server: FileServer,
    tiny_data: Path,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local = str(tiny_data / "test" / "left" / "clip 1.mp4")
    stored, gone, served = local.replace(str(tiny_data), "s3://bucket/tiny"), "s3://bucket/no.mp4", server.url("v2.mp4")
    shared = [stored, local, served, gone, *words, "--window", "0.5", "--stride", "0.25"]
    assert main(["timeline", *shared, "-o", "s3://bucket/t.jsonl", "--segments", "all.csv"]) == 1
    assert f"cannot read video '{gone}': no such file" in capsys.readouterr().err
    scored = [json.loads(line) for line in bucket.cat_file("bucket/t.jsonl").decode().splitlines()[1:]]
    of: dict[str, list[Any]] = {}
    for line in scored:
        of.setdefault(line.pop("path"), []).append(line)
    assert (
        of[stored] == of[local]
        and len(of[local]) > 3
        and len(of[served]) > 3
        and of[gone][-1]["trouble"].endswith(": no such file")
    )
    assert main(["features", *shared, "-o", "features"]) == 1
    found = sorted(str(file.relative_to("features")) for file in Path("features").rglob("*.safetensors"))
    assert found == sorted(
        [
            "_store/s3/bucket/tiny/test/left/clip 1.mp4.safetensors",
            f"_store/http/{served.removeprefix('http://')}.safetensors",
            f"_root{local}.safetensors".replace("_root/", "_root/"),
        ]
    )
    assert (
        main(["features", *shared, "-o", "features"]) == 1
        and "3 of 4 videos are in features" in capsys.readouterr().err
    )
    assert main(["similar", "features", stored, *words[:2]]) == 0 and local in capsys.readouterr().out
    assert main(["explain", stored, "--ckpt", words[1], "-o", "seen.png"]) == 0
    assert main(["explain", served, "--ckpt", words[1], "-o", "seen.mkv"]) == 0
    assert Path("seen.png").stat().st_size > 1000 and Path("seen.mkv").stat().st_size > 1000


@pytest.mark.slow
def test_checks_and_copies_of_addresses(
    server: FileServer, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over HTTP alone: processes that decode are forked from one that knows no later environment."""
    monkeypatch.setenv("OCTVIDEO_REMOTE_TRIES", "1")
    videos = {name: content for name, content in server.contents.items() if name != "v0.mp4"}
    server.contents |= {f"folder/{name}": content for name, content in videos.items()}
    server.contents["folder/"] = "".join(f"<a href='{name}'>x</a>" for name in [*videos, "rotten.mp4"]).encode()
    server.contents["folder/rotten.mp4"] = b"no video"
    server.contents["list.txt"] = b"v1.mp4 1\nv9.mp4 0\nv2.mp4?sig=secret 1\n"
    server.faults["v2.mp4"] = ["503"] * 9
    command = ["check", server.url("folder/"), server.url("list.txt"), "--root", server.url(""), "-o", "checked"]
    assert main([*command, "--num_workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "1 could not be reached for now" in said and "2 in the quarantine list" in said
    quarantine = Path("checked/quarantine.txt").read_text()
    assert (
        f"{server.url('folder/rotten.mp4')}\t" in quarantine and f"{server.url('v9.mp4')}\tno such file" in quarantine
    )
    assert "v2.mp4" not in quarantine and "secret" not in Path("checked/journal.jsonl").read_text()
    del server.faults["v2.mp4"]
    assert main([*command, "--num_workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "could not be reached" not in said and "6 of them were known from before" in said
    server.contents["folder/rotten.mp4"] = server.contents["v0.mp4"]
    words = ["small", "--short_side", "32", "--num_workers", "1"]
    assert main(["prepare", "reencode", server.url("folder/"), *words]) == 0, Path(
        "small/reencode_failed.txt"
    ).read_text()
    assert {file.name for file in Path("small").glob("*.mp4")} == {*videos, "rotten.mp4"}


@pytest.mark.slow
def test_shards_of_a_bucket(bucket: Any, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "test.txt", "--root", "s3://bucket/tiny", "-o", "stored"]) == 0
    assert main(["shards", "test.txt", "--root", str(tiny_data), "-o", "local"]) == 0
    for file in Path("local").iterdir():
        assert Path("stored", file.name).read_bytes() == file.read_bytes()
    assert main(["shards", "test.txt", "--root", "s3://bucket/none", "-o", "no"]) == 2
    said = capsys.readouterr().err
    assert "error: no data for data.train 'test.txt': looked for s3://bucket/none/test.txt and" in said


def test_shards_hold_no_secrets(server: FileServer) -> None:
    root = server.url("", "me:secret@")
    Path("list.txt").write_text(f"{root}v1.mp4?token=secret 0\n{root}v2.mp4 0\n")
    server.contents["classes.txt"] = b"down\nleft\n"
    assert main(["shards", "list.txt", "--root", root, "-o", "stored"]) == 0
    written = [file.read_bytes() for file in Path("stored").iterdir()]
    assert any(b"v1.mp4?token=***" in content for content in written)
    assert not any(b"secret" in content for content in written)


@pytest.mark.slow
def test_a_bucket_in_processes_of_their_own(bucket: Any, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "octvideo", "check", "s3://bucket/tiny/test/", "-o", "checked"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "checked" / "journal.jsonl")) == 5


@pytest.mark.slow
def test_training_from_a_bucket(bucket: Any, tiny_data: Path, tmp_path: Path) -> None:
    """Weights are those of the same data on this machine, with loading processes."""
    for name, root in (("stored", "s3://bucket/tiny"), ("local", str(tiny_data))):
        Path(f"{name}.yaml").write_text(TINY_CONFIG.format(root=root))
        how = ["--name", name, "--data.num_workers", "1", "--trainer.max_epochs", "1"]
        assert main(["fit", "-c", f"{name}.yaml", *how]) == 0
    weights = [
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("stored", "local")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert main(["test", "--name", "stored"]) == 0
