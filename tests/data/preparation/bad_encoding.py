"""Work of re-encoding that goes wrong where a video's name says so; processes import this module."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from octvideo.data.preparation.encoding import Encoded, EncodingSettings, encode_job
from octvideo.files import part_of
from octvideo.video.isolated import Alive


def badly(item: tuple[str, str, str, EncodingSettings], alive: Alive) -> Encoded | str:
    part_of(Path(item[2])).touch()
    if Path(item[1]).stem == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if Path(item[1]).stem == "hang":
        time.sleep(600)
    if Path(item[1]).stem == "full":
        raise OSError(errno.ENOSPC, "No space left on device", item[2])
    return encode_job(item, alive)
