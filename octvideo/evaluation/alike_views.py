"""Videos whose views are all alike: too short for more clips than one, or as wide as high. Their average says no more
than one view, at the cost of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class AlikeViews:
    """Counts them.

    Args:
        counts: from before, by `COUNTS`.
    """

    COUNTS: ClassVar = ("viewed", "alike_clips", "alike_crops")

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = {name: 0 if counts is None else counts[name] for name in self.COUNTS}

    def add(self, alike: tuple[bool, bool]) -> None:
        """One video: whether all of its several clips are alike, and all of its several crops."""
        for name, count in zip(self.COUNTS, (True, *alike), strict=True):
            self.counts[name] += count

    def in_words(self) -> str:
        """What to say of them, with the way to spend no time on them; "" where there are none."""
        viewed, clips, crops = (self.counts[name] for name in self.COUNTS)
        said = []
        if clips:
            short = "too short for several: num_clips 1 gives them the same scores in less time"
            said.append(f"all clips of {clips} of {viewed} videos show the same frames, as these are {short}")
        if crops:
            square = "as wide as high: num_crops 1 gives them the same scores in less time"
            said.append(f"all crops of {crops} of {viewed} videos are the same, as these are {square}")
        return "; ".join(said)
