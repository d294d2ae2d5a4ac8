"""A trained network teaches another: what it computes for the same clips is learnt beside labels, or in their place.

    clips ─ teacher (eval, no gradient) ─▶ logits, features
          ─ student ─▶ logits, features
    loss = label_weight · cross_entropy(student, labels)
         + logits · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
         + features · |s / |s| - t / |t||²

T² keeps the gradient's size whatever the temperature T (Hinton et al., arXiv 1503.02531). Features are what the
classifier reads. Where the student's are fewer or more than the teacher's, a linear projection that learns with the
student makes s of them; the student's network does not hold it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.class_names import match_classes
from octvideo.compiling import compile_module
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.models.checkpoint import trained_network
from octvideo.models.weights import classifier_keys
from octvideo.octave import arrange, count_cost, prepare_inference
from octvideo.training.freezing import find_head

log = logging.getLogger("octvideo.training")


@dataclass(frozen=True)
class LossWeights:
    """What the parts of a distilled loss count.

    Args:
        logits: of the divergence from the teacher's scores.
        features: of the distance from the teacher's features.
        labels: of the labels' own loss; None is 1 - logits, as in DeiT and timm.
        temperature: of both networks' scores.

    Raises:
        UserError: one is negative, nothing would be learnt from the teacher, or `labels` must be given.
    """

    logits: float = 0.5
    features: float = 0.0
    labels: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("distill_logits", self.logits), ("distill_features", self.features)):
            if not value >= 0:  # nor NaN
                raise UserError(f"model.{name}: got {value}, expected 0 or more")
        if not self.temperature > 0:
            raise UserError(f"model.distill_temperature: got {self.temperature}, expected more than 0")
        if not (self.logits or self.features):
            raise UserError(
                "model.teacher: nothing is learnt from it where model.distill_logits and model.distill_features are 0"
            )
        if self.labels is None and self.logits > 1:
            raise UserError(
                f"model.distill_logits is {self.logits:g}, and 1 - {self.logits:g} can't be the labels' weight: give "
                "model.label_weight"
            )
        if not self.of_labels >= 0:
            raise UserError(f"model.label_weight: got {self.labels}, expected 0 or more")

    @property
    def of_labels(self) -> float:
        """The labels' weight; 0 reads none."""
        return weight_of_labels(self.logits, self.labels)


def weight_of_labels(distill_logits: float, label_weight: float | None) -> float:
    """The weight of the labels' own loss; where it is 0 they are not read."""
    return 1 - distill_logits if label_weight is None else label_weight


class HeadInput:
    """What a network's classifier reads, before the dropout where that is a layer of its own.

    Args:
        network: whose last nn.Linear is the classifier; it gets a hook. To be given before it is compiled.

    Attributes:
        width: C.
    """

    def __init__(self, network: nn.Module) -> None:
        head = find_head(network)
        self.width = head.in_features
        leaves = [module for module in network.modules() if module is head or not list(module.children())]
        before = leaves[max(leaves.index(head) - 1, 0)]
        self._is_map = isinstance(before, nn.Dropout)  # heads of clips drop channels of maps, (N, C, T, H, W)
        (before if self._is_map else head).register_forward_pre_hook(self._keep)
        self._kept: Tensor | None = None

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kept = inputs[0]

    def take(self, num_clips: int) -> Tensor:
        """Of the last call on N clips: (N, C), float32 or float64, averaged over frames and places as logits are.

        Raises:
            UserError: the classifier has not read C features.
        """
        x, self._kept = self._kept, None
        axis = 1 if x is not None and self._is_map and x.shape[1] == self.width else -1
        if x is None or x.shape[axis] != self.width:
            got = "nothing" if x is None else f"maps of {tuple(x.shape)}"
            raise UserError(
                f"model.distill_features: the classifier reads {self.width} features, but the layer before it got "
                f"{got}: take model.distill_logits alone"
            )
        x = x.movedim(axis, -1)
        places = x.numel() // max(num_clips * self.width, 1) or 1
        return x.reshape(num_clips, places, self.width).to(torch.promote_types(x.dtype, torch.float32)).mean(1)


