"""What makes scores of a network's logits, and names of scores. It belongs to the weights: a checkpoint's "octvideo"
block and the octvideo.json of an exported model hold it, and what they do not say is a softmax without thresholds.

Needs torch only, so that serving loads no metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.evaluation.view_scores import best_classes, video_scores

ScoreFunction = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Scoring:
    """From logits to scores, and from scores to labels.

    Args:
        function: "softmax" where a video has one label, "sigmoid" where it has any number of them.
        thresholds: for each class the score from which on a video has it, (K,); None where labels are not told apart.
        temperature: that scores of a softmax are cooled by: p^(1/T), made to sum to 1. Of a single view that is the
            softmax of logits / T. The order of the classes stays.

    Raises:
        UserError: a value that can't be meant.

    Example:
        >>> Scoring("sigmoid").of_views(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), num_views=2)
        tensor([[0.6904, 0.3096]])
    """

    function: ScoreFunction = "softmax"
    thresholds: tuple[float, ...] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.function not in ("softmax", "sigmoid"):
            raise UserError(f"scoring: got function {self.function!r}, expected softmax or sigmoid: upgrade octvideo")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"scoring: got temperature {self.temperature}, expected more than 0")
        if self.temperature != 1 and self.function != "softmax":
            raise UserError("scoring: a temperature is for networks of one label a video")

    @property
    def has_several(self) -> bool:
        """Whether a video may have several labels."""
        return self.function == "sigmoid"

    def of_views(self, logits: Tensor, num_views: int) -> Tensor:
        """Scores of videos: see `video_scores`."""
        return self.cooled(video_scores(logits, num_views, self.function))

    def cooled(self, scores: Tensor) -> Tensor:
        """Scores of a softmax (..., K) at the temperature."""
        if self.temperature == 1:
            return scores
        return (scores.double().log() / self.temperature).softmax(-1).to(scores.dtype)

    def labels_of(self, scores: Tensor) -> list[int] | None:
        """The classes whose score reaches their threshold, the best first; None where there are no thresholds.

        Args:
            scores: of a video, (K,).
        """
        if self.thresholds is None:
            return None
        reached = scores.double() >= torch.tensor(self.thresholds, dtype=torch.float64)
        return [number for number in best_classes(scores, len(scores)).tolist() if reached[number]]

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for a file."""
        thresholds = None if self.thresholds is None else [float(value) for value in self.thresholds]
        return {"function": self.function, "thresholds": thresholds, "temperature": float(self.temperature)}

    @classmethod
    def from_dict(cls, held: Mapping[str, Any] | None, *, num_classes: int) -> Scoring:
        """What `as_dict` gave; None is what there was before: a softmax.

        Raises:
            UserError: it holds something else.
        """
        if held is None:
            return cls()
        try:
            thresholds = held.get("thresholds")
            given = None if thresholds is None else tuple(float(value) for value in thresholds)
            function, temperature = held["function"], float(held.get("temperature", 1.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"scoring: got {str(held)[:80]}, expected function, thresholds, temperature") from error
        if given is not None and len(given) != num_classes:
            raise UserError(f"scoring: got {len(given)} thresholds for {num_classes} classes")
        return cls(function, given, temperature)

    def reordered(self, order: Sequence[int]) -> Scoring:
        """For a head whose rows have been moved: row n is what row order[n] was."""
        if self.thresholds is None:
            return self
        return Scoring(self.function, tuple(self.thresholds[number] for number in order), self.temperature)
