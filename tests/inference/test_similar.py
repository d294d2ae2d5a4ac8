"""Folders of features, and the search in them against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octvideo.errors import UserError
from octvideo.inference import similar
from octvideo.inference.feature_files import FeatureFolder, Row, VideoFeatures
from octvideo.inference.similar import nearest

SETTINGS: dict[str, Any] = {
    "sha256": "1",
    "layer": "x",
    "format": "safetensors",
    "class_names": ["a"],
    "views": {"T": 4},
}


def made(count: int, seed: int, dtype: str = "float32") -> VideoFeatures:
    """Vectors of seconds that half overlap."""
    rows = np.random.default_rng(seed).normal(size=(count, 12)).astype(dtype)
    starts = np.arange(count) / 2
    return VideoFeatures(rows, starts, starts + 1, np.arange(count), 25.0)


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_what_is_written_is_read(form: str, tmp_path: Path) -> None:
    folder = FeatureFolder.made(tmp_path / "f", {**SETTINGS, "format": form})
    for n, video in enumerate(("b/x.mp4", "../b/x.mp4", "/b/x.mp4", "_up/b/x.mp4", "odd \udcff.mp4", "empty.mp4")):
        folder.write(video, made(n if video != "empty.mp4" else 0, n, "float16"))
    entries = {entry.video: entry for entry in FeatureFolder(tmp_path / "f").entries()}
    assert len(entries) == 6  # no two in one file
    for n, video in enumerate(("b/x.mp4", "../b/x.mp4", "/b/x.mp4", "_up/b/x.mp4")):
        expected = made(n, n, "float16")
        found = folder.find(video)
        assert found is not None and found.metadata["fps"] == 25.0 and found.metadata["layer"] == "x"
        for name in ("features", "start_sec", "end_sec", "window"):
            np.testing.assert_array_equal(found.array(name), getattr(expected, name))
            assert found.array(name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(found.rows(0, n), expected.features)


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_a_file_that_is_not_whole_or_of_others_does_not_count(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SETTINGS, "format": form}
    folder = FeatureFolder.made(tmp_path / "f", settings)
    file = folder.write("a.mp4", made(3, 0))
    assert folder.find("a.mp4") is not None
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert folder.find("a.mp4") is None
    other = FeatureFolder.made(tmp_path / "g", {**settings, "layer": "y"})
    file.write_bytes(other.write("a.mp4", made(3, 0)).read_bytes())
    assert folder.find("a.mp4") is None and list(folder.entries()) == []
    caplog.clear()
    (tmp_path / "f" / f"z.{form}").write_bytes(b"\xff" * 40)
    assert list(folder.entries()) == []
    assert all(
        f"/{name}.{form} is left out" in text for name, text in zip(("a.mp4", "z"), caplog.messages, strict=True)
    )


def test_a_folder_is_of_one_choice_of_settings(tmp_path: Path) -> None:
    FeatureFolder.made(tmp_path / "f", SETTINGS)
    FeatureFolder.made(tmp_path / "f", {**SETTINGS, "class_names": ["b"]})
    with pytest.raises(UserError, match=r"f holds features of other settings \(layer: 'x', now 'y'\): give another -o"):
        FeatureFolder.made(tmp_path / "f", {**SETTINGS, "layer": "y"})
    with pytest.raises(UserError, match="holds other files"):
        FeatureFolder.made(tmp_path, SETTINGS)
    with pytest.raises(UserError, match=r"no features in .*octvideo features writes them"):
        FeatureFolder(tmp_path)


def test_the_index_keeps_what_could_not_be_read(tmp_path: Path) -> None:
    folder = FeatureFolder.made(tmp_path / "f", SETTINGS)
    folder.write("a.mp4", made(3, 0))
    folder.write_index([Row("b.mp4", reason='no, "video"'), Row("c.mp4", reason="empty")])
    folder.write("c.mp4", made(0, 0))
    text = folder.write_index([]).read_text()
    assert text.splitlines() == [
        "video,file,vectors,start_sec,end_sec,fps,reason",
        "a.mp4,a.mp4.safetensors,3,0.0,2.0,25.0,",
        'b.mp4,,0,,,,"no, ""video"""',
        "c.mp4,c.mp4.safetensors,0,,,25.0,",
    ]


def test_the_index_as_a_table(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = FeatureFolder.made(tmp_path / "f", SETTINGS)
    folder.write("a.mp4", made(3, 0))
    folder.write_index([Row("odd \udcff.mp4", reason="empty")], parquet=True)
    rows = parquet.read_table(tmp_path / "f" / "index.parquet").to_pylist()
    assert [(row["vectors"], row["end_sec"], row["reason"]) for row in rows] == [(3, 2.0, ""), (0, None, "empty")]


@pytest.mark.parametrize("per_video", [False, True])
@pytest.mark.parametrize("block_bytes", [4 * 12 * 7, 2**20])
def test_the_nearest_are_those_of_brute_force(
    per_video: bool, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "_BLOCK_BYTES", block_bytes)
    folder = FeatureFolder.made(tmp_path / "f", SETTINGS)
    of_videos = {f"v{n:02}.mp4": made(n * 3 % 17, n) for n in range(30)}
    of_videos["v07.mp4"].features[2] = 0  # like nothing
    for video, features in of_videos.items():
        folder.write(video, features)
    spoilt = made(20, 5)
    spoilt.features[:] = np.nan
    folder.write("spoilt.mp4", spoilt)
    queries = np.random.default_rng(99).normal(size=(4, 12))
    expected = []
    for video, features in of_videos.items():
        if video == "v05.mp4":
            continue
        lengths = np.linalg.norm(features.features, axis=1, keepdims=True) * np.linalg.norm(queries, axis=1)
        cosines = features.features @ queries.T / np.maximum(lengths, 1e-9)
        for row, cosine in enumerate(cosines):
            expected.append((-cosine.max(), video, row / 2, int(cosine.argmax())))
    expected.sort()
    if per_video:
        expected = [one for n, one in enumerate(expected) if one[1] not in {other[1] for other in expected[:n]}]
    found = nearest(folder, queries, k=9, per_video=per_video, leave_out="v05.mp4")
    assert [(one.video, one.start_sec, one.query) for one in found] == [one[1:] for one in expected[:9]]
    np.testing.assert_allclose([one.similarity for one in found], [-one[0] for one in expected[:9]], atol=1e-6)


def test_queries_that_can_not_be(tmp_path: Path) -> None:
    folder = FeatureFolder.made(tmp_path / "f", SETTINGS)
    assert nearest(folder, np.ones((1, 12))) == []
    folder.write("a.mp4", made(3, 0))
    with pytest.raises(UserError, match=r"the query has 5 features, those in .*a.mp4.safetensors are 12"):
        nearest(folder, np.ones((1, 5)))
    with pytest.raises(UserError, match="expected finite vectors"):
        nearest(folder, np.full((1, 12), np.nan))
