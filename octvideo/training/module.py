"""The LightningModule that trains: losses of batches, steps that are not finite, checkpoints.

How the network is run and evaluated is its base's, in scoring_module.py. Losses are float32 whatever the precision.
Metric names: train/loss, train/top1, train/distill_loss where
a teacher is given, val/loss and val/NAME of evaluation's METRICS, and the same under test/.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from octvideo.batches import Batch, Views
from octvideo.errors import NotFinite, UserError
from octvideo.evaluation.metrics import Sums, VideoMetrics, mean_of
from octvideo.evaluation.scoring import Scoring
from octvideo.evaluation.several import several_hot
from octvideo.models.weights import PixelScale, check_finite, first_nonfinite, load_weights, read_weights
from octvideo.seeds import seed_of
from octvideo.training.averaging import WeightAverage, check_goes_on
from octvideo.training.checkpoint_block import (
    built_from,
    check_fit_goes_on,
    check_fits,
    fit_classes,
    make_block,
    scoring_of,
)
from octvideo.training.distillation import Distillation, LossWeights
from octvideo.training.freezing import Freeze, freeze_parameters
from octvideo.training.losses import ClassWeights, LabelLoss, LossName
from octvideo.training.mixing import STEP, Mixing
from octvideo.training.parameter_groups import (
    LearningRates,
    OptimizerName,
    decayed_names,
    make_optimizer,
    parameter_groups,
)
from octvideo.training.precise_bn import BatchNormEstimate, training_clips
from octvideo.training.schedule import Schedule, ScheduleName, place_in_training
from octvideo.training.scoring_module import CompileMode, ScoringModule
from octvideo.training.steps import (
    NonFiniteSteps,
    compiler_errors_in_words,
    precision_advice,
)
from octvideo.training.unreadable import OnUnreadable, UnreadableVideos

STEP_LOSS = "train/loss_step"  # of one batch

log = logging.getLogger("octvideo.training")


def epoch_of(trainer: L.Trainer) -> str:
    """The running epoch, in words, counted from 1."""
    total = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + ("" if total in (None, -1) else f"/{total}")


class VideoClassifier(ScoringModule):
    """Trains and evaluates a video network.

    Args:
        network: clips (N, 3, T, H, W) to logits (N, K), its last nn.Linear being the classifier.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, of the same pixels.
        optimizer: "sgd" has Nesterov momentum.
        lr: at the top of the schedule, for the whole batch.
        lr_batch_size: clips of an optimizer step, over all processes, that `lr` is for: the rate is in proportion to
            what the step has. None takes `lr` as it is.
        layer_decay: factor on the rate from each layer (stem, block, classifier) to the one below it; 1 is off.
        backbone_lr_scale: factor on the rate of all but the classifier.
        momentum: of sgd.
        weight_decay: on weights; norms and biases have none.
        schedule: see `Schedule`, as are the next three.
        warmup_epochs: linear warm-up.
        milestones: epochs of schedule "step".
        gamma: factor of each.
        label_smoothing: of the training loss.
        loss: "cross_entropy" where a video has one label; "bce", of a sigmoid for each class, where it may have
            several. Scores are by softmax or sigmoid accordingly, wherever the checkpoint is used.
        class_weights: of the training loss: "inverse" or "effective", by how many training videos a class has; a weight
            for each class in their order; or {name: weight}: octvideo/training/losses.py.
        class_weights_beta: of "effective" (Cui et al.): classes of more than some 1 / (1 - beta) videos weigh alike.
        focal_gamma: videos that are easy by now count less in the training loss (Lin et al.); 0 is off.
        mixup_alpha: of the Beta distribution that pairs of clips are mixed by; 0 is off.
        cutmix_alpha: of the Beta distribution of CutMix, which puts a box of one clip into another; 0 is off.
        mix_prob: that a batch is mixed at all.
        mix_switch_prob: that it is by CutMix and not by mixup, where both are on.
        views_per_chunk: the most views that go through the network at once in evaluation; None is a number, at most 8,
            by which the views of a video divide, so that all chunks have one size, and are compiled once.
        freeze: "backbone" trains the head alone; "norms" keeps norm weights and statistics.
        init_weights: what to start from: a checkpoint's path or https URL, torchvision:NAME or timm:NAME;
            another number of classes gets a new head, an image network's kernels are inflated over time.
        teacher: a trained network to learn from beside the labels: a run or a checkpoint (in Python its path).
        distill_logits: weight of the teacher's scores in the loss: octvideo/training/distillation.py.
        distill_temperature: that both networks' logits are divided by there.
        distill_features: weight of the distance between what the two classifiers read.
        label_weight: of the labels' loss; None is 1 - distill_logits. With 0 videos need no labels.
        ema_decay: of an exponential moving average of the weights, which is evaluated, saved and used in place of them:
            octvideo/training/averaging.py; 0 is off.
        ema_warmup: averages begin with smaller decays, as timm's do.
        precise_bn: so many training batches estimate norms' statistics anew before validation; 0 is off.
        on_unreadable: in evaluation, "raise" stops at a video that can't be read, "count" leaves it out and
            says so.
        max_unreadable_fraction: share of an epoch's videos that training may skip.
        max_nonfinite_steps: so many steps in a row whose loss or gradients are NaN or infinite end the run; until
            then they are left out.
        channels_last: keep network and clips in channels_last_3d, and arrange the network's convolutions for it
            (octvideo/octave/fused/arrange.py): the faster layout on CPUs.
        fuse: on a CUDA device, let batch norms do in one pass what lies between two convolutions
            (octvideo/octave/fused/training.py); keys and weights stay as they are. Off until it has been measured on a
            GPU: tools/gpu_report.py does.
        checkpoint_gradients: keep of each block its input alone, and compute the block again in the backward pass:
            memory for time, and the same gradients.
        compile: true compiles the network with torch.compile, or one of its modes does; keys stay as they are.
        seed: of dropout and of mixing, which are drawn anew for each (seed, epoch, batch, process): a resumed run
            repeats them.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: tuple[float, float, float] = (0.45, 0.45, 0.45),
        std: tuple[float, float, float] = (0.225, 0.225, 0.225),
        optimizer: OptimizerName = "sgd",
        lr: float = 0.01,
        lr_batch_size: int | None = None,
        layer_decay: float = 1.0,
        backbone_lr_scale: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: ScheduleName = "cosine",
        warmup_epochs: float = 0.0,
        milestones: list[float] | None = None,
        gamma: float = 0.1,
        label_smoothing: float = 0.0,
        loss: LossName = "cross_entropy",
        class_weights: ClassWeights | None = None,
        class_weights_beta: float = 0.999,
        focal_gamma: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mix_prob: float = 1.0,
        mix_switch_prob: float = 0.5,
        views_per_chunk: int | None = None,
        freeze: Freeze = "none",
        init_weights: str | None = None,
        teacher: str | None = None,
        distill_logits: float = 0.5,
        distill_temperature: float = 1.0,
        distill_features: float = 0.0,
        label_weight: float | None = None,
        ema_decay: float = 0.0,
        ema_warmup: bool = True,
        precise_bn: int = 0,
        on_unreadable: OnUnreadable = "raise",
        max_unreadable_fraction: float = 0.01,
        max_nonfinite_steps: int = 10,
        channels_last: bool = False,
        fuse: bool = False,
        checkpoint_gradients: bool = False,
        compile: bool | CompileMode = False,
        seed: int = 0,
    ) -> None:
        for name, value in (("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:  # nor NaN
                raise UserError(f"model.{name}: got {value}, expected 0 or more")
        if precise_bn < 0:
            raise UserError(f"model.precise_bn: got {precise_bn}, expected a number of batches, or 0 for none")
        super().__init__(
            network,
            mean=mean,
            std=std,
            scoring=Scoring("sigmoid" if loss == "bce" else "softmax"),
            views_per_chunk=views_per_chunk,
            on_unreadable=on_unreadable,
            channels_last=channels_last,
            fuse=fuse,
        )
        self.optimizer_name, self.momentum, self.weight_decay = optimizer, momentum, weight_decay
        self.rates = LearningRates(lr, layer_decay, backbone_lr_scale, lr_batch_size)
        self.schedule = Schedule(schedule, warmup_epochs, tuple(milestones or ()), gamma)
        self.seed = seed
        self.label_loss = LabelLoss(
            self.num_classes,
            name=loss,
            weights=class_weights,
            beta=class_weights_beta,
            gamma=focal_gamma,
            smoothing=label_smoothing,
        )
        self.mixing = Mixing(mixup_alpha, cutmix_alpha, mix_prob, mix_switch_prob)
        self.init_weights = init_weights
        self.max_unreadable_fraction = max_unreadable_fraction
        self.distillation: Distillation | None = None
        if teacher is not None:  # before compiling: it hangs hooks on the network
            weights = LossWeights(distill_logits, distill_features, label_weight, distill_temperature)
            self.distillation = Distillation(teacher, network, weights, channels_last=channels_last, compile=compile)
        if teacher is not None and distill_logits and loss == "bce":
            raise UserError(
                "model.distill_logits compares scores of one label a video, and with model.loss bce there may be "
                "several: let the teacher's features alone teach, --model.distill_logits 0 --model.distill_features 1"
            )
        if not self.reads_labels and (class_weights is not None or focal_gamma):
            raise UserError(
                "model.class_weights and model.focal_gamma are of the labels' loss, and labels are not read where the "
                "teacher alone teaches: leave them out, or give model.label_weight"
            )
        self.average = WeightAverage(ema_decay, warmup=ema_warmup) if ema_decay else None
        self.precise_bn = precise_bn
        if checkpoint_gradients and compile:
            raise UserError(
                "model.checkpoint_gradients works on networks that are not compiled: leave model.compile out"
            )
        if checkpoint_gradients:
            self.checkpoint_blocks()
        if compile:
            self.compile_network(compile)
        self._held, self._decayed = freeze_parameters(network, freeze), decayed_names(network)
        self._rate_factors = self.rates.factors(network)
        self.train()  # Lightning leaves the modes as it finds them: what is held must be in eval already
        self.train_metrics = VideoMetrics(self.num_classes)
        self.train_sums = Sums("loss", "distill_loss", "clips", "unreadable", "nonfinite")
        self.unreadable = UnreadableVideos("training")
        self.steps = NonFiniteSteps(max_nonfinite_steps)
        self._largest_batch = 0
        self._epoch_started = 0.0
        self._steps_since_look = 0
        self._first_batch: int | None = None  # of the running epoch, trained by this process

    # ── network ─────────────────────────────────────────────────────────────────────────────────────────────

    def train(self, mode: bool = True) -> VideoClassifier:
        """As nn.Module's, but what is frozen stays in eval: its norms keep their statistics."""
        super().train(mode)
        for module in self._held:
            module.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoClassifier:
        super()._apply(fn, recurse)
        if self.distillation is not None:
            self.distillation._apply(fn)
        return self

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Checks that data and options fit together, and loads `init_weights` unless a checkpoint will be loaded."""
        super().setup(stage)
        strategy = self.trainer.strategy
        if self.average is not None and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            raise UserError(
                f"model.ema_decay averages whole weights, and {type(strategy).__name__} has shards of them: train with "
                "--trainer.strategy ddp, or without ema_decay"
            )
        names = self.names_of_data
        if stage == "fit" and self.rates.batch_size is not None and self._clips_per_step is None:
            raise UserError("model.lr_batch_size needs data with a batch_size: give model.lr for the batch itself")
        if stage == "fit" and self.distillation is not None:
            self.distillation.check_classes(names, self.num_classes)
            self._teacher_line = self.distillation.cost(self.network, getattr(self.datamodule, "clip_shape", None))
        if stage == "fit" and self.reads_labels:
            self._settle_class_weights()
        if self.init_weights is not None and not self.trainer.ckpt_path:
            weights = read_weights(self.init_weights)
            report = load_weights(self.network, weights, head="swap", class_names=names)
            if stage != "fit" and report.classes is not None and report.class_names:
                raise UserError(f"{self.init_weights} was trained on {report.class_names}: its head is of no use here")
            self.print(f"Weights from {self.init_weights}: {report}")
            if advice := report.pixel_advice(PixelScale(self.mean, self.std)):
                self.print(f"  {advice}")

    def _settle_class_weights(self) -> None:
        counts = getattr(self.datamodule, "class_counts", None) if self.label_loss.needs_counts else None
        if self.label_loss.needs_counts and counts is None:
            raise UserError("model.class_weights by counts needs data that has class_counts: give a list of weights")
        videos = 0 if counts is None else len(self.datamodule.videos("train"))
        self.label_loss.settle(self.class_names, counts, videos)
        if self.label_loss.is_weighted:
            self.print(self.label_loss.described(self.class_names, counts))

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's, with what learns beside the network last."""
        groups = parameter_groups(self.network, self.weight_decay, self._decayed, self._rate_factors)
        if self.distillation is not None and (beside := list(self.distillation.parameters())):
            groups.append({"params": beside, "weight_decay": self.weight_decay, "lr_scale": 1.0})
        return groups

    @property
    def reads_labels(self) -> bool:
        """Whether training does: not where a teacher alone teaches."""
        return self.distillation is None or self.distillation.weights.of_labels > 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, fused = self.rates.lr, self._skips_by_itself
        return make_optimizer(self.optimizer_name, self._groups(), lr=lr, momentum=self.momentum, fused=fused)

    @property
    def _skips_by_itself(self) -> bool | None:
        """Whether the optimizer is one of torch's fused ones, which leave a step out by a tensor on their device.
        The host would have to wait for the GPU to know it. None, not False: torch then chooses its form.
        """
        device = self.device if self._trainer is None else self.trainer.strategy.root_device
        return True if device.type == "cuda" else None

    def _set_learning_rate(self, batch_idx: int) -> float:
        epoch, total = place_in_training(self.trainer, batch_idx)
        lr = self.rates.for_batch(self._clips_per_step or 0) * self.schedule.factor(epoch, total_epochs=total)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
        return lr

    @property
    def _clips_per_step(self) -> int | None:
        """Of an optimizer step, over all processes; None where the data does not say."""
        batch_size = getattr(self.datamodule, "batch_size", None)
        return batch_size and batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_fit_start(self) -> None:
        self.fuse_on_cuda()
        total = sum(p.numel() for p in self.network.parameters())
        learning = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        built = built_from(self.network) or {"class_path": type(self.network).__name__}
        self.print(f"network: {built['class_path']} {built.get('init_args', '')}")
        self.print(f"{total:,} parameters, {learning:,} of them learning")
        if said := getattr(self.datamodule, "said_of_order", ""):
            self.print(said)
        for line in self.rates.described(self._rate_factors, clips=self._clips_per_step):
            self.print(line)
        if self.distillation is not None:
            self.distillation.teacher.move_to(self.trainer.strategy.root_device)  # FSDP moves what it trains alone
            self.print(self._teacher_line)
        if self.precise_bn:
            count = len(BatchNormEstimate(self.network, self._held))
            self.print(f"precise_bn: {count} batch norms are estimated on {self.precise_bn} batches before validation")
        if advice := precision_advice(str(self.trainer.precision), self.trainer.strategy.root_device):
            self.print(advice)

        if self.checkpointed_blocks is not None:
            self.print(
                f"gradient checkpoints: {len(self.checkpointed_blocks)} blocks are computed again in the backward pass"
            )
        if self.average is not None:
            self.average.begin(self.network)
            self.print(self.average)

    def on_train_start(self) -> None:
        # Lightning leaves these out where it resumes within an epoch.
        self.on_train_epoch_start()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(self.trainer)

    def on_train_epoch_start(self) -> None:
        self._epoch_started, self._first_batch, self._told_nonfinite = time.monotonic(), None, False
        for metric in (self.train_metrics, self.train_sums):
            metric.reset()
        if self.distillation is not None:
            self.distillation.share.begin()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._first_batch is None:
            self._first_batch = batch_idx
        if batch_idx == 0:  # else a checkpoint has said how many there were
            self.unreadable.start_pass()
        lr = self._set_learning_rate(batch_idx)
        # Filled on the device: a number would be copied there, which waits for all that the device has to do.
        self.log("lr", torch.full((), lr, device=self.device), on_step=True)
        # Not Lightning's global state, which a resumed run does not get back.
        epoch = self.trainer.current_epoch
        torch.manual_seed(seed_of(self.seed, epoch, batch_idx, STEP, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        video, labels = batch["video"], batch["label"]
        failed = self.unreadable
        failed.add(batch["failures"])
        self.train_sums.update(unreadable=len(batch["failures"]))
        videos = len(labels) // getattr(self.datamodule, "repeats", 1) + len(batch["failures"])
        self._largest_batch = max(self._largest_batch, videos)
        # Stops as soon as the epoch can't keep the bound any more, not after hours at its end.
        failed.check_bound(int(self.trainer.num_training_batches * self._largest_batch), self.max_unreadable_fraction)
        if not len(labels):
            return self._empty_loss(video)
        assert isinstance(video, Tensor)  # clips
        clips, targets = video, None
        if self.reads_labels:
            truth = self._truth(batch)
            targets = truth.float()  # (N,K)
        if (mix := self.mixing.draw(video)) is not None:
            clips = mix.clips(video)
            targets = None if targets is None else mix.targets(targets)
        self.steps.before_forward(self.network)
        taught = None if self.distillation is None else self.distillation.targets(clips)
        logits = self(clips)
        loss, distill_loss = self._losses(logits, targets, taught)
        finite = self.steps.note_loss(loss)
        clips_counted = len(labels) * finite
        self.train_sums.update(
            loss=loss.detach().where(finite, 0) * clips_counted,
            distill_loss=distill_loss.detach().where(finite, 0) * clips_counted,
            clips=clips_counted,
            nonfinite=~finite,
        )
        if self.reads_labels:
            self._count_trained(logits.detach(), labels, truth)
        self.log(STEP_LOSS, loss.detach(), on_step=True, batch_size=len(labels))
        return loss

    def _truth(self, batch: Batch) -> Tensor:
        """Which labels the clips of a batch have, bool (N, K)."""
        labels = batch["label"]
        none = labels.new_empty(len(labels), 0)
        return several_hot(labels, batch["others"] if self.scoring.has_several else none, self.num_classes)

    def _count_trained(self, logits: Tensor, labels: Tensor, truth: Tensor) -> None:
        """Top-1 of the clips as they were trained on; of several labels the best class counts as the one it is."""
        if self.scoring.has_several:
            best = logits.argmax(1)
            labels = best.where(truth.gather(1, best[:, None])[:, 0], labels)
        self.train_metrics.update(logits.softmax(1), labels)

    def _losses(
        self, logits: Tensor, targets: Tensor | None, taught: tuple[Tensor, Tensor | None] | None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the teacher's part of it.

        Args:
            logits: (N, K).
            targets: from labels, (N, K); None where they are not read.
            taught: the teacher's logits and features; None without a teacher.
        """
        loss = distill_loss = logits.new_zeros(())
        if targets is not None:
            loss = self.label_loss(logits, targets)
        if self.distillation is not None and taught is not None:
            distill_loss = self.distillation.loss(logits, taught)
            loss = self.distillation.weights.of_labels * loss + distill_loss
        return loss, distill_loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; a compiled network's backward pass is compiled here."""
        if self.runs_by_graphs and self.trainer.accumulate_grad_batches > 1:
            # Autograd keeps the first gradient that it is given, and adds later ones to it; but a graph overwrites it.
            for parameter in self.network.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        with compiler_errors_in_words():
            super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        self.steps.after_backward(self.network)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        bad, by_gradients = self.steps.end_step(self.network, looks_at_gradients=scaler is None)
        self.train_sums.update(nonfinite=by_gradients)
        if self._skips_by_itself:
            optimizer.found_inf = bad  # type: ignore[attr-defined]
            self._steps_since_look += 1
            if self._steps_since_look >= self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
                self._look_at_steps()
        elif self._look_at_steps():
            self.zero_grad(set_to_none=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; behind it the weights are averaged, before anything saves them."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.network)

    def _look_at_steps(self) -> bool:
        """Whether steps since the last look were not finite; says so, and ends the run where they are many in a row."""
        self._steps_since_look = 0
        left_out = self.steps.look()
        self._say_share_of_teacher()
        if left_out.in_a_row >= self.steps.most:
            raise self._diverged(f"{left_out.in_a_row} steps in a row were not finite, {left_out.problem}")
        if left_out.steps and not self._told_nonfinite:  # once in an epoch
            most = f"up to {self.steps.most} in a row (model.max_nonfinite_steps)"
            log.warning("%s: %s; such steps are left out, %s", self._place, left_out.problem, most)
            self._told_nonfinite = True
        return left_out.steps > 0

    def _say_share_of_teacher(self, *, at_end: bool = False) -> None:
        if self.distillation is not None and (said := self.distillation.share.said(at_end=at_end)):
            self.print(said)

    @property
    def _place(self) -> str:
        return f"epoch {self.trainer.current_epoch + 1}, step {self.trainer.global_step}"

    def _diverged(self, problem: str) -> NotFinite:
        trainer = self.trainer
        callbacks = (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint))
        saved = trainer.ckpt_path or any(callback.best_model_path for callback in callbacks)
        go_on = "go on from the last checkpoint, which is finite, with --resume" if saved else "start again"
        return NotFinite(
            f"training has diverged: {problem} ({self._place}). Lower --model.lr (now {self.rates.lr:g}), warm up "
            f"longer (--model.warmup_epochs) or clip gradients (--trainer.gradient_clip_val 1), and {go_on}"
        )

    def _empty_loss(self, video: Tensor | Sequence[Views]) -> Tensor | None:
        """No video of the batch could be read. Other processes wait for our gradients: give them zeros, not nothing.
        Where they wait for our part in norms' statistics or for our shards of weights, the network runs on no clips.
        """
        if self.trainer.world_size == 1:
            return None
        if not (self.synchronises or isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy)):
            return torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        assert isinstance(video, Tensor)  # (0, 3, T, H, W)
        loss = self(video).sum()
        if self.distillation is not None and self.distillation.student_features is not None:
            loss = loss + self.distillation.student(0).sum()
        return loss

    def on_train_epoch_end(self) -> None:
        if self._first_batch is None:
            self.print(f"{epoch_of(self.trainer)} was over before the resume")
            return
        if self._skips_by_itself:
            self._look_at_steps()
        self._say_share_of_teacher(at_end=True)
        sums = self.train_sums.compute()
        values = {"train/top1": self.train_metrics.compute()["top1"]} if self.reads_labels else {}
        for name in ("loss", "distill_loss") if self.distillation is not None else ("loss",):
            values[f"train/{name}"] = mean_of(sums[name], sums["clips"])
        values |= {f"train/{name}": sums[name] for name in ("unreadable", "nonfinite")}
        self.log_all(values)
        shown = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")} | values
        self.print(self._epoch_line(shown))

    def on_train_end(self) -> None:
        if self.average is not None:
            self.average.enter(self.network)  # what a test by the same module is of

    def _epoch_line(self, values: dict[str, float]) -> str:
        parts = [epoch_of(self.trainer)]
        if self._first_batch:
            batches = self.trainer.num_training_batches
            parts.append(f"(resumed: the last {batches - self._first_batch} of {batches} batches alone)")
        for name in ("train/loss", "train/distill_loss", "train/top1", "val/loss", "val/top1", "val/map"):
            if name in values:
                parts.append(f"{name} {values[name]:.4f}" if "loss" in name else f"{name} {100 * values[name]:.1f} %")
        if nonfinite := int(values["train/nonfinite"]):
            parts.append(f"{nonfinite} batches not finite")
        parts.append(f"{time.monotonic() - self._epoch_started:.0f} s")
        return "  ".join(parts)

    # ── between trainings ───────────────────────────────────────────────────────────────────────────────────

    def on_validation_start(self) -> None:
        super().on_validation_start()
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if self.average is not None and fitting:
            self.average.enter(self.network)  # before their statistics are estimated
        if self.precise_bn and fitting and not self.trainer.sanity_checking:
            with self.trainer.precision_plugin.forward_context():
                clips = training_clips(self.trainer, self.datamodule, self.precise_bn)
                BatchNormEstimate(self.network, self._held).over(clips, self)

    def on_validation_epoch_end(self) -> None:
        if self.average is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.average.leave(self.network)
        super().on_validation_epoch_end()

    def no_scores(self, problem: str) -> NotFinite:
        return self._diverged(problem) if self.trainer.state.fn == TrainerFn.FITTING else super().no_scores(problem)

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        groups = self._groups()
        optimized = [p for group in groups for p in group["params"]]
        if self.distillation is None and self.trainer.state.fn != TrainerFn.FITTING:
            for key in [key for key in checkpoint["state_dict"] if key.startswith("distillation.")]:
                del checkpoint["state_dict"][key]  # what only learnt beside the network
        theirs = scoring_of(checkpoint)
        if theirs.function != self.scoring.function:
            name = "bce" if theirs.has_several else "cross_entropy"
            raise UserError(f"the checkpoint was trained with model.loss {name}: give it, or start with --init")
        self.scoring = theirs
        if names := self.names_of_data:
            order = fit_classes(checkpoint, names, self.network, optimized)
            self.scoring = theirs if order is None else theirs.reordered(order)
        check_fits(checkpoint, self.state_dict(), self.network)
        check_finite(checkpoint["state_dict"], self.trainer.ckpt_path)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_goes_on(checkpoint, self.average)
            check_fit_goes_on(checkpoint, self.optimizer_name, groups)
            for state in checkpoint["optimizer_states"]:
                for saved, own in zip(state["param_groups"], groups, strict=True):
                    # That of this run's device and config, not of what wrote it.
                    saved.update(fused=self._skips_by_itself, lr_scale=own["lr_scale"])
            if self.average is not None:
                self.average.load(checkpoint)
        self.unreadable.paths.update(checkpoint.get("unreadable", {}))
        self.unreadable.count = checkpoint.get("unreadable_in_epoch", 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        optimizers = [entry for state in checkpoint.get("optimizer_states", ()) for entry in state["state"].values()]
        states = ((f"the optimizer's {key}", value) for entry in optimizers for key, value in entry.items())
        tensors = ((key, value) for key, value in states if isinstance(value, Tensor))
        if name := first_nonfinite(itertools.chain(checkpoint["state_dict"].items(), tensors)):
            raise self._diverged(f"{name} is not finite, so no checkpoint is written")
        self.unreadable.gather()  # Lightning calls this on every process
        checkpoint["unreadable"] = dict(self.unreadable.paths)
        checkpoint["unreadable_in_epoch"] = self.unreadable.count  # of the first process, about what others have
        views = getattr(self.datamodule, "view_settings", None)
        how: dict[str, Any] = {"views": views, "mean": self.mean, "std": self.std, "scoring": self.scoring}
        checkpoint["octvideo"] = make_block(self.network, self.class_names, **how)
        if self.average is not None:
            self.average.save(checkpoint)
