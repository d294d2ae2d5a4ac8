"""Trains converted and ordinary networks alike: taught by the ordinary network without labels, or tuned with labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.probes.arms import Arm
from lab.probes.classifier import Classifier
from lab.probes.networks import ImageNetwork
from lab.probes.work import Probe, results_file
from octvideo.files import whole_file
from octvideo.json_lines import JsonLines, Words
from octvideo.octave import OctaveNetwork, arrange, octavize
from octvideo.seeds import seed_of
from octvideo.training.distillation import soft_cross_entropy
from octvideo.training.schedule import Schedule

# Of the ordinary network with its strides; with average pooling before strided convolutions; octave, with the last
# channels low; octave, converted on the fold's training clips.
Start = Literal["ordinary", "pool", "prefix", "converted"]
# By the ordinary network and the judge, without labels; or by labels.
Learning = Literal["taught", "tuned"]
LEARNING: tuple[Learning, ...] = get_args(Learning)
_WORDS = Words("file of trainings", "other settings", "give another folder")
_TRAIN_STEP = 3.0  # of a frame, in forward passes
_FEATURE_LOSS = 1.0


@dataclass(frozen=True)
class TrainedArm:
    """A network to train.

    Args:
        learning: what from.
        start: what it is before.
        alpha: low share of the stages; 0 where it is not octave.
    """

    learning: Learning
    start: Start
    alpha: float = 0.0

    @property
    def key(self) -> str:
        """Its name in files."""
        return " ".join(map(str, asdict(self).values()))


# What is taught starts where the teacher's scores mean something. An ordinary network that is taught by itself stays
# what it is: its loss is 0.
TRAINED_ARMS: tuple[TrainedArm, ...] = (
    *(TrainedArm("taught", "converted", alpha) for alpha in (0.25, 0.5)),
    TrainedArm("tuned", "ordinary"),
    *(TrainedArm("tuned", start, 0.25) for start in ("converted", "prefix")),
    TrainedArm("tuned", "pool"),
    *(TrainedArm("tuned", start, 0.5) for start in ("converted", "prefix")),
)


@dataclass(frozen=True)
class Recipe:
    """What all trainings share.

    Args:
        taught_epochs, tuned_epochs: passes over the training clips.
        taught_frames, tuned_frames: drawn from each clip in each epoch, one of each even part.
        taught_lr, tuned_lr: highest learning rates of the network; the classifier's is ten times that when tuned.
        batch_clips: of a step.
        weight_decay: AdamW's.
        smoothing: of labels.
        validates: tests on the next fold, which is not trained on then: to choose a recipe by.
    """

    taught_epochs: int = 5
    tuned_epochs: int = 8
    taught_frames: int = 1
    tuned_frames: int = 2
    taught_lr: float = 2e-4
    tuned_lr: float = 3e-4
    batch_clips: int = 16
    weight_decay: float = 0.05
    smoothing: float = 0.1
    validates: bool = False

    def of(self, learning: Learning) -> tuple[int, int, float]:
        """Epochs, frames of a clip, and learning rate."""
        if learning == "taught":
            return self.taught_epochs, self.taught_frames, self.taught_lr
        return self.tuned_epochs, self.tuned_frames, self.tuned_lr


class Trainings:
    """The trainings of one network on one data set, one line of a file each.

    Args:
        probe: whose network, clips, folds and judges they share.
        recipe: of all.
        output: folder of results; each run's log is in its `logs`.
    """

    def __init__(self, probe: Probe, recipe: Recipe, output: Path) -> None:
        self.probe, self.recipe = probe, recipe
        name = "validated" if recipe.validates else "trained"
        content = {"trained": 1, "network": probe.name, "data": probe.clips.name, **vars(probe.settings)}
        file = results_file(output, probe.name, f"{probe.clips.name}_{name}")
        self.lines = JsonLines(file, {**content, **vars(recipe)}, _WORDS)
        self.done = {(entry["arm"], entry["fold"], entry["seed"]) for entry in self.lines.entries()}
        self._logs = output / "logs"
        self._cache = output / "cache"

    def close(self) -> None:
        self.lines.close()

    def missing(
        self, arms: Sequence[TrainedArm], seeds: Sequence[int], folds: Sequence[int] | None = None
    ) -> list[tuple[TrainedArm, int, int]]:
        """Arms, folds and seeds that are not there: all arms of a fold before the next fold."""
        folds = self.probe.folds if folds is None else folds
        return [
            (arm, fold, seed)
            for seed in seeds
            for fold in folds
            for arm in arms
            if (arm.key, fold, seed) not in self.done
        ]

    def seconds(self, arm: TrainedArm) -> float:
        """How long a training takes on one thread, about; by those that are done where there are some."""
        like = [e["seconds"] for e in self.lines.entries() if e["arm"].partition(" ")[0] == arm.learning]
        if like:
            return sum(like) / len(like)
        epochs, clip_frames, _ = self.recipe.of(arm.learning)
        clip_frames = self.probe.settings.num_frames if self.probe.like.inflate else clip_frames
        frames = len(self.probe.clips.paths) * clip_frames
        return self.probe.seconds_of_frame() * frames * epochs * (_TRAIN_STEP + (arm.learning == "taught"))

    def measure(self, arm: TrainedArm, fold: int, seed: int, watch: Callable[..., Iterable[Any]]) -> None:
        """Trains and tests a network, and adds a line of its predictions."""
        started = time.process_time()
        probe = self.probe
        tested, train = self._split(fold)
        run = f"{probe.name}_{probe.clips.name}_{arm.key}_{fold}_{seed}".replace(" ", "_")
        part = self._cache / f"{run}.epoch"
        self._logs.mkdir(exist_ok=True)
        with (self._logs / f"{run}.log").open("a", encoding="utf-8") as log:
            like, judge = probe.like, probe.judge(fold)
            network = FramesClassifier(self._start(arm, fold), like, judge, fresh=arm.learning == "tuned")
            teacher = None
            if arm.learning == "taught":
                teacher = FramesClassifier(probe.network, like, judge, fresh=False).eval()
            self._train(network, teacher, arm, train, seed_of(seed, fold, "train"), part, log, watch)
        self._add(
            {
                "arm": arm.key,
                "fold": fold,
                "seed": seed,
                **asdict(arm),
                "predictions": network.eval().predict(probe.frames[tested]),
                "labels": probe.clips.labels[tested].tolist(),
                "sources": [probe.clips.sources[n] for n in tested.tolist()],
                "seconds": round(time.process_time() - started, 1),
            }
        )
        self.done.add((arm.key, fold, seed))
        part.unlink(missing_ok=True)

    # -- details ---------------------------------------------------------------------------------------------

    def _split(self, fold: int) -> tuple[Tensor, Tensor]:
        """Indices of clips to test and to train on."""
        clips, folds = self.probe.clips, self.probe.folds
        if not self.recipe.validates:
            return clips.test(fold), clips.train(fold)
        other = folds[(folds.index(fold) + 1) % len(folds)]
        train = clips.train(fold)
        return clips.test(other), train[clips.folds[train] != other]

    def _start(self, arm: TrainedArm, fold: int) -> nn.Module:
        network, like = self.probe.network, self.probe.like
        if arm.start == "ordinary":
            return octavize(network, 0.0)
        if arm.start == "pool":
            return octavize(network, 0.0, downsample="pool")
        if arm.start == "prefix":
            return _octave(network, like.alpha(arm.alpha))
        name = f"{self.probe.clips.name}_{self.probe.name}_converted_{fold}_{arm.alpha}"
        file = self._cache / "_".join(map(str, (name, *vars(self.probe.settings).values(), ".pt")))
        if file.is_file():
            held = torch.load(file, weights_only=True)
            converted = _octave(network, held["alpha"])
            converted.load_state_dict(held["state"])
            return converted
        converted = self.probe.converted(Arm(arm.alpha), fold)
        shares = dict(converted.octave_report.alpha)  # type: ignore[arg-type]
        with whole_file(file) as part:
            torch.save({"alpha": shares, "state": converted.state_dict()}, part)
        return converted

    def _train(
        self,
        network: FramesClassifier,
        teacher: FramesClassifier | None,
        arm: TrainedArm,
        train: Tensor,
        seed: int,
        part: Path,
        log: Any,
        watch: Callable[..., Iterable[Any]],
    ) -> None:
        """Goes on from `part`, which holds the last whole epoch."""
        recipe, probe = self.recipe, self.probe
        epochs, clip_frames, lr = recipe.of(arm.learning)
        clip_frames = probe.settings.num_frames if probe.like.inflate else clip_frames
        arrange(network)
        head_lr = lr if teacher is not None else 10 * lr
        groups = [
            {"params": network.network.parameters(), "lr": lr},
            {"params": network.head.parameters(), "lr": head_lr},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        steps = len(train) // recipe.batch_clips
        schedule = Schedule(warmup_epochs=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule.factor(step / steps, total_epochs=epochs)
        )
        first = 0
        if part.is_file():
            held = torch.load(part, weights_only=True)
            first = held["epoch"]
            network.load_state_dict(held["network"])
            optimizer.load_state_dict(held["optimizer"])
            scheduler.load_state_dict(held["schedule"])
        for epoch in range(first, epochs):
            generator = torch.Generator().manual_seed(seed_of(seed, epoch) % 2**63)
            order = train[torch.randperm(len(train), generator=generator)][: steps * recipe.batch_clips]
            # Norms keep their statistics where no label says what is lost by others; as `octvideo convert` does it.
            network.train()
            if teacher is not None:
                for module in network.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
            total, hits = 0.0, 0
            batches = order.split(recipe.batch_clips)
            for batch in watch(batches, f"{arm.key} epoch {epoch + 1} of {epochs}"):
                frames = augmented(probe.frames[batch], clip_frames, generator)
                x = probe.like.pixels(frames.flatten(0, 1))
                labels = probe.clips.labels[batch]
                logits, features = network(x, len(batch))
                if teacher is None:
                    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
                else:
                    with torch.no_grad():
                        taught, theirs = teacher(x, len(batch))
                    distance = (F.normalize(features) - F.normalize(theirs)).square().sum(1).mean()
                    loss = soft_cross_entropy(logits, taught, 1.0) + _FEATURE_LOSS * distance
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                scheduler.step()
                total += float(loss.detach()) * len(batch)
                hits += int((logits.argmax(1) == labels).sum())
            right = f"{100 * hits / len(order):.1f} % of the training clips right"
            print(f"epoch {epoch + 1}: loss {total / len(order):.4f}, {right}", file=log, flush=True)
            with whole_file(part) as file:
                held = {"epoch": epoch + 1, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**held, "schedule": scheduler.state_dict()}, file)

    def _add(self, entry: dict[str, Any]) -> None:
        self.lines.add(entry)


class FramesClassifier(nn.Module):
    """A network with a linear classifier, on clips; of a network of images, scores are the mean over frames.

    Args:
        network: to features (N, D); not copied.
        like: what it takes.
        judge: gives the classifier's size, and its weights.
        fresh: the classifier starts at 0 instead.
    """

    def __init__(self, network: nn.Module, like: ImageNetwork, judge: Classifier, *, fresh: bool) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.like = like
        self.head = nn.Linear(*judge.weight.shape)
        with torch.no_grad():
            if fresh:
                self.head.weight.zero_()
                self.head.bias.zero_()
            else:  # standardising is linear, too
                weight = judge.weight / judge.std[:, None]
                self.head.weight.copy_(weight.T)
                self.head.bias.copy_(judge.bias - judge.mean @ weight)

    def forward(self, x: Tensor, num_clips: int) -> tuple[Tensor, Tensor]:
        """Frames of clips, one clip after the other, to logits (N, K) and features (N, D)."""
        features = self.like.features(self.network, x, num_clips)
        return self.head(features), features

    @torch.no_grad()
    def predict(self, frames: Tensor) -> list[int]:
        """Classes of clips uint8 (N, T, 3, H, W), by all of their frames."""
        found: list[int] = []
        for clip in frames:
            logits, _ = self(self.like.pixels(clip), 1)
            found.append(int(logits.argmax()))
        return found


def augmented(clips: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Frames to train on: one of each even part of a clip, one crop and one mirror image for all of a clip.

    Args:
        clips: uint8 (N, T, 3, H, W).
        count: of frames of a clip.
        generator: of all draws.

    Returns:
        uint8 (N, count, 3, H, W).
    """
    side = clips.shape[-1]
    found = []
    for clip in clips:
        begins = torch.arange(count) * len(clip) // count
        ends = torch.arange(1, count + 1) * len(clip) // count
        draws = torch.rand(count + 4, generator=generator)
        chosen = clip[(begins + draws[:count] * (ends - begins)).long()]
        # As torchvision's RandomResizedCrop of 60 to 100 % of the area, 3/4 to 4/3 in shape; it takes no generator.
        area, shape, down, right = draws[count : count + 4].tolist()
        size = side * (0.6 + 0.4 * area) ** 0.5
        stretch = (4 / 3) ** (shape - 0.5)
        height, width = (min(side, round(size * each)) for each in (stretch, 1 / stretch))
        top, left = int(down * (side - height + 1)), int(right * (side - width + 1))
        top, left = min(top, side - height), min(left, side - width)
        part = chosen[..., top : top + height, left : left + width].float()
        part = F.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True)
        found.append(part.flip(-1) if torch.rand((), generator=generator) < 0.5 else part)
    return torch.stack(found).round().to(torch.uint8)


def _octave(network: nn.Module, alpha: Any) -> OctaveNetwork:
    return octavize(network, alpha, octave_downsample="keep", inverted_residuals="all")
