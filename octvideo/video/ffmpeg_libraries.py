"""FFmpeg's shared libraries for torchcodec, out of PyAV's wheel, where the system has none.

torchcodec's wheel brings no FFmpeg; it asks the system's loader for libavcodec.so.62 and its like. PyAV's wheel
brings all of them under names of its own (libavcodec-5e6b81c2.so.62.28.102), so links by the usual names are enough.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

from octvideo.errors import UserError

_LIBRARY = re.compile(
    r"(?P<name>lib(?:avcodec|avdevice|avfilter|avformat|avutil|swresample|swscale))-[0-9a-f]+\.so\.(?P<major>\d+)[\d.]*"
)


def link_ffmpeg(folder: Path) -> list[Path]:
    """Makes `folder` one for LD_LIBRARY_PATH: links to the libraries that PyAV's wheel carries.

    Links that are there are made anew, since another PyAV may have come; other files stay.

    Returns:
        The links that have FFmpeg's own names.

    Raises:
        UserError: not on Linux; PyAV came without libraries; or the folder can't be written.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(f"links to PyAV's FFmpeg work on Linux, this is {sys.platform}: install FFmpeg for torchcodec")
    carried = carried_libraries()
    matches = [(_LIBRARY.fullmatch(file.name), file) for file in carried]
    named = {f"{match['name']}.so.{match['major']}": file for match, file in matches if match}
    if not named:
        raise UserError(
            "this PyAV came without FFmpeg (built from source, or conda's), so it uses the system's; torchcodec "
            "finds that too. For PyAV's own wheel: pip install --force-reinstall --only-binary av av"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Under their own names too: they look for each other beside the link by which they were found.
        for name, file in {**{file.name: file for file in carried}, **named}.items():
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    except OSError as error:
        raise UserError(f"can't make links in {folder}: {error.strerror}; give a folder that can be written") from error
    return [folder / name for name in sorted(named)]


def carried_libraries() -> list[Path]:
    """The shared libraries in PyAV's wheel; none of another build."""
    files = importlib.metadata.files("av") or []
    paths = [Path(str(file.locate())).resolve() for file in files if file.parts[0] == "av.libs"]
    return sorted(path for path in paths if path.is_file())
