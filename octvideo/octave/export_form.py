"""Which form pooling and upsampling of clips take in a graph that is exported: engines differ.

OpenVINO computes 3-D maps with channels last, and reorders a map wherever a graph folds its frames away; ONNX Runtime
is fast on folded frames only. Oct-I3D-50 (alpha .25, one thread with AVX2) took, as a share of I3D-50's time in the
same engine, in OpenVINO 1.06 with frames folded into channels and .88 without; in ONNX Runtime .89 and 1.41.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Form = Literal["folded", "unfolded"]
_form: Form = "folded"  # not a ContextVar, which torch.compile does not read


@contextmanager
def export_form(form: Form) -> Iterator[None]:
    """Within it, torch.export records clips in that form.

    Args:
        form: "folded" folds the frames into the channels around pooling and upsampling (ONNX Runtime, and what is
            recorded without asking); "unfolded" has torch's 3-D operations (OpenVINO, AOTInductor).
    """
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def clips_stay_unfolded() -> bool:
    """Whether graphs are recorded with 3-D operations."""
    return _form == "unfolded"


def is_exporting() -> bool:
    """Whether torch.export records a graph: for engines that want torch's own operations.

    Before torch 2.7 nothing tells; graphs then have the forms of octvideo/octave/arrange.py: right, and slower there.
    """
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked is not None and bool(asked())


def may_be_exporting() -> bool:
    """Likewise, for graphs that must hold for any size: before torch 2.7 every graph that is compiled may be one."""
    return torch.compiler.is_compiling() and (is_exporting() or not hasattr(torch.compiler, "is_exporting"))