class Teacher:
    """A network that learns nothing: no module, so that whoever holds it neither saves nor trains nor shards it.

    Args:
        path: of a checkpoint of octvideo.
        channels_last: as VideoClassifier's.
        compile: as VideoClassifier's.
        keeps_features: whether `features` will be asked for.

    Raises:
        UserError: no such checkpoint, or its network can't be built from it.
    """

    def __init__(self, path: str, *, channels_last: bool, compile: bool | str, keeps_features: bool) -> None:
        self.path, self.channels_last = path, channels_last
        self.network, block = trained_network(path)
        self.network.requires_grad_(False)
        self.built_from, self.class_names = block["network"], list(block["class_names"])
        self.scoring = Scoring.from_dict(block.get("scoring"), num_classes=len(self.class_names))
        self.mean, self.std = (255 * torch.tensor(block[key]).view(3, 1, 1, 1) for key in ("mean", "std"))
        self.features = HeadInput(self.network) if keeps_features else None
        if channels_last:
            arrange(self.network)
        self._prepared: tuple[nn.Module, HeadInput | None] | None = None
        self._is_compiled = bool(compile)
        # CUDA graphs: what they return lies in memory that the student's graph may take.
        self._by_graphs = compile in ("reduce-overhead", "max-autotune")
        if compile:
            compile_module(self.network, mode=None if compile is True else compile)

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Onto a device or into a precision, as nn.Module's `_apply`; pixels are normalised in float32."""
        self._prepared = None
        self.network._apply(fn)
        self.mean, self.std = fn(self.mean).float(), fn(self.std).float()

    def move_to(self, device: torch.device) -> None:
        """Where it is not there already."""
        if self.mean.device != device:
            self.move(lambda tensor: tensor.to(device))

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """Clips (N, 3, T, H, W) of 0 to 255 to logits (N, K) and features (N, C), float32."""
        x = ((clips.float() - self.mean) / self.std).to(next(self.network.parameters()).dtype)
        network, read = self._form_for(x)
        if self.channels_last or network is not self.network:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        logits = network(x).float()
        features = None if read is None else read.take(len(clips))
        if self._by_graphs:
            return logits.clone(), None if features is None else features.clone()
        return logits, features

    def _form_for(self, x: Tensor) -> tuple[nn.Module, HeadInput | None]:
        """The network in the form in which it runs on pixels (N, 3, T, H, W), and what reads its features.

        On a CPU, in float32, it is that for scores alone, which takes half the time.
        """
        if self._is_compiled or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return self.network, self.features
        if self._prepared is None:
            network = prepare_inference(self.network)
            self._prepared = network, None if self.features is None else HeadInput(network)
        return self._prepared

    def order_classes(self, names: Sequence[str]) -> bool:
        """Moves the rows of its head to the order of the data's classes.

        Args:
            names: of the data.

        Returns:
            Whether it knows these classes.
        """
        match = match_classes(self.class_names, names)
        if match.order is None:
            return False
        if match.said:
            log.warning("the teacher has %s", match.said)
        if match.reorders:
            self._prepared = None
            for key in classifier_keys(self.network):
                parameter = self.network.get_parameter(key)
                parameter.data = parameter.data[match.order]
        self.class_names = list(names)
        return True


