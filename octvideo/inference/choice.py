"""What `auto` stands for: the engine and precision that run a network best here, and the reason in words.

On a CPU the candidates take turns, each on some clips. What they took is remembered in the cache folder, so that a
network is measured once on a machine. Where little is to be done, a measurement would cost more than it saves, and
`by_rule` tells from the processor alone; so it does on a GPU. `ENGINES` says what is a candidate: `EngineEntry.auto`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from octvideo._version import __version__
from octvideo.errors import UserError
from octvideo.files import cache_folder, json_text, one_line, whole_text
from octvideo.inference.device import pick_device
from octvideo.inference.engine import Engine, ModelSpec, Precision
from octvideo.inference.engines import ENGINES, FileEngine, build_engine, check_choice, engine_device, write_model
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.library import bf16_pays, cpu_lines, load_library, product_rates
from octvideo.octave.kernel.variants import sources_key

AUTO = "auto"
_FORMAT = 1
# Shorter work is not worth a measurement: OpenVINO takes some ten seconds to convert a network.
_WORTH_SEC = 60.0
# Expected where nobody says how many clips come: some dozens of videos.
_MANY_CLIPS = 1000
_MEASURE_SEC, _TURNS = 4.0, 5  # at most, after a call of each that warms up
_TOO_SLOW = 1.5  # times the best: out after one call
# Within it the more exact precision is taken, then the engine that ENGINES has first: no measurement is surer.
_AS_GOOD = 1.05


Name = TypeVar("Name")


class Way(NamedTuple):
    """How a network may be run."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Cost:
    """What a way takes, in seconds.

    Args:
        start: from the network to the engine, at each start of a program.
        clip: each clip.
    """

    start: float
    clip: float

    def of(self, clips: int) -> float:
        """Seconds of a program that runs so many."""
        return self.start + clips * self.clip


Costs = dict[Way, Cost | str]  # a text is the reason why the way does not work here


# ── what there is to choose from ────────────────────────────────────────────────────────────────────────────


def choice_device(engine: str, precision: str, device: str) -> torch.device:
    """`engine_device`, where engine or precision or both may be "auto".

    Raises:
        UserError: there is no such engine, precision or device, or none that has the others.
    """
    if AUTO not in (engine, precision):
        return engine_device(engine, precision, device)
    if engine != AUTO:
        return engine_device(engine, check_choice(engine, "f32").precisions[0], device)
    found = pick_device(device)
    ways(engine, precision, found)
    return found


def ways(engine: str, precision: str, device: torch.device) -> list[Way]:
    """What may be chosen, in the order of `ENGINES`, f32 first: engines whose library is installed, if any is.

    int8 is in it only where it is asked for, since it needs calibration and changes the scores.

    Raises:
        UserError: nothing fits.
    """
    if precision not in (AUTO, *get_args(Precision)):
        raise UserError(f"precision: got '{precision}', expected {AUTO}, {', '.join(get_args(Precision))}")
    if engine != AUTO:
        entry = check_choice(engine, "f32" if precision == AUTO else precision, device)
        found = [Way(engine, one) for one in entry.precisions if one != "int8"]
        return found if precision == AUTO else [Way(engine, precision)]
    entries = [entry for entry in ENGINES.values() if entry.auto and device.type in (entry.devices or (device.type,))]
    installed = [entry for entry in entries if importlib.util.find_spec(entry.library) is not None]
    for choice in (installed, entries):
        if precision == AUTO:
            found = [Way(entry.name, one) for entry in choice for one in entry.auto]
        else:
            found = [Way(entry.name, precision) for entry in choice if precision in entry.precisions]
            if precision == "int8" and len(found) > 1 and not has_format(FORMATS["int8"]):
                found = [way for way in found if way.engine != "eager"]
        if found:
            return found
    raise UserError(f"engine: got {AUTO}, but none that it may choose computes in {precision} on {device}")


def by_rule(among: Sequence[Way], device: torch.device) -> tuple[Way, str]:
    """The way that the processor's or GPU's kind makes likely to be the best, and why. The first engine is taken.

    A CPU is known by the speed of its products. Where bf16 is no faster, no engine's bf16 is tried.
    """
    precision, why = _rule_of_gpu(device) if device.type == "cuda" else _rule_of_cpu()
    return next((way for way in among if way.precision == precision), among[0]), why


