"""Which form pooling and upsampling of clips take in a graph that is exported: engines differ.

OpenVINO computes 3-D maps with channels last, and reorders a map wherever a graph folds its frames away; ONNX Runtime
is fast on folded frames only. Oct-I3D-50 (alpha .25, one thread with AVX2) took, as a share of I3D-50's time in the
same engine, in OpenVINO 1.06 with frames folded into channels and .88 without; in ONNX Runtime .89 and 1.41.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# A plain global, which every torch.compile can read. Results do not depend on it, so threads need none of their own.
_unfolded = False


@contextmanager
def unfolded_clips() -> Iterator[None]:
    """Within it, clips are pooled and upsampled by torch's 3-D operations."""
    global _unfolded
    before, _unfolded = _unfolded, True
    try:
        yield
    finally:
        _unfolded = before


def clips_stay_unfolded() -> bool:
    """Whether `unfolded_clips` is in force."""
    return _unfolded
