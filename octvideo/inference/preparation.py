"""Videos are decoded and cut in a thread of their own, while the engine computes on those before.

Decoding, resizing and copying leave Python's lock alone, so both run at once. What waits is bounded: the distinct
frames of the video at hand, resized (21 MB for the 80 of 30 views, 340 x 256), and two calls' worth of clips.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from octvideo.video import ImageFrames, VideoArray, VideoReadError, VideoViews, ViewSettings, decode_views

Item = TypeVar("Item")


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
        alike: `alike` of the video's views.
    """

    video: int
    clips: Tensor
    decode: float
    prepare: float
    is_last: bool
    alike: tuple[bool, bool] = (False, False)


def prepared_chunks(
    paths: Sequence[str | Path | VideoArray | ImageFrames],
    settings: ViewSettings,
    normalise: Callable[[Tensor], Tensor],
    *,
    views_per_chunk: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (never changed)
) -> Generator[Chunk | VideoReadError, None, None]:
    """Prepares the clips of videos in a thread, which ends when the generator is closed.

    Args:
        paths: of the videos, or their frames.
        settings: which views.
        normalise: uint8 views to clips.
        views_per_chunk: the most views in a chunk.
        device: that views are cut on.

    Returns:
        Chunks in order, and in place of a video's the error why it can't be read; any other error is raised.
    """

    def chunks() -> Iterator[Chunk | VideoReadError]:
        for index, path in enumerate(paths):
            start = time.perf_counter()
            try:
                views = on_device(decode_views(path, settings), device)
            except VideoReadError as error:
                yield error
                continue
            decode = time.perf_counter() - start
            for first in range(0, views.num_views, views_per_chunk):
                start = time.perf_counter()  # the wait for a place in the queue is nobody's work
                stop = min(first + views_per_chunk, views.num_views)
                clips = normalise(views.cut(first, stop))
                seconds = time.perf_counter() - start
                spent = 0.0 if first else decode, seconds
                yield Chunk(index, clips, *spent, stop == views.num_views, views.alike)

    return made_beside(chunks())


def on_device(views: VideoViews, device: torch.device) -> VideoViews:
    """Views on the device that cuts them.

    From pinned memory a copy to a GPU waits for nothing, else for all that the GPU still has to compute.
    """
    return (views.pin_memory() if device.type == "cuda" else views).to(device)


def made_beside(items: Iterator[Item], *, most: int = 2) -> Generator[Item, None, None]:
    """The items in order, made in a thread of their own, which ends when the generator is closed.

    Args:
        items: each is asked for when there is a place for it; what it raises is raised here.
        most: that wait.
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(maxsize=most)
    stopped = threading.Event()

    def put(item: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            with torch.inference_mode():
                for item in items:
                    put((item,))
                    del item  # while the next one is made
                    if stopped.is_set():
                        return
            put(None)
        except BaseException as error:  # to the thread that waits for us
            put(error)
        finally:
            if isinstance(items, Generator):
                items.close()

    # A daemon: a decoder that hangs in a rotten file must not keep an interrupted process alive.
    thread = threading.Thread(target=work, name="octvideo-preparation", daemon=True)
    thread.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made[0]
            del made
    finally:
        stopped.set()
        thread.join(timeout=1)
