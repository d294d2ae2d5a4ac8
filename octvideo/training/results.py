"""One evaluation: what is counted as batches pass, and the scores of all processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.batches import Failure
from octvideo.evaluation.alike_views import AlikeViews
from octvideo.evaluation.metrics import Sums, VideoMetrics, mean_of
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import SeveralMetrics, several_hot
from octvideo.training.unreadable import OnUnreadable, UnreadableVideos, gathered


class Evaluation(nn.Module):
    """Counts one pass over whole videos; a module, so that its sums live on the device of the network.

    Args:
        num_classes: K.
        on_unreadable: "raise" stops at a video that can't be read, "count" leaves it out and counts it.
        several: videos may have several labels.
    """

    def __init__(self, num_classes: int, on_unreadable: OnUnreadable, *, several: bool = False) -> None:
        super().__init__()
        self.num_classes, self.on_unreadable, self.several = num_classes, on_unreadable, several
        self.metrics: VideoMetrics | SeveralMetrics
        self.metrics = SeveralMetrics(num_classes) if several else VideoMetrics(num_classes)
        self.sums = Sums("loss", "known", "unreadable", *AlikeViews.COUNTS)
        self.videos = UnreadableVideos("evaluation")  # that could not be read, in all passes of one role
        # Of this process, on the CPU.
        self._scored: list[tuple[Tensor, list[str], Tensor, Tensor, Tensor]] = []

    def start(self, role: str) -> None:
        """Forgets the pass before; `role` ("validation", "test", "prediction") is for messages."""
        self._scored = []
        if role != self.videos.role:
            self.videos = UnreadableVideos(role)
        self.videos.start_pass()
        for metric in (self.metrics, self.sums):
            metric.reset()

    def skip(self, failures: Iterable[Failure]) -> None:
        """Takes the videos of a batch that could not be read.

        Raises:
            UserError: there is one, and `on_unreadable` is "raise".
        """
        failures = list(failures)
        if self.on_unreadable == "raise":
            self.videos.raise_first(failures)
        self.videos.add(failures)
        self.sums.update(unreadable=len(failures))

    def look_at(self, videos: Iterable[object]) -> None:
        """Takes note of videos whose views are all alike."""
        alike = AlikeViews()
        for video in videos:
            alike.add(getattr(video, "alike", (False, False)))
        self.sums.update(**alike.counts)

    def count(self, scores: Tensor, labels: Tensor, others: Tensor | None = None) -> None:
        """Adds videos to the metrics: scores (N, K) and labels (N,), -1 where there is none; N may be 0.

        Args:
            scores, labels: as said.
            others: labels beside the first, (N, M), where there may be several.
        """
        known = labels >= 0
        if self.several:
            truth = self._truth(labels, others)
            self.metrics.update(scores, truth)
            nll = -scores.where(truth, 1 - scores).clamp_min(1e-12).log().mean(1)
            self.sums.update(loss=nll.where(known, 0).sum(), known=known.sum())
            return
        self.metrics.update(scores, labels)
        own = scores.gather(1, labels.clamp_min(0)[:, None])[:, 0]  # (N,)
        nll = -own.clamp_min(1e-12).log()
        self.sums.update(loss=nll.where(known, 0).sum(), known=known.sum())

    def _truth(self, labels: Tensor, others: Tensor | None) -> Tensor:
        none = labels.new_empty(len(labels), 0)
        return several_hot(labels, none if others is None else others, self.num_classes)

    def keep(
        self, index: Tensor, paths: Iterable[str], labels: Tensor, scores: Tensor, others: Tensor | None = None
    ) -> None:
        """Keeps a batch for `scores`: places in the data set (N,), paths, labels (N,), scores (N, K), others (N, M)."""
        truth = self._truth(labels, others).cpu() if self.several else torch.empty(len(labels), 0, dtype=torch.bool)
        self._scored.append((index.cpu(), list(paths), labels.cpu(), scores.float().cpu(), truth))

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of the classes, by the videos of the last pass over several labels, once `values` has been asked for."""
        return getattr(self.metrics, "thresholds", None)

    def values(self, prefix: str) -> dict[str, float]:
        """Metrics of the pass over all processes, by name: those of `VideoMetrics`, loss, unreadable."""
        values = {f"{prefix}/{name}": float(value) for name, value in self.metrics.compute().items()}
        sums = self.sums.compute()
        values[f"{prefix}/loss"] = mean_of(sums["loss"], sums["known"])
        values[f"{prefix}/unreadable"] = sums["unreadable"]
        return values

    def alike_views(self) -> str:
        """What to say of videos whose views are all alike, over all processes; "" where there are none."""
        sums = self.sums.compute()
        return AlikeViews({name: int(sums[name]) for name in AlikeViews.COUNTS}).in_words()

    def scores(self, class_names: list[str]) -> VideoScores:
        """Scores of all processes in data set order; every process must call it, and every one gets them all."""
        none = torch.empty(0, dtype=torch.int64)
        no_truth = torch.empty(0, self.num_classes if self.several else 0, dtype=torch.bool)
        batches = [(none, list[str](), none, torch.empty(0, self.num_classes), no_truth)]
        batches += [batch for part in gathered(self._scored) for batch in part]
        indices, paths, labels, scores, truth = zip(*batches, strict=True)
        all_paths = [path for part in paths for path in part]
        # unique: a video that two processes had (a sampler that pads by repeating) is one video.
        _, order = np.unique(torch.cat(indices).numpy(), return_index=True)
        columns = torch.cat(labels).numpy()[order], torch.cat(scores).numpy()[order]
        held = torch.cat(truth).numpy()[order] if self.several else None
        return VideoScores([all_paths[i] for i in order], *columns, class_names, held)