def _rule_of_gpu(device: torch.device) -> tuple[Precision, str]:
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return "bf16", "this GPU has tensor cores for bf16"
    return "f32", "this GPU has no tensor cores for bf16"


def _rule_of_cpu() -> tuple[Precision, str]:
    f32, bf16, _ = product_rates()
    if bf16:
        return ("bf16", "this CPU multiplies faster in bf16") if bf16_pays() else ("f32", _NO_FASTER)
    if f32:
        return "f32", "this CPU has no units for bf16 that octvideo's kernel uses"
    # Without the kernel there is nothing to measure by: the processor's words, as Linux has them, must tell.
    features = {word for line in cpu_lines() if line.startswith("flags") for word in line.split()}
    if "amx_bf16" in features:
        return "bf16", "this CPU has AMX"
    if "avx512_bf16" not in features:
        return "f32", "this CPU has no units for bf16"
    # Intel's instruction takes two cycles where AMD's takes one.
    is_amd = any("AMD" in line for line in cpu_lines() if line.startswith("model name"))
    return ("bf16", "this CPU has AVX512-BF16") if is_amd else ("f32", _NO_FASTER)


_NO_FASTER = "this CPU multiplies no faster in bf16 than in f32"


# ── the choice ──────────────────────────────────────────────────────────────────────────────────────────────


def choose_engine(
    network: nn.Module,
    *,
    engine: str = AUTO,
    precision: str = AUTO,
    example_shape: tuple[int, ...],
    num_threads: int | None = None,
    device: str | torch.device = "cpu",
    calibration: Tensor | None = None,
    expected_clips: int | None = None,
) -> tuple[Engine, str]:
    """The engine that takes the least time for a network in memory, which is left as it is.

    Args:
        network, example_shape, num_threads, calibration: see `build_engine`.
        engine: "auto", or one whose precision is to be chosen.
        precision: "auto", or one whose engine is to be chosen.
        device: that the network is to run on.
        expected_clips: that are to be computed; None is many.

    Returns:
        The engine, and the reason for it in words.

    Raises:
        UserError: nothing fits, or the network can't be run so.
    """
    spec = ModelSpec(example_shape, device=torch.device(device), calibration=calibration)
    options = ways(engine, precision, spec.device)
    if num_threads:
        torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory(prefix="octvideo-") as folder:
        starter = _Starter(network, spec, num_threads, Path(folder))
        if len(options) == 1:
            return starter.start(options[0]), "there is no other to choose from"
        preferred, rule = by_rule(options, spec.device)
        if spec.device.type != "cpu" or any(way.precision not in ENGINES[way.engine].auto for way in options):
            return starter.start(preferred), f"by rule: {rule}"
        # What loads the kernel, which a machine compiles once, is done: it does not count as the start of an engine.
        if preferred.precision == "f32":
            options = [way for way in options if way.precision == "f32"]
            if len(options) == 1:
                return starter.start(preferred), rule
        memory = _Memory(_made_for(network, spec, num_threads or torch.get_num_threads()))
        costs = memory.read()
        where = f"remembered in {memory.file}"
        if not all(way in costs for way in options):
            if expected_clips is not None and not starter.is_long_work(preferred, expected_clips):
                return starter.start(preferred), f"by rule: {rule}; measured where more is to be done"
            costs |= starter.measure(options, preferred)
            where = memory.write(costs)
        if not any(isinstance(costs[way], Cost) for way in options):
            return starter.start(preferred), f"by rule: {rule}"
        best = cheapest(costs, options, expected_clips)
        return starter.start(best), reason(costs, options, best, where)


def cheapest(costs: Costs, among: Sequence[Way], expected_clips: int | None) -> Way:
    """The way that takes the least time for so many clips, its start included; see `choose_engine`.

    Args:
        costs: of all that `among` has.
        among: as `ways` gives them, one of which works.
        expected_clips: None is many.
    """
    clips = _MANY_CLIPS if expected_clips is None else expected_clips
    seconds = {way: cost.of(clips) for way in among if isinstance(cost := costs[way], Cost)}
    least = min(seconds.values())
    order = list(get_args(Precision))  # from the most exact
    close = [way for way in seconds if seconds[way] <= _AS_GOOD * least]
    return min(close, key=lambda way: order.index(way.precision))


