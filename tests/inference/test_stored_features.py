"""Features in a bucket are those of a disk, and their index knows what other machines wrote."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import octvideo.stores.copies as copies
from octvideo.errors import UserError
from octvideo.inference.feature_files import FeatureFolder, Row
from octvideo.inference.stored_features import StoredFeatures
from octvideo.stores import StoredFolder
from octvideo.video import VideoReadError
from tests.file_server import s3_bucket
from tests.inference.test_similar import SETTINGS, made


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setattr(copies, "cache_folder", lambda: tmp_path / "cache")
    with s3_bucket(monkeypatch) as bucket:
        yield bucket


def test_two_machines_and_a_kill(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "format": "npz"}
    videos = ["a.mp4", "b/c.mp4", "s3://bucket/d.mp4", "../e.mp4"]
    local = FeatureFolder.made(tmp_path / "local", settings)
    for n, video in enumerate(videos):
        local.write(video, made(n, n))
    bad = Row("bad.mp4", reason="no video")
    index = local.write_index([bad], parquet=False)

    def stored() -> StoredFeatures:
        return StoredFeatures.begun(StoredFolder("s3://bucket/f/"), settings)

    first = stored()
    first.write(videos[0], made(0, 0))
    first.write_index([bad])
    second = stored()
    second.write(videos[1], made(1, 1))  # and is killed, in the line that it notes
    with second.noted_file.open("a") as rows:
        rows.write('\n{"video": "x')
    monkeypatch.setattr(copies, "cache_folder", lambda: tmp_path / "other")
    other = stored()
    assert [other.has(video) for video in videos] == [True, True, False, False]
    other.write(videos[2], made(2, 2))
    with pytest.raises(VideoReadError, match=r"odd .*its name is no text, and a store's names are"):
        other.write("odd \udcff.mp4", made(1, 1))
    other.write_index([])
    monkeypatch.setattr(copies, "cache_folder", lambda: tmp_path / "cache")
    third = stored()
    third.write(videos[3], made(3, 3))
    third.write_index([])
    for file in (*local.folder.rglob("*.*"), index):
        if not file.name.startswith("."):
            assert bucket.cat_file(f"bucket/f/{file.relative_to(local.folder)}") == file.read_bytes(), file
    with pytest.raises(UserError, match=r"^s3://bucket/f holds features of other settings \(layer: 'x', now 'y'\)"):
        StoredFeatures.begun(StoredFolder("s3://bucket/f"), {**settings, "layer": "y"})
    with pytest.raises(UserError, match=r"^no features in s3://bucket/g \(features\.json: no such file\)"):
        StoredFeatures(StoredFolder("s3://bucket/g"))


def test_parts_on_one_machine_list_one_after_the_other(bucket: Any) -> None:
    """The older of two lists would be put in place of the newer one."""
    parts = [StoredFeatures.begun(StoredFolder("s3://bucket/f"), {**SETTINGS, "format": "npz"}) for _ in range(2)]
    parts[0].write("a.mp4", made(0, 0))
    write_rows, second = StoredFeatures.write_rows, threading.Thread(target=parts[1].write_index, args=[[]])

    def write_late(folder: StoredFeatures, *args: Any, **how: Any) -> Path:
        if not second.ident:  # the first has its list, and the other part ends now
            parts[1].write("b.mp4", made(1, 1))
            second.start()
            second.join(0.5)
        return write_rows(folder, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredFeatures, "write_rows", write_late)
        parts[0].write_index([])
        second.join()
    assert [line.split(b",")[0] for line in bucket.cat_file("bucket/f/index.csv").splitlines()] == [
        b"video",
        b"a.mp4",
        b"b.mp4",
    ]
