"""How much a client may take of the server: bytes, seconds, places."""

from __future__ import annotations

from dataclasses import dataclass

from octvideo.errors import UserError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of the server.

    Args:
        max_bytes: of an uploaded video.
        max_length_sec: of a video.
        queue: requests that may wait, uploaded or still being so, beside those that are worked on.
        workers: videos that are decoded at once, each by a process.
        batch: clips of waiting videos that go through the network at once; None is what the engine likes.
        idle_sec: that a client may send nothing in the middle of a request.
        least_bytes_per_sec: that an upload must come with on average, once `idle_sec` are over.
        decode_sec: that a decoder may take for the views of a video, and may give no sign of life for a timeline.
        decode_bytes: memory that decoding a video may take.
        max_views: clips x crops that a request may ask for.
        max_windows: of a timeline.
        stop_sec: that the server, told to stop, works on what it has taken on.

    Raises:
        UserError: a bound below 1 where there must be one.
    """

    max_bytes: int = 200 * MIB
    max_length_sec: float = 600.0
    queue: int = 32
    workers: int = 2
    batch: int | None = None
    idle_sec: float = 10.0
    least_bytes_per_sec: int = 16 * 1024
    decode_sec: float = 60.0
    decode_bytes: int = 2 * 1024 * MIB
    max_views: int = 120
    max_windows: int = 20_000
    stop_sec: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "queue", "workers", "max_views", "max_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch: got {self.batch}, expected 1 or more")

    @property
    def places(self) -> int:
        """Requests that are taken on at once: those that wait, and those of the threads that answer."""
        return self.queue + self.predict_threads + self.timeline_threads

    @property
    def predict_threads(self) -> int:
        """While as many videos are decoded, as many others are computed or wait for it, decoded."""
        return 2 * self.workers

    @property
    def timeline_threads(self) -> int:
        """Long videos have decoders of their own, so that short ones do not wait for their end."""
        return max(1, self.workers // 2)
