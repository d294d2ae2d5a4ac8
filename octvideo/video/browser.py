"""A video as a file that browsers play: copied where they play it as it is, else written anew in H.264 and AAC.

What current browsers play: H.264 of 8 bits in 4:2:0, VP9 and AV1 in MP4, VP8, VP9 and AV1 in WebM. Safari plays AV1
only on devices that have a decoder of it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from octvideo.files import is_full_disk, whole_file
from octvideo.video.checking import stamp_of
from octvideo.video.frames import check_is_file
from octvideo.video.overlay import write_overlay
from octvideo.video.pyav_file import main_stream, open_video

# By the container: codecs of pictures and of sound.
_PLAYED = {
    "mp4": ({"h264", "av1", "vp9"}, frozenset({"aac", "mp3", "opus", "flac"})),
    "webm": ({"vp8", "vp9", "av1"}, frozenset({"vorbis", "opus"})),
}
_DECODERS = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "mp3float": "mp3"}
_FORMATS = frozenset({"yuv420p", "yuvj420p"})
_LATEST_START = 100_000  # microseconds: browsers count a video's time from its own zero, timelines from its first frame


@dataclass
class BrowserVideo:
    """A file that browsers play.

    Args:
        path: of it.
        is_copy: it has the bytes of the source.
        notes: what is not as in the source, a line each.
    """

    path: Path
    is_copy: bool
    notes: list[str] = field(default_factory=list)


def write_for_browser(
    source: str | Path,
    folder: Path,
    *,
    is_damaged: bool = False,
    on_frame: Callable[[float], None] = lambda time_sec: None,
) -> BrowserVideo:
    """Puts a video into a folder so that browsers play it. One that is there already is left as it is.

    Args:
        source: path of the video.
        folder: which is there.
        is_damaged: not all of it can be decoded, where browsers stop: it is written anew as far as it can.
        on_frame: is called with the time of each frame that is encoded.

    Raises:
        VideoReadError: it can't be read.
        UserError: PyAV has no encoder of H.264; the file can't be written.
        OSError: likewise.
    """
    suffix = played_suffix(source)
    if is_damaged:
        suffix = None
    path = folder / beside_name(source, suffix or ".mp4")
    if path.exists():
        return BrowserVideo(path, bool(suffix))
    if suffix:
        with whole_file(path) as part:
            try:
                shutil.copyfile(source, part)
            except OSError as error:
                if is_full_disk(error):  # of which it says the name of the source
                    error.filename, error.filename2 = str(path), None
                raise
        return BrowserVideo(path, is_copy=True)
    report = write_overlay(source, path, _nothing, on_frame=on_frame, played=_PLAYED["mp4"][1])
    return BrowserVideo(path, False, [*report.notes, *filter(None, [report.trouble])])


def played_suffix(source: str | Path) -> str | None:
    """The ending of a file that browsers play as it is, at the times that timelines have: ".mp4" or ".webm".

    None of others.

    Raises:
        VideoReadError: it can't be opened, or holds no video.
    """
    check_is_file(source)
    with open_video(source) as container:
        stream = main_stream(source, container)
        kind = _kind(container, Path(source))
        if kind is None or (container.start_time or 0) > _LATEST_START:
            return None
        pictures, sounds = _PLAYED[kind]
        codec, pixels = stream.codec_context.name, getattr(stream.codec_context.format, "name", None)
        if _DECODERS.get(codec, codec) not in pictures or pixels not in _FORMATS:
            return None
        for sound in container.streams.audio:
            name = sound.codec_context.name if sound.codec_context is not None else ""
            if _DECODERS.get(name, name) not in sounds:
                return None
    return f".{kind}"


def beside_name(source: str | Path, suffix: str, *settings: object) -> str:
    """A name for what is made of a video, in ASCII: another one where the video or what is made of it is another.

    Args:
        source: path of the video, which is there.
        suffix: of the name.
        settings: what else decides what is made.
    """
    size, changed_ns = stamp_of(str(source))
    made_of = (str(Path(source).absolute()), size, changed_ns, *settings)
    number = hashlib.sha256(repr(made_of).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source).stem).strip("-")[:40].strip("-")
    return f"{stem or 'video'}-{number}{suffix}"


def _kind(container: av.container.InputContainer, path: Path) -> str | None:
    name = container.format.name
    if "mp4" in name.split(","):
        brand = container.metadata.get("major_brand", "")
        # QuickTime's own files may hold what MP4 does not; 3GP is for telephones.
        return None if brand.startswith(("qt", "3g")) else "mp4"
    # Matroska is WebM by its codecs and its ending.
    return "webm" if "webm" in name.split(",") and path.suffix.lower() == ".webm" else None


def _nothing(image: np.ndarray, time_sec: float) -> None:
    """Leaves a frame as it is."""
