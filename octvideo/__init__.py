"""octvideo: efficient video action recognition with 3D octave convolution.

How a video becomes a score, and where each step lives::

    file.mp4 ─ video/ ─▶ frames uint8 (T,H,W,C) ─ video/ ─▶ clip, views (V,C,T,H,W) ─ data/ ─▶ batch
       ─ models/ (octave/ inside) ─▶ logits (N·V,K) ─ evaluation/ ─▶ video scores (N,K) ─▶ top-1, top-5

Around it: training/ (Lightning), inference/ (a video in, class names out), explain/ (what a network looks at), pages/
(for a browser: runs, timelines, cards), serving/ (the same over HTTP), cli/ (the command `octvideo`). The laboratory
(benchmarks, arms, the paper's tables, fuzzing) is no part of the package: see tools/lab/ in the repository.
Below all of it, in one way each: files.py (folders, whole files, text), json_lines.py, class_names.py, download.py,
seeds.py, progress.py (how far work is), batches.py (what data/ gives and training/ takes), errors.py, compiling.py
(torch.compile, for any number of networks).
`octvideo.from_pretrained` gives a predictor out of a shared network: of inference/pretrained.py.
Shape letters everywhere: N batch, V views, C channels, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octvideo._version import __version__

if TYPE_CHECKING:
    from octvideo.inference.pretrained import from_pretrained

__all__ = ["__version__", "from_pretrained"]


def __getattr__(name: str) -> Any:
    if name == "from_pretrained":  # when it is asked for: it brings torch
        from octvideo.inference.pretrained import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
