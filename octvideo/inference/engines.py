"""`ENGINES`, the table of all engines, which other code reads; and the way from a network to an engine.

To add an engine, write its functions (octvideo/inference/torch_engines.py, model_files.py) and a row of the table.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference.device import pick_device
from octvideo.inference.engine import Engine, EngineEntry, ModelSpec, Precision, in_batches, needs
from octvideo.inference.model_files import load_aot, load_onnx, load_openvino, write_aot, write_onnx, write_openvino
from octvideo.inference.torch_engines import CompiledEngine, EagerEngine
from octvideo.octave import prepare_inference

log = logging.getLogger("octvideo.inference")

# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────

ENGINES: dict[str, EngineEntry] = {
    entry.name: entry
    for entry in (
        EngineEntry("eager", ("f32", "bf16", "int8"), start=EagerEngine, trains=True, auto=("f32", "bf16")),
        EngineEntry("compile", ("f32", "bf16"), start=CompiledEngine, compiles=True, trains=True),
        EngineEntry(
            "aot", ("f32", "bf16"), files=("model.pt2",), write=write_aot, load=load_aot,
            write_advice="; AOTInductor needs a C++ compiler (g++ or clang), as engines onnx and openvino do not",
            load_advice=f": export it again on this machine with this torch ({torch.__version__})",
        ),
        EngineEntry(
            "onnx", ("f32",),  # its kernels for convolutions on CPUs have no bf16
            ("cpu",), files=("model.onnx",), write=write_onnx, load=load_onnx, library="onnxruntime",
            title="ONNX Runtime", packages=("onnx", "onnxscript", "onnxruntime"), extra="onnx",
        ),
        EngineEntry(
            "openvino", ("f32", "bf16", "int8"), ("cpu",), files=("model.xml", "model.bin"), write=write_openvino,
            load=load_openvino, library="openvino", title="OpenVINO", packages=("openvino", "nncf"), extra="openvino",
            auto=("f32", "bf16"), one_file=("f32", "bf16"),
        ),
    )
}  # fmt: skip


def file_engines() -> list[str]:
    """Names of the engines whose models are files."""
    return [name for name, entry in ENGINES.items() if entry.files]


def precisions_of(names: Collection[str]) -> str:
    """For help texts, each precision and the engines that have it: "f32, bf16 (aot, openvino), int8 (openvino)"."""
    able = {p: [name for name in names if p in ENGINES[name].precisions] for p in get_args(Precision)}
    return ", ".join(p if len(able[p]) == len(names) else f"{p} ({', '.join(able[p])})" for p in able if able[p])


# ── choices ─────────────────────────────────────────────────────────────────────────────────────────────────


def check_choice(name: str, precision: str, device: torch.device | None = None) -> EngineEntry:
    """The engine of that name, which has that precision and, where it is given, runs on that device.

    Raises:
        UserError: there is none, with those there are.
    """
    if name not in ENGINES:
        raise UserError(f"engine: got '{name}', expected {', '.join(ENGINES)}")
    known = ENGINES[name].precisions
    if precision not in known:
        able = [other.name for other in ENGINES.values() if precision in other.precisions]
        hint = f" (engines with {precision}: {', '.join(able)})" if able else ""
        raise UserError(f"precision: got '{precision}' for engine '{name}', expected {' or '.join(known)}{hint}")
    if device is not None and device.type not in (devices := ENGINES[name].devices or (device.type,)):
        able = [other.name for other in ENGINES.values() if other.devices is None or device.type in other.devices]
        raise UserError(
            f"engine '{name}' runs on {' or '.join(devices)} here, got device '{device}': add --device {devices[0]}, "
            f"or --engine {', '.join(able)}"
        )
    return ENGINES[name]


def engine_device(engine: str, precision: str, device: str) -> torch.device:
    """The device that an engine computes on; "auto" is the CPU for engines that have no other.

    Raises:
        UserError: there is no such engine, precision or device.
    """
    devices = check_choice(engine, precision).devices
    return pick_device(devices[0] if device == "auto" and devices else device)


# ── from a network to an engine ─────────────────────────────────────────────────────────────────────────────


def build_engine(
    name: str,
    network: nn.Module,
    *,
    example_shape: tuple[int, ...],
    precision: str = "f32",
    num_threads: int | None = None,
    device: str | torch.device = "cpu",
    calibration: Tensor | None = None,
) -> Engine:
    """An engine for a network in memory, which is left as it is. Engines that have files go through one: what is
    measured is what is exported.

    Args:
        name: in `ENGINES`.
        network: clips (N, 3, T, H, W) to logits (N, K).
        example_shape, precision, device, calibration: see `ModelSpec`.
        num_threads: of the CPU. Engines of torch set it for the whole process; None leaves it.

    Raises:
        UserError: no such engine or precision, a missing library, or a network that the engine can't take.
    """
    spec = ModelSpec(example_shape, precision, torch.device(device), calibration)
    entry = check_choice(name, precision, spec.device)
    if entry.start is None:
        with tempfile.TemporaryDirectory(prefix="octvideo-") as folder:
            file = Path(folder) / entry.files[0]
            write_model(name, network, file, spec)
            return FileEngine(name, file, spec, num_threads=num_threads)
    if num_threads:
        torch.set_num_threads(num_threads)
    # A compiler joins by itself what lies between convolutions.
    return entry.start(prepare_inference(network, device="cpu" if entry.compiles else spec.device), spec)


def write_model(name: str, network: nn.Module, file: Path, spec: ModelSpec) -> None:
    """Writes a network, which is left as it is, as the file that `FileEngine` reads.

    Raises:
        UserError: as `build_engine`.
    """
    entry = check_choice(name, spec.precision, spec.device)
    assert entry.write is not None
    try:
        entry.write(prepare_inference(network, device="cpu").to(spec.device), file, spec)
    except UserError:
        raise
    except Exception as error:  # export and the compilers have no common type
        raise UserError(
            f"the network can't be written for engine '{name}' here ({type(error).__name__}: {one_line(error)})"
            f"{entry.write_advice}"
        ) from error


class FileEngine:
    """The engine of a model file; see `Engine`.

    Args:
        name: of an engine that has files.
        file: that `write_model` wrote.
        spec: that it was written for; a file of OpenVINO may be written for f32 and computed in bf16.
        num_threads: of the CPU; see `build_engine`.

    Raises:
        UserError: a missing library, or a file that can't be loaded.
    """

    def __init__(self, name: str, file: Path, spec: ModelSpec, *, num_threads: int | None = None) -> None:
        entry = check_choice(name, spec.precision, spec.device)
        assert entry.load is not None
        needs(entry.library, entry.extra)
        self.name, self.device = name, spec.device
        self.views_per_call: int | None = spec.shape[0]
        try:
            self._run, self.precision = entry.load(str(file), spec.precision, str(spec.device), num_threads or 0)
        except Exception as error:  # the libraries' errors have no public base
            raise UserError(f"{entry.title} can't load {file} ({one_line(error)}){entry.load_advice}") from error
        if self.precision != spec.precision:
            log.warning("this CPU has no %s units: %s computes in %s", spec.precision, entry.title, self.precision)

    def __call__(self, clips: Tensor) -> Tensor:
        clips = clips.to(self.device).contiguous()
        return in_batches(lambda batch: torch.as_tensor(self._run(batch)), clips, self.views_per_call or 1)
