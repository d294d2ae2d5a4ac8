"""Temporal shift (TSM, Lin et al., arXiv 1811.08383): some channels of each frame come from its neighbours in time.

Networks of images see the frames of N clips as a batch of N·T images, clip by clip. A shift in front of a convolution
lets it see three frames, at no multiply-add and no parameter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.features import Octave
from octvideo.octave.partition import Partition

Run = tuple[int, int]  # of a map's channels, from the first: those from the next frame, then those from the one before


class TemporalShift(nn.Module):
    """Takes a share of channels from the next frame and as many from the frame before; zeros at the clip's ends.

    Of C channels the first floor(share · C) are the next frame's and as many after them the previous frame's, as in the
    authors' code. An octave pair shifts the same channels, wherever they lie: those of a map are its first ones.

    Args:
        channels: C, or the partition of a pair.
        share: of channels, in each direction.
        online: only from the frame before, which a stream has: the first floor(share · C) channels.

    Attributes:
        share, online: as given.
        partition: of what comes in; all its channels are high where that is a Tensor.
        high, low: runs of channels of each map.

    Raises:
        ValueError: a share that no network can shift by.

    Example:
        >>> frames = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1).expand(3, 4, 1, 1)
        >>> TemporalShift(4, 0.25)(frames, num_frames=3).squeeze()
        tensor([[2., 0., 1., 1.],
                [3., 1., 2., 2.],
                [0., 2., 3., 3.]])
    """

    def __init__(self, channels: int | Partition, share: float, *, online: bool = False) -> None:
        super().__init__()
        most = 1.0 if online else 0.5
        if not 0.0 < share <= most:
            raise ValueError(f"shift: got {share}, expected the share of channels in each direction, up to {most:g}")
        self.share, self.online = share, online
        self.partition = channels if isinstance(channels, Partition) else Partition((False,) * channels)
        moved = int(share * self.partition.num_channels + 1e-9)  # the term keeps 1/3 of 3 at 1
        ends = (0, moved) if online else (moved, 2 * moved)
        self.high, self.low = (_run(own, *ends) for own in (self.partition.high, self.partition.low))

    def forward(self, x: Tensor | Octave, num_frames: int) -> Tensor | Octave:
        """Frames (N·T, C, H, W) or a pair of them, T being num_frames, to the same."""
        if isinstance(x, Octave):
            return Octave(shifted(x.high, self.high, num_frames), shifted(x.low, self.low, num_frames))
        return shifted(x, self.high, num_frames)

    def extra_repr(self) -> str:
        return f"share={self.share:g}, online={self.online}, {self.partition!r}"


def _run(channels: tuple[int, ...], next_end: int, previous_end: int) -> Run:
    """How many of a map's channels, in order, lie before each end."""
    from_next = sum(channel < next_end for channel in channels)
    return from_next, sum(channel < previous_end for channel in channels) - from_next


def shifted(x: Tensor, run: Run, num_frames: int) -> Tensor:
    """A map (N·T, C, H, W) whose first channels are those of the next frame, and then of the one before."""
    from_next, from_previous = run
    if from_next + from_previous == 0:
        return x
    # As clips: of channels-last frames this is a view in channels_last_3d, and so is the result's way back.
    clips = x.unflatten(0, (-1, num_frames)).transpose(1, 2)  # (N,C,T,H,W)
    rest = from_next + from_previous
    parts = [clips[:, rest:]]
    if from_previous:
        parts.insert(0, F.pad(clips[:, from_next:rest, :-1], (0, 0, 0, 0, 1, 0)))
    if from_next:
        parts.insert(0, F.pad(clips[:, :from_next, 1:], (0, 0, 0, 0, 0, 1)))
    return torch.cat(parts, 1).transpose(1, 2).flatten(0, 1)
