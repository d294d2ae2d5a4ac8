"""Videos are decoded and cut in a thread of their own, while the engine computes on those before.

Decoding, resizing and copying leave Python's lock alone, so both run at once. What waits is bounded: the distinct
frames of the video at hand, resized (21 MB for the 80 of 30 views, 340 x 256), and two calls' worth of clips.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from octvideo.video import VideoReadError, ViewSettings, decode_views


@dataclass
class Timing:
    """Where the time of a video goes, in seconds.

    Args:
        decode: the file to resized frames, in the preparing thread.
        prepare: frames to views to normalised clips, in the same.
        engine: clips to logits.
        total: on the clock, from the end of the video before (or the start) to this one's scores.
    """

    decode: float = 0.0
    prepare: float = 0.0
    engine: float = 0.0
    total: float = 0.0


class Normaliser:
    """uint8 clips to float32: scaled to [0, 1], less the mean, over the deviation, on the device.

    Args:
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        device: of the result.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self._scale = [1 / (255 * s) for s in std]
        self._shift = [-m / s for m, s in zip(mean, std, strict=True)]

    def __call__(self, views: Tensor) -> Tensor:
        """float32 (V, 3, T, H, W), contiguous.

        Views lie in memory pixel by pixel. Channel by channel they are read once, converted and reordered in one pass;
        (views.float() - mean) / std makes several.
        """
        views = views.to(self.device, non_blocking=True)
        clips = torch.empty(views.shape, device=self.device)
        for channel, (scale, shift) in enumerate(zip(self._scale, self._shift, strict=True)):
            plane = clips[:, channel]
            torch.mul(views[:, channel], scale, out=plane)
            plane.add_(shift)
        return clips


@dataclass(frozen=True)
class Chunk:
    """Some clips of one video.

    Args:
        video: its index among the paths.
        clips: float32 (N, 3, T, H, W).
        decode: seconds, all of them with the first chunk.
        prepare: seconds of this chunk.
        is_last: of its video.
    """

    video: int
    clips: Tensor
    decode: float
    prepare: float
    is_last: bool


class Preparation:
    """Iterates over the prepared clips of videos, in order; a context manager, so that the thread ends with it.

    Args:
        paths: of the videos.
        settings: which views.
        normalise: uint8 views to clips.
        views_per_chunk: the most views in a chunk.
        device: that views are cut on.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        settings: ViewSettings,
        normalise: Callable[[Tensor], Tensor],
        *,
        views_per_chunk: int,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (never changed)
    ) -> None:
        self._device = device
        self._paths, self._settings, self._normalise, self._size = paths, settings, normalise, views_per_chunk
        self._ready: queue.Queue[Chunk | BaseException | None] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        # A daemon: a decoder that hangs in a rotten file must not keep an interrupted process alive.
        self._thread = threading.Thread(target=self._work, name="octvideo-preparation", daemon=True)

    def __enter__(self) -> Preparation:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=1)

    def __iter__(self) -> Iterator[Chunk | VideoReadError]:
        """Chunks, and in place of a video's the error why it can't be read; any other error is raised."""
        while (item := self._ready.get()) is not None:
            if not isinstance(item, Chunk | VideoReadError):
                raise item
            yield item

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                for index, path in enumerate(self._paths):
                    for item in self._of_video(index, path):
                        if not self._put(item):
                            return
            self._put(None)
        except BaseException as error:  # to the thread that waits for us
            self._put(error)

    def _of_video(self, index: int, path: str | Path) -> Iterator[Chunk | VideoReadError]:
        start = time.perf_counter()
        try:
            views = decode_views(path, self._settings).to(self._device)
        except VideoReadError as error:
            yield error
            return
        decode = time.perf_counter() - start
        start = time.perf_counter()
        for first in range(0, views.num_views, self._size):
            stop = min(first + self._size, views.num_views)
            clips = self._normalise(views.cut(first, stop))
            prepare = time.perf_counter() - start
            yield Chunk(index, clips, 0.0 if first else decode, prepare, stop == views.num_views)
            start = time.perf_counter()  # the wait for a place in the queue is nobody's work

    def _put(self, item: Chunk | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False
