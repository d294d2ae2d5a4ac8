"""Whole DataLoaders with their workers: CPU time of all processes, and what a GPU would need."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import torch
from torch.utils.data import DataLoader

from lab.loading.ways import Recipe, Video, pytorchvideo_clips, training_clips, usable
from lab.timing import rounds_of
from octvideo.batches import Failure
from octvideo.data.dataset import EvaluationVideos
from octvideo.data.loading import Collate
from octvideo.data.records import VideoRecord
from octvideo.video import Decoder


@dataclass(frozen=True)
class Rate:
    """What one loader did in one round.

    Args:
        items: clips or videos.
        seconds: on the clock, without the start of the workers.
        cpu_seconds: of workers and this process, without the start of the workers.
    """

    items: int
    seconds: float
    cpu_seconds: float


Loader = Callable[[int], DataLoader[Any]]


def loaders(
    videos: list[Video], recipe: Recipe, *, num_workers: int, repeats: int, peers: bool
) -> dict[str, Mapping[str, Loader]]:
    """By kind ("clips", "videos") and by name, loaders over the videos, each of them `repeats` times."""
    paths = [video.path for video in videos]
    rows = list(range(len(videos))) * repeats
    settings: dict[str, Any] = {"num_workers": num_workers, "prefetch_factor": 2 if num_workers else None}

    def our_clips(decoder: Decoder, number: int) -> DataLoader[Any]:
        keys: Any = [(number * repeats + n, index) for n, index in enumerate(rows)]
        shape = (3, recipe.views.clip_frames, recipe.augment.crop_px, recipe.augment.crop_px)
        clips = training_clips(paths, recipe, decoder)
        return DataLoader(clips, sampler=keys, batch_size=4, collate_fn=Collate(shape), **settings)

    def our_views(number: int) -> DataLoader[Any]:
        records = [VideoRecord(path, 0) for path in paths]
        data = EvaluationVideos(records, recipe.views)
        return DataLoader(data, sampler=rows, batch_size=1, collate_fn=Collate(None), **settings)

    def others_clips(decoder: str, number: int) -> DataLoader[Any]:
        clips = pytorchvideo_clips(videos * repeats, recipe, decoder, seed=number)
        return DataLoader(clips, batch_size=4, **settings)

    others = {f"pytorchvideo ({name})": partial(others_clips, name) for name in ("decord", "pyav")} if peers else {}
    ours: dict[str, Loader] = {"octvideo": partial(our_clips, "auto")}
    if all(video.decoder == "decord" for video in videos):
        ours["octvideo (decord)"] = partial(our_clips, "decord")
    return {"clips": ours | others, "videos": {"octvideo": our_views}}


def measure(
    made: Mapping[str, Loader], *, num_workers: int, rounds: int, left_out: Callable[[str, Exception], None]
) -> dict[str, list[Rate]]:
    """Runs the loaders in turns, a rate for each in every round."""
    if num_workers and int(av.__version__.split(".")[0]) >= 19 and "pytorchvideo (pyav)" in made:
        # Not so our reader, which converts by one thread.
        hangs = RuntimeError("PyAV 19 converts pixels by threads, for which forked workers wait for ever")
        left_out("pytorchvideo (pyav)", hangs)
        made = {name: loader for name, loader in made.items() if name != "pytorchvideo (pyav)"}
    made = usable(made, left_out, lambda loader: next(iter(loader(0))))
    settings: dict[str, Any] = {"num_workers": num_workers, "collate_fn": Collate(None)}
    nothing: Any = [Failure("", "", 0)] * max(num_workers, 1)  # what a loader over it takes is the start of workers
    turns: dict[str, Callable[[], Rate]] = {"": lambda: _run(DataLoader(nothing, **settings))}
    number = iter(range(10**9))
    for name, loader in made.items():
        turns[name] = partial(lambda loader: _run(loader(next(number))), loader)
    found: dict[str, list[Rate]] = {name: [] for name in made}
    for measured in rounds_of(turns, rounds=rounds):
        idle = measured.pop("")
        for name, rate in measured.items():
            seconds = max(rate.seconds - idle.seconds, 1e-9)
            found[name].append(Rate(rate.items, seconds, max(rate.cpu_seconds - idle.cpu_seconds, 1e-9)))
    return found


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _run(loader: DataLoader[Any]) -> Rate:
    started, cpu = time.perf_counter(), _cpu_seconds()
    items = 0
    running = iter(loader)
    for batch in running:
        items += len(batch) if isinstance(batch, torch.Tensor) else len(batch["video"])
    del running  # workers end, and their time is known
    return Rate(items, time.perf_counter() - started, _cpu_seconds() - cpu)


def need(wanted: float, rates: list[Rate], available: int) -> dict[str, float]:
    """What a GPU that takes so many items a second asks of the loading side.

    Returns:
        "wanted"; the "cpus" that loading them keeps busy, from the CPU time of an item in the best round, since a busy
        machine only adds to it; and those that are "available" to this process.
    """
    cpus = wanted * min(rate.cpu_seconds / rate.items for rate in rates)
    return {"wanted": wanted, "cpus": cpus, "available": available}
