"""A video network under Lightning: how it is run, and how whole videos are scored by it.

It receives batches (octvideo.data's) and never decodes. Scaling and normalising happen here, on the device, in float32
whatever the precision, as do metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from octvideo.batches import Batch, Views
from octvideo.compiling import compile_module
from octvideo.errors import NotFinite, UserError
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.scoring import Scoring
from octvideo.evaluation.view_scores import even_chunk, view_chunks
from octvideo.octave import SynchronisedNorms, arrange, fuse_training, unfuse
from octvideo.training.freezing import find_head
from octvideo.training.gradient_checkpoints import GradientCheckpoints
from octvideo.training.lightning_parts import KeepNorms
from octvideo.training.results import Evaluation
from octvideo.training.steps import compiler_errors_in_words, deterministic_pools, short_maps_in_float32
from octvideo.training.unreadable import OnUnreadable

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

log = logging.getLogger("octvideo.training")


class ScoringModule(L.LightningModule):
    """Runs a video network, and scores whole videos in validation, test and prediction.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K), its last nn.Linear being the classifier.
        mean, std: per channel, of pixels scaled to [0, 1].
        scoring: what makes scores of logits.
        views_per_chunk, on_unreadable, channels_last, fuse: see `VideoClassifier`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        scoring: Scoring,
        views_per_chunk: int | None,
        on_unreadable: OnUnreadable,
        channels_last: bool,
        fuse: bool,
    ) -> None:
        super().__init__()
        if views_per_chunk is not None and views_per_chunk < 1:
            raise UserError(f"views_per_chunk: got {views_per_chunk}, expected 1 or more")
        self.network = network
        self.num_classes = find_head(network).out_features
        self.mean, self.std = tuple(mean), tuple(std)
        # Pixels are 0..255 here; not in the state_dict, they are in the checkpoint's "octvideo" block.
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(3, 1, 1, 1), persistent=False)
        self.scoring, self.views_per_chunk = scoring, views_per_chunk
        self.channels_last, self.fuse, self._is_fused = channels_last, fuse, False
        if channels_last:
            arrange(network)
        self.checkpointed_blocks: GradientCheckpoints | None = None
        self.runs_by_graphs = self.synchronises = False
        self.evaluation = Evaluation(self.num_classes, on_unreadable, several=scoring.has_several)
        self._told_alike_views = False

    # ── network ─────────────────────────────────────────────────────────────────────────────────────────────

    def checkpoint_blocks(self) -> None:
        """Keeps of each block its input alone from now on."""
        self.checkpointed_blocks = GradientCheckpoints(self.network)

    def compile_network(self, mode: Literal[True] | CompileMode) -> None:
        """Compiles the network in place, so that no key of a checkpoint gets a prefix."""
        # CUDA graphs: what they return lies in memory of their own.
        self.runs_by_graphs = mode in ("reduce-overhead", "max-autotune")
        compile_module(self.network, mode=None if mode is True else mode)

    def setup(self, stage: str) -> None:
        """Checks the class count against the data's, and takes `--trainer.sync_batchnorm` over from Lightning, whose
        way of it knows no octave layers.
        """
        strategy = self.trainer.strategy
        wanted = getattr(strategy, "_layer_sync", None) is not None
        if wanted:
            strategy._layer_sync = KeepNorms()  # type: ignore[attr-defined]
        self.synchronises = wanted and self.trainer.world_size > 1
        names = self.names_of_data
        expected = len(names) if names else getattr(self.datamodule, "num_classes", self.num_classes)
        if expected != self.num_classes:
            raise UserError(
                f"the network has {self.num_classes} classes and the data {expected}: "
                f"set model.network.init_args.num_classes to {expected}"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScoringModule:
        """As nn.Module's, by which Lightning moves it to a device and makes its floats those of a precision such as
        bf16-true; but the latter is for the network alone: sums of losses and the mean of pixels keep their dtype.
        """
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)
        self.network._apply(fn)
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 clips (N, 3, T, H, W) to logits (N, K), float32 or float64."""
        x = (clips.float() - self.pixel_mean) / self.pixel_std
        x = x.to(next(self.network.parameters()).dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        modes = partial(self._modes, x)
        with compiler_errors_in_words(), modes():
            logits = self.network(x) if self.checkpointed_blocks is None else self.checkpointed_blocks(x, modes=modes)
        if self.runs_by_graphs:
            logits = logits.clone()  # the next call overwrites them
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextmanager
    def _modes(self, x: Tensor) -> Iterator[None]:
        """What the network runs in; blocks that are computed again do so too."""
        norms = SynchronisedNorms() if self.synchronises and self.training else nullcontext()
        with short_maps_in_float32(x), deterministic_pools(), norms:
            yield

    def view_scores(self, video: Tensor | Sequence[Views]) -> Tensor:
        """All views of each video to video scores (N, K), a bounded number of views at a time.

        Args:
            video: N videos whose views are cut here, as octvideo.data gives them; or views, (N, V, 3, T, H, W).
        """
        if not len(video):
            return torch.empty(0, self.num_classes, device=self.pixel_mean.device)
        num_views = video.shape[1] if isinstance(video, Tensor) else video[0].num_views
        size = self.views_per_chunk or even_chunk(num_views)
        logits = torch.cat([self(chunk) for chunk in view_chunks(video, size)])  # (N·V,K)
        return self.scoring.of_views(logits, len(logits) // len(video))  # (N,K)

    def fuse_on_cuda(self) -> None:
        """Fuses, where that is asked for and the network is on its device. Fused norms know their own process's batch
        only: where norms are synchronised, a network that an earlier run has fused is as before.
        """
        if self.synchronises and self._is_fused:
            unfuse(self.network)
            self._is_fused = False
        if self.fuse and not self._is_fused and not self.synchronises and self.device.type == "cuda":
            self.print(fuse_training(self.network))
            self._is_fused = True

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, batch: Batch, *, keep: bool) -> None:
        """Scores one batch of videos and counts it; `keep` keeps its scores for the run folder too."""
        self.evaluation.skip(batch["failures"])
        self.evaluation.look_at(batch["video"])
        scores, labels = self.view_scores(batch["video"]), batch["label"]
        finite = scores.isfinite().all(1).tolist()
        if False in finite:
            path = batch["path"][finite.index(False)]
            raise self.no_scores(f"scores of '{path}' are not finite in {self.evaluation.videos.role}")
        others = batch["others"] if self.scoring.has_several else None
        self.evaluation.count(scores, labels, others)
        if keep:
            self.evaluation.keep(batch["index"], batch["path"], labels, scores, others)

    def no_scores(self, problem: str) -> NotFinite:
        """The error for scores that are not finite."""
        wider = f"take a --trainer.precision of more range than {self.trainer.precision}"
        return NotFinite(f"{problem}, though the weights are: {wider}, or leave the video out (data.quarantine)")

    def on_validation_start(self) -> None:
        self.fuse_on_cuda()

    def on_test_start(self) -> None:
        self.fuse_on_cuda()

    def on_predict_start(self) -> None:
        self.fuse_on_cuda()

    def on_validation_epoch_start(self) -> None:
        self.evaluation.start("validation")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, keep=False)

    def on_validation_epoch_end(self) -> None:
        self.log_all(self.evaluation.values("val"))
        if self.scoring.has_several:
            self.scoring = replace(self.scoring, thresholds=self.evaluation.thresholds)
        if not self._told_alike_views:  # every epoch has the same
            self._told_alike_views = self._warn_of_alike_views()

    def on_test_epoch_start(self) -> None:
        self.evaluation.start("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, keep=True)

    def on_test_epoch_end(self) -> None:
        self.log_all(self.evaluation.values("test"))
        self._warn_of_alike_views()

    def on_predict_epoch_start(self) -> None:
        self.evaluation.start("prediction")

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, keep=True)

    def on_predict_epoch_end(self) -> None:
        self._warn_of_alike_views()

    def _warn_of_alike_views(self) -> bool:
        """Says which videos have views that are all alike; returns whether there are any."""
        said = self.evaluation.alike_views()
        if said and self.global_rank == 0:
            log.warning("%s: %s", self.evaluation.videos.role, said)
        return bool(said)

    def gather_scores(self) -> VideoScores:
        """Scores of the last test or prediction, in data set order; every process must call it."""
        scores, thresholds = self.evaluation.scores(self.class_names), self.scoring.thresholds
        return scores if thresholds is None else replace(scores, thresholds=np.array(thresholds))

    def log_all(self, values: dict[str, float]) -> None:
        """Logs metrics."""
        # torchmetrics has summed over the processes already: sync_dist only averages equal numbers.
        self.log_dict(values, sync_dist=True)

    # ── data ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def datamodule(self) -> Any:
        """The data of the run; None without one."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def class_names(self) -> list[str]:
        """Names from the data, or numbers where it has none."""
        return self.names_of_data or [str(k) for k in range(self.num_classes)]

    @property
    def names_of_data(self) -> list[str]:
        """Names of classes from the data; none where it has none."""
        return list(getattr(self.datamodule, "class_names", ()))
