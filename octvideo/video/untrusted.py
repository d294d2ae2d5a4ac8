"""Files that strangers sent: which of them may be given to a decoder at all."""

from __future__ import annotations

import av

from octvideo.video.frames import VideoReadError, check_is_file, for_ffmpeg
from octvideo.video.packets import look_through_packets
from octvideo.video.pyav_file import OPEN_OPTIONS, main_stream

# Containers that hold their frames themselves, by FFmpeg's names. Playlists (HLS, DASH, concat) name other files, which
# FFmpeg would open: files of the server, or of others.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"


class TooLongError(VideoReadError):
    """A video that is longer than it may be."""


def check_untrusted(path: str, *, max_length_sec: float) -> float:
    """Opens a file as FFmpeg's own probing has it, from its content and not its name, and decodes nothing.

    Whoever opens it again opens it in the same way, since the content is the same.

    Args:
        path: of the file.
        max_length_sec: that it may last.

    Returns:
        How long it lasts in seconds, as it states it; where it does not, as its packets tell.

    Raises:
        VideoReadError: it is no video in one of `CONTAINERS`, or too long.
    """
    check_is_file(path)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(for_ffmpeg(path), options=options, **OPEN_OPTIONS) as container:
            stream = main_stream(path, container)
            if container.duration is not None and container.duration > 0:
                length = container.duration / av.time_base
            else:
                packets = look_through_packets(path, container, stream)
                length = float((packets.times[-1] - packets.times[0]) * packets.time_base)
    except (av.FFmpegError, ValueError, OSError) as error:
        if isinstance(error, VideoReadError):
            raise
        raise VideoReadError(path, "it is no video in a known container (MP4, WebM, MKV, AVI, MPEG, ...)") from error
    if length > max_length_sec:
        raise TooLongError(path, f"it lasts {length:.1f} s, and may last {max_length_sec:g} s")
    return length
