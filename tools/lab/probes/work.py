"""Measures arms on the folds of some data: a line of a file for each, so that a stop loses one of them at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.probes.arms import Arm, convert, draw_clips
from lab.probes.classifier import Classifier, train_classifier
from lab.probes.clips import Clips, load_frames
from lab.probes.networks import NETWORKS, features_of, load_network
from octvideo.files import whole_file
from octvideo.json_lines import JsonLines, Words
from octvideo.octave import OctaveNetwork, count_cost
from octvideo.seeds import seed_of

ORDINARY = "ordinary"
_WORDS = Words("file of results", "other settings", "give another folder")
# Process time of a fold's arm on one thread, in forward passes of a frame: of each test frame, and of each calibration
# frame by what is fitted. Rough, for a plan.
_TEST, _FITTED = 1.3, {"none": 0.0, "norms": 6.0, "weights": 20.0}


@dataclass(frozen=True)
class Settings:
    """What all arms share.

    Args:
        num_frames: of each clip.
        px: side of the frames.
        num_clips: to calibrate on, a frame each.
        seed: of all draws, together with the fold.
    """

    num_frames: int = 8
    px: int = 160
    num_clips: int = 240
    seed: int = 0


class Probe:
    """One network on one data set.

    Args:
        name: of NETWORKS.
        weights: its file.
        clips: the data.
        settings: of all.
        output: folder of results; what can be made again is in its `cache`.
    """

    def __init__(self, name: str, weights: Path, clips: Clips, settings: Settings, output: Path) -> None:
        self.name, self.clips, self.settings = name, clips, settings
        self.like = NETWORKS[name]
        self.folds = sorted(set(clips.folds.tolist()))
        output.mkdir(parents=True, exist_ok=True)
        content = {"probe": 1, "network": name, "data": clips.name, **vars(settings)}
        self.lines = JsonLines(results_file(output, name, clips.name), content, _WORDS)
        self.done = {(entry["arm"], entry["fold"]): entry for entry in self.lines.entries()}
        self.network = load_network(name, weights)
        self._cache = output / "cache"
        self._frames: Tensor | None = None
        self._features: Tensor | None = None
        self._judges: dict[int, Classifier] = {}

    @property
    def frames(self) -> Tensor:
        """uint8 (N, T, 3, H, W) of all clips, once prepared."""
        assert self._frames is not None
        return self._frames

    def missing(self, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
        """Arms and folds that are not measured."""
        return [(arm, fold) for arm in arms for fold in self.folds if (arm.key, fold) not in self.done]

    def prepare(self, watch: Callable[..., Iterable[Any]]) -> None:
        """Has, once, frames and the ordinary network's features and predictions at hand.

        Args:
            watch: (items, text) to the items: for progress.
        """
        if self._features is not None:
            return
        settings = self.settings
        self._frames = load_frames(
            self.clips,
            self._cache,
            num_frames=settings.num_frames,
            px=settings.px,
            watch=lambda paths: watch(paths, f"decoding {self.clips.name}"),
        )
        file = self._cache / f"{self.clips.name}_{self.name}_{settings.num_frames}_{settings.px}.pt"
        if file.is_file():
            self._features = torch.load(file, weights_only=True)
        else:
            text = f"features of {self.name} on {self.clips.name}"
            self._features = features_of(self.network, self.like, self._frames, lambda parts: watch(parts, text))
            with whole_file(file) as part:
                torch.save(self._features, part)
        for fold in self.folds:
            if (ORDINARY, fold) not in self.done:
                self._add(self._ordinary(fold))

    def seconds(self, arm: Arm) -> float:
        """How long an arm of a fold takes on one thread, about; by those that are measured where there are some."""
        like = [e["seconds"] for e in self.done.values() if e["arm"] != ORDINARY and e["refit"] == arm.refit]
        if like:
            return sum(like) / len(like)
        each = self.seconds_of_frame()
        test = len(self.clips.paths) / len(self.folds) * self.settings.num_frames
        return each * (_TEST * test + (_FITTED[arm.refit] + 1) * self.settings.num_clips)

    def seconds_of_frame(self) -> float:
        """Of the ordinary network, on one thread."""
        started = time.process_time()
        with torch.no_grad():
            self.network(self.like.clip(torch.zeros(8, 3, self.settings.px, self.settings.px, dtype=torch.uint8)))
        return (time.process_time() - started) / 8

    def measure(self, arm: Arm, fold: int) -> None:
        """Converts the network, and adds a line of what is kept."""
        assert self._features is not None
        started = time.process_time()
        network = self.converted(arm, fold)
        test = self.clips.test(fold)
        ordinary = self._features[test]
        features = features_of(network, self.like, self.frames[test])
        calibrated = network.octave_report.calibration
        assert calibrated is not None
        self._add(
            {
                "arm": arm.key,
                "fold": fold,
                **vars(arm),
                "predictions": self.judge(fold).predict(features).tolist(),
                "error": float((features - ordinary).double().square().sum()),
                "feature_spread": float((ordinary - ordinary.mean(0)).double().square().sum()),
                "multiply_adds": self._multiply_adds(network),
                "shares": dict(calibrated.shares),
                "fitted_on": calibrated.num_fitted_on,
                "seconds": round(time.process_time() - started, 1),
            }
        )

    def judge(self, fold: int) -> Classifier:
        """Trained on the ordinary network's features of all other folds."""
        assert self._features is not None
        if fold not in self._judges:
            train = self.clips.train(fold)
            labels = self.clips.labels[train]
            self._judges[fold] = train_classifier(self._features[train], labels, len(self.clips.classes))
        return self._judges[fold]

    def converted(self, arm: Arm, fold: int) -> OctaveNetwork:
        """The network, calibrated on clips of all other folds; one spectrum of a fold serves all arms."""
        return self._converted(self.network, arm, fold, "spectrum")

    def details(self, fold: int, *, has_random_weights: bool = False) -> dict[str, Tensor]:
        """Of each layer's channels (C,), the share of their variance that half resolution cannot hold.

        Args:
            fold: whose clips are not looked at.
            has_random_weights: of the same network, as it is before any training.
        """
        network, name = self.network, "spectrum"
        if has_random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                network, name = self.like.build().eval(), "spectrum_random"
            network = self.like.inflate(network) if self.like.inflate else network
        calibrated = self._converted(network, Arm(0.25, refit="none"), fold, name).octave_report.calibration
        assert calibrated is not None
        return {name: loss.detail / loss.energy.clamp_min(1e-30) for name, loss in calibrated.losses.items()}

    def close(self) -> None:
        self.lines.close()

    # -- details ---------------------------------------------------------------------------------------------

    def _ordinary(self, fold: int) -> dict[str, Any]:
        assert self._features is not None
        test = self.clips.test(fold)
        return {
            "arm": ORDINARY,
            "fold": fold,
            "predictions": self.judge(fold).predict(self._features[test]).tolist(),
            "labels": self.clips.labels[test].tolist(),
            "sources": [self.clips.sources[n] for n in test.tolist()],
            "multiply_adds": self._multiply_adds(self.network),
        }

    def _converted(self, network: nn.Module, arm: Arm, fold: int, name: str) -> OctaveNetwork:
        settings = self.settings
        seed = seed_of(settings.seed, fold, "convert") % 2**31
        clips = draw_clips(self.frames, self.clips.train(fold), settings.num_clips, self.like, seed=seed)
        words = (self.clips.name, self.name, name, fold, *vars(settings).values())
        file = self._cache / f"{'_'.join(map(str, words))}.pt"
        spectrum = torch.load(file, weights_only=True) if file.is_file() else None
        kept: dict[str, Any] = {}
        made = convert(network, self.like, arm, clips, seed=seed, spectrum=spectrum, keep=kept.update)
        if spectrum is None:
            with whole_file(file) as part:
                torch.save(kept["spectrum"], part)
        return made

    def _multiply_adds(self, network: nn.Module) -> int:
        settings = self.settings
        over_time = (settings.num_frames,) if self.like.inflate else ()
        return count_cost(network, (1, 3, *over_time, settings.px, settings.px)).multiply_adds

    def _add(self, entry: dict[str, Any]) -> None:
        self.lines.add(entry)
        self.done[entry["arm"], entry["fold"]] = entry


def results_file(output: Path, network: str, data: str) -> Path:
    return output / f"{network}_{data}.jsonl"


def plan(probes: Sequence[Probe], arms: Sequence[Arm]) -> Iterator[tuple[Probe, Arm, int]]:
    """What is to be measured: the most telling arms first, each on all folds of all data of a network."""
    for name in dict.fromkeys(probe.name for probe in probes):
        for arm in arms:
            for probe in probes:
                if probe.name == name:
                    yield from ((probe, own, fold) for own, fold in probe.missing([arm]))
