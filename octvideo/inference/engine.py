"""What an engine is: the interface of all, what there is to know of one, and what several share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.octave.kernel.layout import channels_last

Precision = Literal["f32", "bf16", "int8"]


class Engine(Protocol):
    """Runs one network.

    Args:
        name: in `ENGINES`.
        precision: that it computes in.
        views_per_call: clips that go through the network at once; other numbers are cut and filled up to it.
            None: any number at once.
    """

    name: str
    precision: str
    views_per_call: int | None

    def __call__(self, clips: Tensor) -> Tensor:
        """Logits float32 (N, K) of normalised clips float32 (N, 3, T, H, W)."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """How a network is to be run.

    Args:
        shape: of clips, (N, 3, T, H, W). All engines but eager are made for it; more clips go batch by batch.
        precision: that the engine has.
        device: to compute on, of a type that the engine has.
        calibration: for int8: typical normalised clips, float32 (M, 3, T, H, W).
    """

    shape: tuple[int, ...]
    precision: str = "f32"
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (never changed)
    calibration: Tensor | None = None


Run = Callable[[Any], Any]  # clips (N, 3, T, H, W) to logits (N, K), each a tensor or a numpy array


@dataclass(frozen=True)
class EngineEntry:
    """What there is to know of an engine: a row of `ENGINES`.

    An engine has `start`, which runs a network in memory, or `write` and `load`, whose models are files.

    Args:
        name: as users give it.
        precisions: that it computes in.
        devices: types of device that it computes on; None is all that torch has.
        start: gives the engine of a prepared network.
        compiles: whether `start` goes through torch.compile.
        trains: whether octvideo.training trains networks as `start` runs them.
        auto: precisions that `auto` may choose: the engine starts within seconds, and needs no calibration for them.
        files: names of a model's files, the first of which `load` is given.
        write: writes a prepared network, which is on the device, to that file.
        one_file: precisions that have the same file: `load` is told which.
        load: (file, precision, device, threads) to a `Run` and the precision that it computes in; 0 threads are all.
            Export copies its source: it imports what it uses, and nothing of octvideo.
        library: that `load` imports, by the name that Python and pip have for it.
        title: of the library, for messages.
        write_advice: ends the message where a network can't be written.
        load_advice: likewise where a file can't be loaded.
        packages: whose versions matter to a model, beside torch.
        extra: `pip install octvideo[extra]` has the libraries.
    """

    name: str
    precisions: tuple[Precision, ...]
    devices: tuple[str, ...] | None = None
    start: Callable[[nn.Module, ModelSpec], Engine] | None = None
    compiles: bool = False
    trains: bool = False
    auto: tuple[Precision, ...] = ()
    files: tuple[str, ...] = ()
    write: Callable[[nn.Module, Path, ModelSpec], None] | None = None
    one_file: tuple[Precision, ...] = ()
    load: Callable[[str, str, str, int], tuple[Run, str]] | None = None
    library: str = "torch"
    title: str = "torch"
    write_advice: str = ""
    load_advice: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""


def in_batches(run: Callable[[Tensor], Tensor], clips: Tensor, size: int) -> Tensor:
    """Runs a network of a fixed batch size on any number of clips; what fills up the last batch is thrown away.

    Args:
        run: clips (size, 3, T, H, W) to logits (size, K).
        clips: (N, 3, T, H, W), N of 1 or more.
        size: of a batch.

    Returns:
        (N, K).
    """
    logits = []
    for batch in clips.split(size):
        missing = size - len(batch)
        full = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch
        logits.append(run(full)[: len(batch)])
    return torch.cat(logits)


def calibration_clips(spec: ModelSpec) -> list[Tensor]:
    """Each by itself, channels last.

    Raises:
        UserError: there are none.
    """
    if spec.calibration is None or not len(spec.calibration):
        raise UserError("int8 needs typical videos to choose its scales from: --calibrate VIDEO|FOLDER ...")
    return [channels_last(clip) for clip in spec.calibration.split(1)]


def needs(module: str, extra: str) -> ModuleType:
    """A library of an optional extra.

    Raises:
        UserError: it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module} ({error}): pip install 'octvideo[{extra}]'") from error