def reason(costs: Costs, among: Sequence[Way], best: Way, where: str) -> str:
    """The measurement in a line: milliseconds a clip of each way, the best first, and why it is not the fastest."""
    works = {way: cost for way in among if isinstance(cost := costs[way], Cost)}
    fastest = min(works, key=lambda way: works[way].clip)
    order = [best, *sorted(set(works) - {best}, key=lambda way: works[way].clip)]
    milliseconds = {way: 1000 * cost.clip for way, cost in works.items()}
    told = {way: f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}" for way, ms in milliseconds.items()}
    parts = [f"{way} {told[way]}{' ms a clip' * (way == best)}" for way in order]
    parts += [f"{way} does not work here" for way in among if way not in works]
    said = f"measured here: {', '.join(parts)}"
    if works[fastest].clip < works[best].clip:
        later = works[fastest].start - works[best].start
        said += f"; {fastest} starts {later:.1f} s later" if later > 1 else f"; {fastest} is hardly faster"
    return f"{said}; {where}"


class _Starter:
    """Starts the engines of one network, each once.

    Args:
        network: left as it is.
        spec: with any precision.
        num_threads: see `build_engine`.
        folder: for the files of engines that have them, while they start.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec, num_threads: int | None, folder: Path) -> None:
        self._network, self._spec, self._num_threads, self._folder = network, spec, num_threads, folder
        self._clock = clock_of(num_threads or torch.get_num_threads())
        self._started: dict[Way, Engine] = {}
        self._start_seconds: dict[Way, float] = {}
        self._write_seconds: dict[Path, float] = {}

    def start(self, way: Way) -> Engine:
        """The engine.

        Raises:
            UserError: see `build_engine`.
        """
        if way not in self._started:
            began = self._clock()
            self._started[way], written = self._build(way)
            self._start_seconds[way] = self._clock() - began + written
        return self._started[way]

    def _build(self, way: Way) -> tuple[Engine, float]:
        """The engine, and the seconds in which an earlier one wrote its file."""
        entry, spec = ENGINES[way.engine], replace(self._spec, precision=way.precision)
        if entry.start is not None or way.precision not in entry.one_file:
            options: dict[str, Any] = {"precision": way.precision, "num_threads": self._num_threads}
            options |= {"example_shape": spec.shape, "device": spec.device, "calibration": spec.calibration}
            return build_engine(way.engine, self._network, **options), 0.0
        file = self._folder / entry.files[0]
        before = self._write_seconds.get(file, 0.0)
        if file not in self._write_seconds:
            began = self._clock()
            write_model(way.engine, self._network, file, spec)
            self._write_seconds[file] = self._clock() - began
        return FileEngine(way.engine, file, spec, num_threads=self._num_threads), before

    def is_long_work(self, way: Way, clips: int) -> bool:
        """Whether so many clips take long enough to be worth a measurement: a guess, from the first call."""
        shape, engine = self._spec.shape, self.start(way)
        began = self._clock()
        engine(_clips(shape))
        return (self._clock() - began) / shape[0] * clips >= _WORTH_SEC

    def measure(self, options: Sequence[Way], preferred: Way) -> Costs:
        """What all of them take.

        Raises:
            UserError: the preferred one does not work.
        """
        self.start(preferred)
        costs: Costs = {}
        for way in options:
            try:
                engine = self.start(way)
            except UserError as error:
                costs[way] = str(error)
                continue
            if engine.precision != way.precision:
                costs[way] = f"it computes in {engine.precision}"
        engines = {way: self._started[way] for way in options if way not in costs}
        for way, seconds in measured(engines, _clips(self._spec.shape), self._clock).items():
            costs[way] = seconds if isinstance(seconds, str) else Cost(self._start_seconds[way], seconds)
        return costs


def clock_of(threads: int) -> Callable[[], float]:
    """Of one thread the time that this process computes, which others on the machine hardly change; else the time."""
    return time.process_time if threads == 1 else time.perf_counter


def _clips(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def measured(
    engines: Mapping[Name, Callable[[Tensor], Tensor]], clips: Tensor, clock: Callable[[], float]
) -> dict[Name, float | str]:
    """Seconds a clip of engines that take turns, the least of their calls, or the reason why one can't compute.

    Args:
        engines: by their names.
        clips: of one call, (N, 3, T, H, W).
        clock: gives seconds.
    """
    found: dict[Name, float | str] = {}
    racing = {}
    for way, engine in engines.items():
        try:
            engine(clips)  # warms up
            racing[way] = engine
        except RuntimeError as error:  # torch's, OpenVINO's: for want of memory
            found[way] = one_line(error)
    least: dict[Name, float] = {}
    began = time.perf_counter()
    for _ in range(_TURNS):
        for way, engine in racing.items():
            start = clock()
            engine(clips)
            least[way] = min(clock() - start, least.get(way, math.inf))
        best = min(least.values(), default=0.0)
        racing = {way: engine for way, engine in racing.items() if least[way] <= _TOO_SLOW * best}
        if len(racing) < 2 or time.perf_counter() - began > _MEASURE_SEC:
            break
    return found | {way: seconds / len(clips) for way, seconds in least.items()}


# ── what is remembered ──────────────────────────────────────────────────────────────────────────────────────


def _made_for(network: nn.Module, spec: ModelSpec, threads: int) -> dict[str, Any]:
    """All that decides how long ways take, as JSON has it: the processor, the network's structure, the libraries."""
    names = ["torch", *(name for entry in ENGINES.values() if entry.auto for name in entry.packages)]
    return {
        "processor": cpu_lines() or [platform.processor(), platform.node()],
        "threads": threads,
        "clips": list(spec.shape),
        "network": structure_digest(network),
        "kernel": "none" if load_library() is None else sources_key(),
        "versions": {"octvideo": __version__, **{name: _version(name) for name in names}},
    }


