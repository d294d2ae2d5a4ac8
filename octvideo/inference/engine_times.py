"""What a network takes by each engine that is installed here, measured now, for model cards."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference.choice import Way, clock_of, measured
from octvideo.inference.device import pick_device
from octvideo.inference.engine import Engine
from octvideo.inference.engines import ENGINES, build_engine
from octvideo.octave.kernel.library import cpu_lines


@dataclass(frozen=True)
class EngineTime:
    """What networks take by one engine.

    Args:
        way: engine and precision.
        seconds: a view, by the networks' names; or the reason why there is none.
    """

    way: Way
    seconds: Mapping[str, float | str]


def quick_ways(device: torch.device) -> list[Way]:
    """Engines that are installed and start within seconds, in each of their precisions but int8, which needs videos."""
    return [
        Way(entry.name, precision)
        for entry in ENGINES.values()
        if (entry.auto or entry.library != "torch")
        and device.type in (entry.devices or (device.type,))
        and importlib.util.find_spec(entry.library) is not None
        for precision in entry.precisions
        if precision != "int8"
    ]


def engine_times(
    networks: Mapping[str, nn.Module],
    shape: tuple[int, ...],
    *,
    device: str = "auto",
    num_threads: int | None = None,
    watch: Callable[[str], None] = lambda way: None,
) -> list[EngineTime]:
    """Seconds a view of networks, which take turns in each engine, on noise; the least of some calls.

    Args:
        networks: by name, left as they are.
        shape: of the clips of one call, (N, 3, T, H, W).
        device: to compute on.
        num_threads: of the CPU; None leaves it.
        watch: told what is measured.
    """
    place = pick_device(device)
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if num_threads:
        torch.set_num_threads(num_threads)
    clock = clock_of(torch.get_num_threads())
    found = []
    for way in quick_ways(place):
        watch(str(way))
        started: dict[str, Callable[[Tensor], Tensor]] = {}
        reasons: dict[str, float | str] = {}
        for name, network in networks.items():
            try:
                engine = build_engine(
                    way.engine, network, example_shape=shape, precision=way.precision, num_threads=num_threads,
                    device=place,
                )  # fmt: skip
            except UserError as error:
                reasons[name] = str(error)
                continue
            if engine.precision != way.precision:
                reasons[name] = f"it computes in {engine.precision} here"
            else:
                started[name] = _waiting(engine, place)
        with torch.inference_mode():
            found.append(EngineTime(way, {**reasons, **measured(started, clips, clock)}))
    return found


def _waiting(engine: Engine, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A call that is done when it returns: on a GPU the engine's own returns before."""
    return lambda clips: engine(clips.to(device)).cpu()


def machine_in_words(device: str = "auto") -> str:
    """What computes here: processor or GPU, threads, system, torch."""
    place = pick_device(device)
    if place.type == "cuda":
        what = torch.cuda.get_device_name(place)
    else:
        named = [line.partition(":")[2].strip() for line in cpu_lines() if line.startswith("model name")]
        what = f"{named[0] if named else platform.processor() or platform.machine()}"
        what += f", {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{what}; {system}, torch {torch.__version__}"
