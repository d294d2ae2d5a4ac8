"""Models that are files: how each engine's is written, and loaded. Export copies the function that loads one."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.inference.engine import ModelSpec, Run, calibration_clips, needs
from octvideo.inference.torch_engines import InPrecision, inductor_options
from octvideo.octave.kernel.layout import export_form

# ── AOTInductor: a package that torch loads without Python code of ours ─────────────────────────────────────


def write_aot(network: nn.Module, file: Path, spec: ModelSpec) -> None:
    """A .pt2 with machine code for this type of CPU or GPU."""
    from torch._inductor import aoti_compile_and_package

    # Unfolded: the exported graph fixes how frames fold, and inductor then chooses another layout.
    with torch.no_grad(), export_form("unfolded"):
        in_precision = InPrecision(network, spec, by_kernel=False)
        exported = torch.export.export(in_precision, (torch.zeros(spec.shape, device=spec.device),))
        options = inductor_options(spec.device)
        aoti_compile_and_package(exported, package_path=str(file), inductor_configs=options)


def load_aot(file: str, precision: str, device: str, threads: int) -> tuple[Run, str]:
    """See `EngineEntry`."""
    import contextlib

    import torch
    from torch._inductor import aoti_load_package

    def on_device() -> Any:  # AOTInductor loads to, and runs on, the current GPU
        return torch.cuda.device(device) if device.startswith("cuda") else contextlib.nullcontext()

    def run(clips: Any) -> Any:
        with on_device():
            return model(torch.as_tensor(clips).to(device))

    if threads:
        torch.set_num_threads(threads)
    with on_device():
        model = aoti_load_package(file)
    return run, precision


# ── ONNX Runtime: on every system and in every language ─────────────────────────────────────────────────────


def write_onnx(network: nn.Module, file: Path, spec: ModelSpec) -> None:
    """One .onnx, with input "clips" and output "logits" of fixed shapes."""
    for module in ("onnx", "onnxscript"):
        needs(module, "onnx")
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(spec.shape),),
                dynamo=True,
                input_names=["clips"],
                output_names=["logits"],
                external_data=False,
                verbose=False,
            )
        assert program is not None
        program.save(str(file), external_data=False)
    finally:
        exporter.setLevel(level)


def load_onnx(file: str, precision: str, device: str, threads: int) -> tuple[Run, str]:
    """See `EngineEntry`."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda clips: session.run(["logits"], {"clips": np.asarray(clips)})[0], precision


# ── OpenVINO: the fastest in bf16 and int8, where the CPU has units for them ────────────────────────────────


def write_openvino(network: nn.Module, file: Path, spec: ModelSpec) -> None:
    """An .xml and a .bin; "f32" and "bf16" give the same, "int8" is quantised after training.

    The network is converted straight from torch.export: as fast a model as by way of ONNX, and one library less.
    Weights stay float32 in the file unless they are int8: half of the bytes (compress_to_fp16) would change the scores.
    """
    openvino = needs("openvino", "openvino")
    if spec.precision == "int8":
        calibration_clips(spec)  # there must be some
    with torch.no_grad(), export_form("unfolded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(torch.export.export(network, (torch.zeros(spec.shape),)))
    if spec.precision == "int8":
        assert spec.calibration is not None
        model = _quantised(model, spec.calibration, spec.shape[0])
    openvino.save_model(model, str(file), compress_to_fp16=False)


def _quantised(model: Any, calibration: Tensor, size: int) -> Any:
    nncf = needs("nncf", "int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # Whole batches: the last is filled up from the first clips, since an empty clip would move a scale.
    missing = -len(calibration) % size
    clips = torch.cat([calibration, calibration[torch.arange(missing) % len(calibration)]])
    batches = [batch.contiguous().numpy() for batch in clips.split(size)]
    with contextlib.redirect_stdout(sys.stderr):  # nncf's progress; a tool's output is its result
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


def load_openvino(file: str, precision: str, device: str, threads: int) -> tuple[Run, str]:
    """See `EngineEntry`; where the CPU has no bf16 units, OpenVINO computes in f32."""
    import numpy as np
    import openvino

    # One clip after another, each on all threads: the choice for latency. Without the hint some CPUs take bf16.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    # One Core, kept to the end of the process. On CPUs with AMX each gives the thread a stack for signals, and takes it
    # away when it ends; of several some leave one that is freed, and then the next signal (Ctrl-C) is a crash.
    if not hasattr(openvino, "octvideo_core"):
        openvino.octvideo_core = openvino.Core()
    model = openvino.octvideo_core.compile_model(file, "CPU", options)
    if precision == "bf16" and model.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        precision = "f32"
    request = model.create_infer_request()
    return lambda clips: request.infer([np.asarray(clips)], share_inputs=True)[0], precision
