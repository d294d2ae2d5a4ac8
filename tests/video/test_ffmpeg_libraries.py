"""torchcodec runs with the FFmpeg that PyAV's wheel carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from octvideo.errors import UserError
from octvideo.video import ffmpeg_libraries
from octvideo.video.ffmpeg_libraries import carried_libraries, link_ffmpeg

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="links work on Linux only")
FILES = ("libavcodec-5e6b81c2.so.62.28.102", "libavutil-5809ad29.so.60.26", "libx264-d6533a8d.so.165")


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that in PyAV's wheel."""
    place = tmp_path / "av.libs"
    place.mkdir()
    for name in FILES:
        (place / name).write_text(name)
    monkeypatch.setattr(ffmpeg_libraries, "carried_libraries", lambda: sorted(place.iterdir()))
    return place


@on_linux
def test_usual_names_lead_to_the_libraries(carried: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "ffmpeg"
    links = link_ffmpeg(folder)
    assert [link.name for link in links] == ["libavcodec.so.62", "libavutil.so.60"]
    assert links[0].read_text() == FILES[0] and links[1].read_text() == FILES[1]
    # What the libraries ask for by PyAV's names is beside them.
    assert {path.name for path in folder.iterdir()} == {"libavcodec.so.62", "libavutil.so.60", *FILES}


@on_linux
def test_links_of_an_older_version_are_replaced_and_files_stay(carried: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ffmpeg"
    folder.mkdir()
    (folder / "libavcodec.so.62").symlink_to(tmp_path / "gone")
    (folder / "mine.txt").write_text("mine")
    link_ffmpeg(folder)
    assert (folder / "libavcodec.so.62").read_text() == FILES[0]
    assert (folder / "mine.txt").read_text() == "mine"


@on_linux
def test_another_build_of_pyav(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ffmpeg_libraries, "carried_libraries", list)
    with pytest.raises(UserError, match="this PyAV came without FFmpeg"):
        link_ffmpeg(tmp_path)


@on_linux
def test_a_folder_that_is_a_file(carried: Path, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(UserError, match=r"can't make links in .*file: File exists; give a folder"):
        link_ffmpeg(place)


def test_another_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="work on Linux, this is win32: install FFmpeg"):
        link_ffmpeg(tmp_path)


@on_linux
@pytest.mark.skipif(not carried_libraries(), reason="this PyAV came without FFmpeg")
def test_the_system_loads_them_without_pyav(repo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    tool = subprocess.run(
        [sys.executable, repo / "tools" / "link_ffmpeg.py", folder], capture_output=True, text=True, check=True
    )
    (library,) = folder.glob("libavformat.so.*")
    program = f"import ctypes; ctypes.CDLL('{library.name}').avformat_version()"
    load = f'{tool.stdout.strip()}; exec "{sys.executable}" -c "{program}"'
    loaded = subprocess.run(["/bin/sh", "-c", load], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
