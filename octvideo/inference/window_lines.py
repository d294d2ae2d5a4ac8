"""How the scores of a window are written: the best classes, and all others that are not next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LEAST = 0.005  # scores that are kept whatever their rank


class TopClasses:
    """What is kept of a window's scores.

    Args:
        names: of the classes.
        topk: classes that are kept, at least.
        classes: among which; None is all.
    """

    def __init__(self, names: Sequence[str], topk: int, classes: Sequence[int] | None) -> None:
        self._names, self._index, self._topk = names, {name: n for n, name in enumerate(names)}, topk
        self._among = torch.tensor(range(len(names)) if classes is None else sorted(classes))

    def of(self, scores: Tensor) -> dict[int, float]:
        """Classes and scores out of scores (K,), the best first, as they are written."""
        kept = scores[self._among]
        ranked = kept.sort(descending=True, stable=True)
        num_kept = max(self._topk, int((kept >= _LEAST).sum()))
        numbers = self._among[ranked.indices[:num_kept]].tolist()
        return {n: round(score, 6) for n, score in zip(numbers, ranked.values.tolist(), strict=False)}

    def listed(self, top: Mapping[int, float]) -> list[dict[str, Any]]:
        """[{"name", "score"}]."""
        return [{"name": self._names[n], "score": score} for n, score in top.items()]

    def of_listed(self, listed: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """What `of` gave, out of `listed`."""
        return {self._index[one["name"]]: one["score"] for one in listed}
