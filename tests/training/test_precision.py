"""Lightning's precisions: the network computes in them; batches pass through, losses and scores are float32 or more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from lightning.pytorch.utilities.data import extract_batch_size
from torch import nn

from octvideo.batches import Failure
from octvideo.data.dataset import Item
from octvideo.data.loading import Collate, MovableBatch
from octvideo.models import i3d_small
from octvideo.training import VideoClassifier
from octvideo.training.steps import precision_advice
from octvideo.video import VideoViews
from octvideo.video.transforms import Box

# Of the network's weights, and how far its scores may be from those of float32.
PRECISIONS = {
    "32-true": (torch.float32, 0.0),
    "bf16-mixed": (torch.float32, 0.02),
    "16-mixed": (torch.float32, 0.02),
    "bf16-true": (torch.bfloat16, 0.02),
    "16-true": (torch.float16, 0.004),
    "64-true": (torch.float64, 1e-5),
}
K = 3


def views(number: int) -> VideoViews:
    """2 clips of 8 frames."""
    frames = torch.randint(0, 256, (16, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return VideoViews(frames, np.arange(16).reshape(2, 8), (Box(0, 4, 32, 32),))


def collated(count: int, *, training: bool) -> MovableBatch:
    broken = Failure("broken.mp4", "no video", 99)
    videos = [views(n).cut(0, 1)[0] if training else views(n) for n in range(count)]
    items = [Item(video, n % K, n, f"{n}.mp4") for n, video in enumerate(videos)]
    return Collate((3, 8, 32, 32) if training else None)([*items, broken])


def loader(*batches: MovableBatch) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


@dataclass
class Ran:
    module: VideoClassifier
    scores: torch.Tensor
    logged: dict[str, torch.Tensor]


def fit_and_test(folder: Any, precision: Any, **settings: Any) -> Ran:
    torch.manual_seed(0)
    network = i3d_small(num_classes=K, width=8, alpha=0.25, dropout=0.0)
    module = VideoClassifier(
        network, lr=1e-4, max_unreadable_fraction=1.0, on_unreadable="count", mean=(0.1, 0.2, 0.3), **settings
    )
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        default_root_dir=folder,
        enable_model_summary=False,
        **quiet,
    )
    training, evaluation = loader(collated(3, training=True)), loader(collated(4, training=False))
    trainer.fit(module, training, evaluation)
    trainer.validate(module, evaluation, verbose=False)
    trainer.predict(module, evaluation)
    trainer.test(module, evaluation, verbose=False)
    return Ran(module, torch.from_numpy(module.gather_scores().scores), dict(trainer.callback_metrics))


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return fit_and_test(tmp_path_factory.mktemp("float32"), "32-true")


# On a CPU, Lightning takes bf16-mixed for 16-mixed.
@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=pytest.mark.slow if p == "16-mixed" else ()) for p in PRECISIONS]
)
def test_a_precision_is_the_networks_alone(tmp_path: Any, precision: str, in_float32: Ran) -> None:
    ran = fit_and_test(tmp_path, precision)
    dtype, tolerance = PRECISIONS[precision]
    assert {parameter.dtype for parameter in ran.module.network.parameters()} == {dtype}
    assert ran.module.pixel_mean.flatten().tolist() == pytest.approx([25.5, 51.0, 76.5], rel=1e-7)
    assert ran.scores.isfinite().all()
    torch.testing.assert_close(ran.scores, in_float32.scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(ran.scores.sum(1), torch.ones(4), rtol=0, atol=1e-6)
    # The logged loss is of the very scores that are kept.
    expected = -ran.scores[torch.arange(4), torch.arange(4) % K].log().mean()
    torch.testing.assert_close(ran.logged["test/loss"], expected, rtol=1e-6, atol=0)
    assert ran.logged["test/unreadable"] == 1


@pytest.mark.parametrize(
    "precision", ["bf16-true", *(pytest.param(p, marks=pytest.mark.slow) for p in ("16-true", "64-true"))]
)
def test_mixup_and_the_layout_of_the_own_kernel_work_in_it(tmp_path: Any, precision: str) -> None:
    ran = fit_and_test(tmp_path, precision, mixup_alpha=0.4, label_smoothing=0.1, channels_last=True, optimizer="adamw")
    assert ran.scores.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in ran.module.network.parameters())


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_kernel_longer_than_its_map_learns_in_bf16(mixed: bool, compiled: bool) -> None:
    """oneDNN's gradient of such a weight is what lay in memory."""

    def gradients(dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(0)
        conv = nn.Conv3d(3, 32, (3, 3, 3), padding=1)
        head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, K))
        module = VideoClassifier(nn.Sequential(conv, head), compile=compiled)
        module.network.to(torch.float32 if mixed else dtype)
        with torch.autocast("cpu", dtype, enabled=mixed and dtype != torch.float32):
            logits = module(torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        assert conv.weight.grad is not None
        return conv.weight.grad.float()

    expected = gradients(torch.float32)
    assert (gradients(torch.bfloat16) - expected).norm() < 0.05 * expected.norm()


def test_a_batch_passes_whatever_of_lightning_walks_it() -> None:
    for training in (True, False):
        batch = collated(2, training=training)
        assert HalfPrecision("bf16-true").convert_input(batch) is batch
        assert DoublePrecision().convert_input(batch) is batch
        assert extract_batch_size(batch) == 2
        moved = move_data_to_device(batch, torch.device("meta"))
        assert moved["label"].device.type == moved["index"].device.type == "meta"
        assert (moved["failures"], moved["path"]) == (batch["failures"], batch["path"])
    (first, _) = moved["video"]
    assert isinstance(first, VideoViews) and first.frames.device.type == "meta" and first.num_views == 2


@pytest.mark.parametrize(
    ("precision", "device", "pays", "advice"),
    [
        ("bf16-mixed", "cpu", False, "--trainer.precision 32-true is no slower than bf16-mixed"),
        ("bf16-mixed", "cpu", True, None),
        ("32-true", "cpu", False, None),
        ("16-mixed", "cuda", False, None),
        ("bf16-mixed", "cuda", False, "--trainer.precision 16-mixed is faster than bf16-mixed"),
        ("bf16-true", "cuda", True, None),
    ],
)
def test_a_device_that_gains_nothing_by_bf16_is_told(
    precision: str, device: str, pays: bool, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octvideo.training.steps.bf16_pays", lambda: pays)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: pays)
    said = precision_advice(precision, torch.device(device))
    assert said is None if advice is None else (said or "").endswith(advice)