def structure_digest(network: nn.Module) -> str:
    """A short word that differs where modules, their options, or shapes and types of tensors do; weights do not."""
    modules = re.sub(r" at 0x[0-9a-f]+", "", repr(network))  # of functions, other ones in each process
    tensors = [(key, list(value.shape), str(value.dtype)) for key, value in network.state_dict().items()]
    return hashlib.sha256(f"{modules}\0{tensors}".encode()).hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


class _Memory:
    """The file of one measurement. One that can't be read is as good as none, and one that can't be written is not.

    Args:
        made_for: all that decides what is measured.
    """

    def __init__(self, made_for: dict[str, Any]) -> None:
        self._made_for = made_for
        name = f"choice_{hashlib.sha256(json_text(made_for).encode()).hexdigest()[:16]}.json"
        try:
            self.file: Path | None = cache_folder() / name
        except OSError:
            self.file = None

    def read(self) -> Costs:
        """What is remembered; empty where nothing is."""
        if self.file is None:
            return {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["octvideo choice"] != _FORMAT or content["made_for"] != self._made_for:
                return {}
            return {
                Way(engine, precision): cost if isinstance(cost, str) else _cost(**cost)
                for engine, costs in content["seconds"].items()
                for precision, cost in costs.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}

    def write(self, costs: Costs) -> str:
        """Keeps them; returns where, in words."""
        seconds: dict[str, dict[str, Any]] = {}
        for way, cost in costs.items():
            seconds.setdefault(way.engine, {})[way.precision] = cost if isinstance(cost, str) else asdict(cost)
        content = {"octvideo choice": _FORMAT, "made_for": self._made_for, "seconds": seconds}
        if self.file is None:
            return "not remembered: there is no home folder"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with whole_text(self.file) as file:
                file.write(json_text(content, indent=1) + "\n")
        except OSError as error:
            return f"not remembered: can't write {self.file} ({one_line(error)})"
        return f"remembered in {self.file}"


def _cost(start: float, clip: float) -> Cost:
    """Raises ValueError or TypeError where they are no times."""
    if not (math.isfinite(start) and start >= 0 and math.isfinite(clip) and clip > 0):
        raise ValueError(f"no times: {start}, {clip}")
    return Cost(start, clip)
