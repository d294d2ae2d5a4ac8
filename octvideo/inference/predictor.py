"""Predictor: a checkpoint (or pytorchvideo's published weights) and everything its scores depend on, in one
object.

The checkpoint itself says how the network was built, how clips are cut from a video and what the classes are
called (its "octvideo" block), so no config is needed to use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.evaluation.metrics import video_scores
from octvideo.inference.checkpoint import build_network, read_checkpoint
from octvideo.models import i3d_r50
from octvideo.models.weights import load_weights, read_weights
from octvideo.video import ViewSettings, read_views


@dataclass(frozen=True)
class Prediction:
    """The best classes of one video.

    Args:
        path: the video.
        top: (class name, score) from best to worst; scores are softmax, averaged over the views.
    """

    path: str
    top: list[tuple[str, float]]


class Predictor:
    """Classifies videos with one network.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K).
        class_names: K names.
        views: how clips are cut from a video.
        mean: per channel, of pixels scaled to [0, 1].
        std: likewise.
        source: which weights these are, for people.
        device: "auto" is CUDA where there is one.
        views_per_chunk: the most views that go through the network at once.

    Example:
        >>> predictor = Predictor.from_checkpoint("runs/demo/checkpoints/last.ckpt")  # doctest: +SKIP
        >>> predictor.predict("video.mp4").top[0]  # doctest: +SKIP
        ('moves_left', 0.98)
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        *,
        views: ViewSettings,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
        source: str = "given network",
        device: str = "auto",
        views_per_chunk: int = 8,
    ) -> None:
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.class_names = list(class_names)
        self.views, self.source, self.views_per_chunk = views, source, views_per_chunk
        self._mean = 255 * torch.tensor(list(mean), device=self.device).view(3, 1, 1, 1)
        self._std = 255 * torch.tensor(list(std), device=self.device).view(3, 1, 1, 1)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str = "auto") -> Predictor:
        """Builds the network that a checkpoint of `octvideo fit` describes, with its weights.

        Args:
            path: of the checkpoint.
            device: "auto", "cpu", "cuda", "cuda:1", ...

        Raises:
            UserError: no such file, or none of ours.
        """
        block = read_checkpoint(path)["octvideo"]
        network = build_network(block, path)
        load_weights(network, read_weights(path), head="strict")
        views = ViewSettings() if block["views"] is None else ViewSettings.from_dict(block["views"])
        return cls(
            network,
            block["class_names"],
            views=views,
            mean=block["mean"],
            std=block["std"],
            source=str(path),
            device=device,
        )

    @classmethod
    def from_pytorchvideo(cls, *, device: str = "auto") -> Predictor:
        """I3D ResNet-50 8x8 with pytorchvideo's published Kinetics-400 weights, downloaded once into torch's
        cache.

        Raises:
            UserError: neither in the cache nor to be had from the network.
        """
        from pytorchvideo.models.hub.resnet import checkpoint_paths

        url = checkpoint_paths["i3d_r50"]
        try:
            weights = read_weights(url)
        except UserError as error:
            raise UserError(
                f"no weights given, and {error}. Give --ckpt PATH (or --ckpt last for the newest of your own)"
            ) from error
        network = i3d_r50(num_classes=400, alpha=0.0)
        load_weights(network, weights, head="strict")
        # Read as a file: octvideo.data, whose list it is, is not for inference to import.
        labels = files("octvideo").joinpath("data/labels/kinetics400.txt").read_text(encoding="utf-8")
        return cls(
            network,
            labels.splitlines(),
            views=ViewSettings(),
            source=f"pytorchvideo's Kinetics-400 I3D ({url})",
            device=device,
        )

    def scores(self, path: str | Path) -> Tensor:
        """Scores (K,) of a video, on the CPU.

        Raises:
            VideoReadError: the video can't be read.
        """
        views = read_views(path, self.views)  # uint8 (V,C,T,H,W)
        logits = []
        with torch.inference_mode():
            for chunk in views.split(self.views_per_chunk):
                clips = (chunk.to(self.device, torch.float32) - self._mean) / self._std
                logits.append(self.network(clips).float())
        return video_scores(torch.cat(logits), len(views))[0].cpu()  # (V,K) → (K,)

    def predict(self, path: str | Path, *, topk: int = 5) -> Prediction:
        """The `topk` best classes of a video.

        Raises:
            VideoReadError: the video can't be read.
        """
        values, classes = self.scores(path).topk(min(topk, len(self.class_names)))
        top = [(self.class_names[k], value) for k, value in zip(classes.tolist(), values.tolist(), strict=True)]
        return Prediction(str(path), top)


def pick_device(name: str) -> torch.device:
    """The device of that name, "auto" being CUDA where there is one.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' can't be used here: {str(error).splitlines()[0]}") from error
