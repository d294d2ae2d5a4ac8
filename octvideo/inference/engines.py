"""Engines: ways to run one network, behind one interface. `ENGINES` is the table of them, which all other code reads.

An engine is one `EngineEntry` and the functions that it names: to add one, write them here and put it into the table.
Export copies the function that loads a model beside the model, so that it is loaded alike without octvideo.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.octave import fuse_convolutions, prepare_inference
from octvideo.octave.fused.prepare import use_bfloat16
from octvideo.octave.fused.quantize import quantize
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.layout import channels_last, export_form
from octvideo.octave.kernel.library import bf16_pays, load_library

Precision = Literal["f32", "bf16", "int8"]

log = logging.getLogger("octvideo.inference")


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


# ── torch, in memory ────────────────────────────────────────────────────────────────────────────────────────


class InPrecision(nn.Module):
    """A network that computes in the precision asked for between float32 clips and float32 logits.

    bf16 is autocast, since torch pools no bf16 clips on a CPU; convolutions and products hold their weights in bf16
    beforehand, so that they are not converted at each call.

    Args:
        by_kernel: octvideo's own kernel computes what it has, where the network is on a CPU.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, *, by_kernel: bool = True) -> None:
        super().__init__()
        self.device_type, self.is_bf16 = spec.device.type, spec.precision == "bf16"
        if self.is_bf16:
            use_bfloat16(network, by_kernel=by_kernel and spec.device.type == "cpu")
        self.network = network.to(spec.device).eval()

    def forward(self, clips: Tensor) -> Tensor:
        clips = channels_last(clips)
        if not self.is_bf16:
            return self.network(clips)
        with torch.autocast(self.device_type, torch.bfloat16):
            logits = self.network(clips)
        return logits.float()


def in_best_precision(spec: ModelSpec, engine: str) -> ModelSpec:
    """The same; float32 where bf16 is asked for on a CPU whose products are no faster in it. A log line says so."""
    if spec.precision != "bf16" or spec.device.type != "cpu" or load_library() is None or bf16_pays():
        return spec
    log.warning("this CPU multiplies no faster in bf16 than in f32: %s computes in f32", engine)
    return replace(spec, precision="f32")


class EagerEngine:
    """PyTorch as it is; see `Engine`."""

    name = "eager"
    views_per_call: int | None = None
    note = ""  # on the precision, for people

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        spec = in_best_precision(spec, self.name)
        self.precision, self.device = spec.precision, spec.device
        if spec.precision == "int8":
            self.note = _quantize_kernel(network, spec)
        self._run = InPrecision(network, spec)

    def __call__(self, clips: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(clips.to(self.device))


def _quantize_kernel(network: nn.Module, spec: ModelSpec) -> str:
    """Lets a prepared network compute in int8 by octvideo's kernel; returns how its classes compare with those of f32.

    Raises:
        UserError: the kernel has no int8 here, no sequence of the network is the kernel's, or there are no clips.
    """
    if not has_format(FORMATS["int8"]) or spec.device.type != "cpu":
        raise UserError(
            "engine eager computes int8 on CPUs with AVX512-VNNI or AMX by octvideo's kernel, which is not to be had "
            "here: --engine openvino, or --precision f32"
        )
    clips = _calibration_clips(spec)
    with torch.inference_mode():
        expected = torch.cat([network(clip) for clip in clips]).argmax(1)
        quantize(network, clips)
        same = int((torch.cat([network(clip) for clip in clips]).argmax(1) == expected).sum())
    return f"calibrated on {len(clips)} clips; the same class as in f32 on {same} of them"


def _calibration_clips(spec: ModelSpec) -> list[Tensor]:
    """Each by itself, channels last.

    Raises:
        UserError: there are none.
    """
    if spec.calibration is None or not len(spec.calibration):
        raise UserError("int8 needs typical videos to choose its scales from: --calibrate VIDEO|FOLDER ...")
    return [channels_last(clip) for clip in spec.calibration.split(1)]


class CompiledEngine:
    """PyTorch under torch.compile, for one batch size; see `Engine`. On a CPU weights are frozen into the code.

    Raises:
        UserError: the network can't be compiled here.
    """

    name = "compile"
    views_per_call: int | None

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        spec = in_best_precision(spec, self.name)
        self.precision, self.device, self.views_per_call = spec.precision, spec.device, spec.shape[0]
        whole = InPrecision(network, spec)
        fuse_convolutions(whole)
        self._run: Any = torch.compile(whole, fullgraph=True, options=_inductor_options(spec.device))
        # Compiled now, so that the first video does not pay for it, and a machine without a compiler says so at once.
        try:
            self(torch.zeros(spec.shape))
        except Exception as error:  # dynamo and inductor have many
            raise UserError(
                f"torch.compile can't compile this network here ({type(error).__name__}: {one_line(error)}); "
                "it needs a C++ compiler (g++ or clang) on a CPU. --engine eager needs none"
            ) from error

    def __call__(self, clips: Tensor) -> Tensor:
        with torch.no_grad():  # frozen weights need it
            # The layout is changed here, by faster code than inductor has (see `channels_last`).
            return in_batches(
                lambda batch: self._run(channels_last(batch)), clips.to(self.device), self.views_per_call or 1
            )


def _inductor_options(device: torch.device) -> dict[str, Any]:
    """By freezing, convolutions on CPUs get oneDNN's packed weights and fused activations."""
    return {"freezing": True} if device.type == "cpu" else {}


# ── AOTInductor: a package that torch loads without Python code of ours ─────────────────────────────────────


def write_aot(network: nn.Module, file: Path, spec: ModelSpec) -> None:
    """A .pt2 with machine code for this type of CPU or GPU."""
    from torch._inductor import aoti_compile_and_package

    # Unfolded: the exported graph fixes how frames fold, and inductor then chooses another layout.
    with torch.no_grad(), export_form("unfolded"):
        in_precision = InPrecision(network, spec, by_kernel=False)
        exported = torch.export.export(in_precision, (torch.zeros(spec.shape, device=spec.device),))
        options = _inductor_options(spec.device)
        aoti_compile_and_package(exported, package_path=str(file), inductor_configs=options)


def load_aot(file: str, precision: str, device: str, threads: int) -> tuple[Run, str]:
    """See `EngineEntry`."""
    import torch
    from torch._inductor import aoti_load_package

    if threads:
        torch.set_num_threads(threads)
    model = aoti_load_package(file)
    return lambda clips: model(torch.as_tensor(clips).to(device)).cpu(), precision


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
        _calibration_clips(spec)  # there must be some
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
    model = openvino.compile_model(file, "CPU", options)
    if precision == "bf16" and model.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        precision = "f32"
    request = model.create_infer_request()
    return lambda clips: request.infer([np.asarray(clips)], share_inputs=True)[0], precision


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
        raise UserError(f"device '{name}' can't be used here: {one_line(error)}") from error


def needs(module: str, extra: str) -> ModuleType:
    """A library of an optional extra.

    Raises:
        UserError: it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module} ({error}): pip install 'octvideo[{extra}]'") from error


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
