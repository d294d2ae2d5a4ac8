"""A training step never waits for a GPU: on fake CUDA tensors, whatever would bring one to the host is an error."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from octvideo.data.loading import MovableBatch
from octvideo.octave import octavize
from octvideo.training import VideoClassifier
from octvideo.training.callbacks import ProgressBar
from tests.fake_cuda import needs_fake_cuda

K, STEPS = 5, 4
# What must know a value on the host: an element, or how many elements a result has.
_WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2")


class WaitError(RuntimeError):
    """The host would have waited."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations that wait for a GPU, while `is_on`. A copy between devices, from memory that is not pinned,
    waits too, in either direction."""

    is_on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_fused_"):  # an optimizer's kernel, which fake tensors have not
            return None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if self.is_on and name in _WAITING and any(tensor.is_cuda for tensor in tensors):
            raise WaitError(f"{func} of a CUDA tensor")
        if name == "_local_scalar_dense":
            return 0.5 if args[0].is_floating_point() else 1  # there is none to read
        if not self.is_on:
            return func(*args, **(kwargs or {}))
        if name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise WaitError(f"{func} by a mask")
        out = func(*args, **(kwargs or {}))
        # An index on the host, say, is copied to the device; not so a single element, which is a kernel's argument.
        is_copy = name in ("_to_copy", "copy_")
        several = [*tensors, out] if is_copy else [tensor for tensor in tensors if tensor.dim()]
        if len({tensor.device for tensor in several}) > 1:
            raise WaitError(f"{func} between devices")
        return out


class WithoutEngine(VideoClassifier):
    """Autograd's engine asks for a real GPU: gradients of the right shapes, not from it."""

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        for parameter in self.network.parameters():
            parameter.grad = torch.empty_like(parameter)


class FakeCuda(Accelerator):
    """Lightning's words for a GPU that is not there."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return [torch.device("cuda", 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "fake"

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...


class FakeStrategy(SingleDeviceStrategy):
    """One device; fake tensors are there already, and stay."""

    def model_to_device(self) -> None: ...

    def teardown(self) -> None: ...


class StepsAlone(L.Callback):
    """Turns a mode on for all of an epoch but its first step, in which Lightning makes what it logs by, and its last,
    after which everything is read.
    """

    def __init__(self, mode: NoWaiting) -> None:
        self.mode, self.seen = mode, 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.mode.is_on = 0 < batch_idx < STEPS - 1
        self.seen += self.mode.is_on

    def on_exception(self, *args: Any) -> None:
        self.mode.is_on = False


def octave_network() -> nn.Module:
    layers = [nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1)]
    head = [nn.BatchNorm3d(8), nn.Conv3d(8, 8, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, K)]
    return octavize(nn.Sequential(*layers, *head), {"3": 0.5})


def as_fake_cuda(module: VideoClassifier) -> VideoClassifier:
    """Its tensors as fake ones on CUDA, of the same shapes; in a FakeTensorMode."""
    teacher = [] if module.distillation is None else module.distillation.teacher.network.modules()
    for part in itertools.chain(module.modules(), teacher):
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device="cuda"))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        if isinstance(part, Metric):
            part._device = torch.device("cuda", 0)
            for name, default in part._defaults.items():
                setattr(part, name, torch.empty(default.shape, dtype=default.dtype, device="cuda"))
    if module.distillation is not None:
        own = module.distillation.teacher
        own.mean, own.std = (torch.empty(x.shape, device="cuda") for x in (own.mean, own.std))
    module._device = torch.device("cuda", 0)
    return module


@needs_fake_cuda
@pytest.mark.parametrize(("optimizer", "teacher"), [("sgd", None), ("adamw", None), ("sgd", "t.ckpt")])
def test_a_training_step_reads_nothing(
    tmp_path: Path, optimizer: Any, teacher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchmetrics.metric.deepcopy", torch.Tensor.clone)  # fake tensors have no storage to copy
    block = {"network": {"class_path": ""}, "class_names": list("abcde"), "mean": [0.4] * 3, "std": [0.2] * 3}
    there = "octvideo.training.distillation"
    monkeypatch.setattr(f"{there}.trained_network", lambda path: (octave_network().eval(), block))
    monkeypatch.setattr("torch.cuda.Event", lambda **options: mock.MagicMock())
    module = WithoutEngine(
        octave_network(),
        optimizer=optimizer,
        mixup_alpha=0.4,
        cutmix_alpha=1.0,
        label_smoothing=0.1,
        channels_last=True,
        teacher=teacher,
        distill_features=1.0,
        ema_decay=0.99,
    )
    with FakeTensorMode(allow_non_fake_inputs=True), NoWaiting() as mode:
        module = as_fake_cuda(module)
        clips = torch.zeros(2, 3, 8, 32, 32, dtype=torch.uint8, device="cuda")
        labels = torch.zeros(2, dtype=torch.int64, device="cuda")
        batch = MovableBatch({"video": clips, "label": labels, "index": labels, "path": [], "failures": []})
        steps = StepsAlone(mode)
        trainer = L.Trainer(
            accelerator=FakeCuda(),
            strategy=FakeStrategy(torch.device("cuda", 0)),
            callbacks=[ProgressBar(), steps],
            max_epochs=1,
            log_every_n_steps=100,
            gradient_clip_val=1.0,
            precision="bf16-mixed",
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, torch.utils.data.DataLoader([batch] * STEPS, batch_size=None))
    assert steps.seen == STEPS - 2
