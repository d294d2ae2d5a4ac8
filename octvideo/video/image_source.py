"""The frames of a folder of images from front to back, with their times: what `FileFrames` is to a file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from torch import Tensor

from octvideo.video.cuts import CutFinder, brightness_places
from octvideo.video.image_frames import ImageFrames, timed_images
from octvideo.video.streaming import GivenFrames, TimedFrame


class FolderFrames:
    """See `FrameSource` and `FileFrames`. An image that is missing or broken is an error that names it.

    Args:
        video: whose rate is known.
        short_side_px: that frames are resized to.
    """

    trouble = ""

    def __init__(self, video: ImageFrames, short_side_px: int) -> None:
        self.name, self._video, self._cuts = str(video), video, CutFinder()
        self._given = GivenFrames(self._looked_at(), short_side_px, name=self.name, rate=video.fps)
        self.time_base, self.rate = self._given.time_base, self._given.rate

    def __enter__(self) -> FolderFrames:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open between two images."""

    @property
    def duration_sec(self) -> float | None:
        """As the number of images and their rate tell."""
        return None if self._video.fps is None else self._video.num_frames / self._video.fps

    @property
    def cuts_sec(self) -> list[float]:
        """See `FileFrames`."""
        return [float(cut * self.time_base) for cut in self._cuts.cuts]

    @property
    def end(self) -> int:
        """See `FrameSource`."""
        return self._given.end

    def __iter__(self) -> Iterator[TimedFrame]:
        yield from self._given

    def _looked_at(self) -> Iterator[tuple[Tensor, float]]:
        for image, seconds in timed_images(self._video):
            y, x = brightness_places(image.shape[0], image.shape[1])
            # Of RGB, green is the nearest to brightness.
            self._cuts.add(round(Fraction(seconds) / self.time_base), image[y[:, None], x, 1].int().numpy())
            yield image, seconds