class Distillation(nn.Module):
    """The teacher's part in a student's loss. Its parameters are the projection's alone.

    Args:
        path: of the teacher's checkpoint.
        student: the network that learns; it gets a hook where features are compared.
        weights: of the loss.
        channels_last: as VideoClassifier's, for the teacher too.
        compile: as VideoClassifier's, for the teacher too.

    Raises:
        UserError: the checkpoint can't be used.
    """

    def __init__(
        self,
        path: str,
        student: nn.Module,
        weights: LossWeights,
        *,
        channels_last: bool = False,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        self.weights = weights
        by_features = weights.features > 0
        self.teacher = Teacher(path, channels_last=channels_last, compile=compile, keeps_features=by_features)
        if weights.logits and self.teacher.scoring.has_several:
            raise UserError(
                f"the teacher {path} gives several labels a video, and model.distill_logits compares scores of one: "
                "let its features alone teach, --model.distill_logits 0 --model.distill_features 1"
            )
        self.student_features = HeadInput(student) if by_features else None
        self.projection: nn.Linear | None = None
        if self.student_features is not None and self.teacher.features is not None:
            narrow, wide = self.student_features.width, self.teacher.features.width
            self.projection = nn.Linear(narrow, wide, bias=False) if narrow != wide else None
        self.share = ShareOfStep()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distillation:
        """As nn.Module's, with the teacher; but the projection keeps float32, as losses do."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)
        self.teacher.move(fn)
        return self

    def check_classes(self, names: Sequence[str], num_classes: int) -> None:
        """Brings the teacher's classes into the student's order.

        Args:
            names: of the data's classes; empty where it has none.
            num_classes: K of the student.

        Raises:
            UserError: they are other ones, and its logits are to be learnt.
        """
        theirs = self.teacher.class_names
        is_known = self.teacher.order_classes(names) if names else len(theirs) == num_classes
        if self.weights.logits and not is_known:
            said = (
                match_classes(theirs, names).said if names else f"{len(theirs)} classes, the student has {num_classes}"
            )
            raise UserError(
                f"the teacher {self.teacher.path} was trained on {said}: its logits mean nothing here. Take a teacher "
                "of the data's classes, or let its features alone teach: --model.distill_logits 0 "
                "--model.distill_features 1"
            )

    def cost(self, student: nn.Module, clip_shape: Sequence[int] | None) -> str:
        """Who the teacher is and what it computes beside the student, in a line.

        Args:
            student: before a strategy takes it apart.
            clip_shape: (3, T, H, W), where that is known.

        Raises:
            UserError: the teacher or the student takes no such clip.
        """
        built = self.teacher.built_from
        line = f"teacher: {built['class_path']} {built.get('init_args', '')} from {self.teacher.path}"
        if clip_shape is None:
            return line
        try:
            theirs, own = (count_cost(net, (1, *clip_shape)).multiply_adds for net in (self.teacher.network, student))
        except RuntimeError:  # a network of the user's that can't be counted
            return line
        return (
            f"{line}, {theirs / 1e9:.3g} G multiply-adds a clip; the student has {own / 1e9:.3g} G, about three times "
            "that with its backward pass"
        )

    def targets(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """The teacher's logits (N, K) and features (N, C). To be asked for before the student runs, see `Teacher`."""
        self.share.start(clips.device)
        targets = self.teacher(clips)
        self.share.stop(clips.device)
        return targets

    def loss(self, logits: Tensor, targets: tuple[Tensor, Tensor | None]) -> Tensor:
        """The teacher's part of the loss of a batch, after the student's forward pass.

        Args:
            logits: the student's, (N, K).
            targets: see `targets`.
        """
        taught, features = targets
        with torch.autocast(logits.device.type, enabled=False):
            loss = logits.new_zeros(())
            if self.weights.logits:
                loss = loss + self.weights.logits * soft_cross_entropy(logits, taught, self.weights.temperature)
            if features is not None:
                own, theirs = F.normalize(self.student(len(logits))), F.normalize(features)
                loss = loss + self.weights.features * (own - theirs).square().sum(1).mean()
        return loss

    def student(self, num_clips: int) -> Tensor:
        """The student's features of its last N clips, in the teacher's width (N, C)."""
        assert self.student_features is not None
        own = self.student_features.take(num_clips)
        return own if self.projection is None else self.projection(own.to(self.projection.weight.dtype))


def soft_cross_entropy(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(taught / T) ‖ softmax(logits / T)), the mean over the batch."""
    own, theirs = (F.log_softmax(x / temperature, 1) for x in (logits, taught.to(logits.dtype)))
    return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)


class ShareOfStep:
    """Which share of a training step the teacher takes: measured over some steps, and said once.

    On a GPU, marks are events in its stream, and nothing waits for them until they are asked for.
    """

    _FIRST, _STEPS = 1, 10  # the first step compiles, and allocates memory

    def __init__(self) -> None:
        self._marks: list[tuple[Any, Any]] = []  # start and end of the teacher's passes
        self._started: Any = None
        self._is_over = False

    def begin(self) -> None:
        """Forgets what came before, as validation between two epochs is no part of a step."""
        self._marks.clear()

    def start(self, device: torch.device) -> None:
        """The teacher's pass, and with it a step, begins."""
        if not self._is_over:
            self._started = _mark(device)

    def stop(self, device: torch.device) -> None:
        """The teacher's pass ends."""
        if not self._is_over:
            self._marks.append((self._started, _mark(device)))

    def said(self, *, at_end: bool = False) -> str | None:
        """In words, once there are steps enough; on a GPU it waits for the last of them.

        Args:
            at_end: of an epoch, whose steps must do.
        """
        steps = len(self._marks) - 1 - self._FIRST  # whole ones, each from a start to the next
        if self._is_over or steps < (1 if at_end else self._STEPS):
            return None
        self._is_over, marks = True, self._marks[self._FIRST :]
        taught = sum(_seconds(start, end) for start, end in marks[:-1])
        share = taught / max(_seconds(marks[0][0], marks[-1][0]), 1e-9)
        self._marks = []
        return f"the teacher takes {100 * share:.0f} % of a step (steps measured: {steps})"


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
