"""Saliency of a video: one clip of it for a picture, or clip after clip for all of its frames."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.class_names import ClassIndex
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.explain.layers import check_layer, last_layer, passes_beside
from octvideo.explain.saliency import Method, Saliency, explain_clip
from octvideo.inference.checkpoint import EXPORT_FILE, network_of_checkpoint
from octvideo.inference.device import pick_device
from octvideo.inference.preparation import Normaliser
from octvideo.video import Box, FileFrames, Source, ViewSettings, decode_views, frame_windows, window_views
from octvideo.video.windows import clip_seconds


@dataclass(frozen=True)
class ExplainedClip:
    """One clip of a video.

    Args:
        frames: as the network saw them, uint8 (T, S, S, 3).
        saliency: of the clip.
        start_sec, end_sec: of the part of the video that it stands for; 0 where it is not known.
        box: of the crop in the resized frame.
        frame_size: of the resized frame, (h, w).
    """

    frames: np.ndarray
    saliency: Saliency
    start_sec: float
    end_sec: float
    box: Box
    frame_size: tuple[int, int]


class Explainer:
    """A network, and what its scores depend on.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K).
        class_names: K names.
        views: how clips are cut from a video.
        mean, std: per channel, of pixels scaled to [0, 1].
        scoring: what makes scores of logits.
        method: of `explain_clip`.
        layer: name of a module; None is `octvideo.explain.layers.last_layer`.
        device: "auto" is CUDA where there is one.

    Example:
        >>> explainer = Explainer.from_checkpoint("runs/demo/checkpoints/last.ckpt")  # doctest: +SKIP
        >>> clip = explainer.middle_clip("video.mp4", explainer.predicted("video.mp4")[0])  # doctest: +SKIP
        >>> clip.saliency.maps["low"].shape  # doctest: +SKIP
        (4, 4, 4)
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        *,
        views: ViewSettings,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
        method: Method = "gradcam",
        layer: str | None = None,
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.class_names, self.views, self.method = list(class_names), views, method
        self._scoring = scoring
        self._normalise = Normaliser(mean, std, self.device)
        if layer is not None:
            check_layer(self.network, layer)
        self.layer = layer or last_layer(self.network, self._empty_clip())

    def _empty_clip(self) -> Tensor:
        shape = (1, 3, self.views.clip_frames, self.views.crop_px, self.views.crop_px)
        return torch.zeros(shape, device=self.device)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, method: Method = "gradcam", layer: str | None = None, device: str = "auto"
    ) -> Explainer:
        """Builds the network that a checkpoint of `octvideo fit` describes.

        Args:
            path: of the checkpoint.
            method, layer, device: see `Explainer`.

        Raises:
            UserError: no such file, or none of ours; no such layer or device.
        """
        check_no_export(path)
        network, settings = network_of_checkpoint(path)
        settings.pop("source")
        return cls(network, settings.pop("class_names"), **settings, method=method, layer=layer, device=device)

    def class_index(self, name: str) -> int:
        """The class of a name.

        Raises:
            UserError: there is none.
        """
        return ClassIndex(self.class_names).need(name, "--class")

    def passes_beside(self) -> bool:
        """Whether scores depend on more than the layer gives: on a shortcut around it, say, which no map shows."""
        return passes_beside(self.network, self.layer, self._empty_clip())

    def scores(self, video: Source) -> Tensor:
        """Scores (K,) of a video: those of the network's own clips, centre crops alone.

        Raises:
            VideoReadError: the video can't be read.
        """
        views = decode_views(video, replace(self.views, num_crops=1))
        logits = []
        with torch.inference_mode():
            for n in range(views.num_views):
                logits.append(self.network(self._normalise(views.cut(n, n + 1))))
        return self._scoring.of_views(torch.cat(logits), len(logits))[0].cpu()

    def predicted(self, video: Source) -> tuple[int, float]:
        """The class with the highest score, and that score."""
        scores = self.scores(video)
        return int(scores.argmax()), float(scores.max())

    def middle_clip(self, video: Source, class_index: int) -> ExplainedClip:
        """The clip in the middle of a video, its centre crop.

        Raises:
            VideoReadError: the video can't be read.
            UserError: see `explain_clip`.
        """
        views = decode_views(video, replace(self.views, num_clips=1, num_crops=1))
        return self._explained(views.cut(), views.boxes[0], views.frames.shape[1:3], class_index, (0.0, 0.0))

    def clips(
        self, video: Source, class_index: int, *, on_clip: Callable[[float], None] = lambda end_sec: None
    ) -> Generator[ExplainedClip, None, None]:
        """Clip after clip of a whole video, each as it is computed.

        Args:
            video: a file, or its address.
            class_index: whose score is followed.
            on_clip: is told the end of each clip, in seconds.

        Raises:
            VideoReadError: the video can't be read.
            UserError: see `explain_clip`.
        """
        views = replace(self.views, num_clips=1, num_crops=1)
        # Windows that each last for one clip, and do not overlap.
        with FileFrames(video, views.short_side_px) as frames:
            length = float(clip_seconds(views, frames.rate or Fraction(25)))
            for window in frame_windows(frames, views, window_sec=length, stride_sec=length):
                cut = window_views(window, views)
                times = window.start_sec, window.end_sec
                yield self._explained(cut.cut(), cut.boxes[0], cut.frames.shape[1:3], class_index, times)
                on_clip(window.end_sec)

    def _explained(
        self, views: Tensor, box: Box, size: Sequence[int], class_index: int, times: tuple[float, float]
    ) -> ExplainedClip:
        clip = self._normalise(views)[0]
        saliency = explain_clip(self.network, clip, class_index, method=self.method, layer=self.layer)
        frames = views[0].permute(1, 2, 3, 0).cpu().numpy()  # (T,S,S,3)
        return ExplainedClip(frames, saliency, *times, box, (int(size[0]), int(size[1])))


def check_no_export(path: str | Path) -> None:
    """Raises where a path is an exported model.

    Raises:
        UserError: it is one.
    """
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    if (folder / EXPORT_FILE).is_file() and given.suffix != ".ckpt":
        raise UserError(
            f"{path} is an exported model, which holds no layers: give the run or checkpoint it was made of"
        )
