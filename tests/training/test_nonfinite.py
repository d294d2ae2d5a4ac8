"""Steps that are not finite: what they leave of weights, norms and optimizer, what is said, and when a run ends."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from octvideo.data.loading import MovableBatch
from octvideo.errors import NotFinite, UserError
from octvideo.training import VideoClassifier
from octvideo.training.steps import LeftOut, NonFiniteSteps

K = 3


class Fragile(nn.Module):
    """Colours to logits. A batch whose first pixel is `nan` or `inf` of these numbers comes out so, forward or back."""

    FORWARD, BACK = 250, 251

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(3)
        self.head = nn.Linear(3, K)

    def forward(self, x: Tensor) -> Tensor:
        mark = round(float(x[0, 0, 0, 0, 0] * 0.225 * 255 + 0.45 * 255))
        x = x * math.inf if mark == self.FORWARD else x
        logits = self.head(self.norm(x).mean((2, 3, 4)))
        if mark == self.BACK and logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return logits


def batch(number: int, mark: int = 0, *, views: int = 0) -> MovableBatch:
    shape = (2, views, 3, 2, 4, 4) if views else (2, 3, 2, 4, 4)
    video = torch.randint(0, 240, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    video.view(-1)[0] = mark
    names = [f"{number}a.mp4", f"{number}b.mp4"]
    return MovableBatch(
        {"video": video, "label": torch.arange(2), "index": torch.arange(2), "path": names, "failures": []}
    )


def batches(marks: list[int]) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader([batch(n, mark) for n, mark in enumerate(marks)], batch_size=None)  # type: ignore[arg-type]


def fit(folder: Path, marks: list[int], *, module: VideoClassifier | None = None, **settings: Any) -> L.Trainer:
    torch.manual_seed(0)
    module = module or VideoClassifier(Fragile(), lr=0.1, schedule="constant")
    fixed: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 1, "enable_checkpointing": False} | settings
    trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, **fixed, **settings)
    trainer.fit(module, batches(marks))
    return trainer


def state(trainer: L.Trainer) -> dict[str, Tensor]:
    return dict(trainer.lightning_module.state_dict())


@pytest.mark.parametrize("mark", [Fragile.FORWARD, Fragile.BACK])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path: Path, mark: int, optimizer: Any) -> None:
    def module() -> VideoClassifier:
        torch.manual_seed(0)
        return VideoClassifier(Fragile(), lr=0.1, schedule="constant", optimizer=optimizer)

    with_it = fit(tmp_path, [0, mark, 0], module=module())
    torch.manual_seed(0)
    without = module()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(without, torch.utils.data.DataLoader([batch(0), batch(2)], batch_size=None))  # type: ignore[arg-type]
    expected = without.state_dict()
    for name, tensor in state(with_it).items():
        # The backward pass alone goes wrong: its forward pass has counted in the norms' statistics, rightly so.
        if mark == Fragile.FORWARD or ("running" not in name and "tracked" not in name):
            assert torch.equal(tensor, expected[name]), name
    assert with_it.callback_metrics["train/nonfinite"] == 1


def test_a_window_with_one_such_batch_is_left_out_whole(tmp_path: Path) -> None:
    module = VideoClassifier(Fragile(), lr=0.1)
    before = copy.deepcopy({name: p for name, p in module.named_parameters()})
    trainer = fit(tmp_path, [0, Fragile.FORWARD, 0, 0], module=module, accumulate_grad_batches=4)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    assert trainer.global_step == 1 and trainer.callback_metrics["train/nonfinite"] == 1
    assert all(tensor.isfinite().all() for tensor in state(trainer).values())


def test_the_first_of_an_epoch_is_said_and_the_epoch_line_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(tmp_path, [0, Fragile.FORWARD, 0, Fragile.BACK, 0], max_epochs=2)
    assert [record.getMessage() for record in caplog.records if record.name == "octvideo.training"] == [
        f"epoch {epoch}, step {step}: the loss was nan; such steps are left out, up to 10 in a row "
        "(model.max_nonfinite_steps)"
        for epoch, step in ((1, 1), (2, 6))
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and all("  2 batches not finite  " in line for line in lines)
    assert math.isfinite(trainer.callback_metrics["train/loss"])


def test_a_finite_epoch_does_not_speak_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [0, 0])
    assert "not finite" not in capsys.readouterr().out


@pytest.mark.parametrize("mark", [Fragile.FORWARD, Fragile.BACK])
def test_many_in_a_row_end_the_run_with_the_last_finite_checkpoint(tmp_path: Path, mark: int) -> None:
    module = VideoClassifier(Fragile(), lr=0.1, max_nonfinite_steps=3)
    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    what = "the loss was nan" if mark == Fragile.FORWARD else "gradients were not finite"
    with pytest.raises(NotFinite) as told:
        fit(tmp_path, [0, mark, mark, 0, *[mark] * 5], module=module, callbacks=[last], enable_checkpointing=True)
    advice = "Lower --model.lr (now 0.1), warm up longer (--model.warmup_epochs) or clip gradients"
    assert str(told.value) == (
        f"training has diverged: 3 steps in a row were not finite, {what} (epoch 1, step 6). {advice} "
        "(--trainer.gradient_clip_val 1), and go on from the last checkpoint, which is finite, with --resume"
    )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_without_a_checkpoint_the_advice_is_to_start_again(tmp_path: Path) -> None:
    module = VideoClassifier(Fragile(), max_nonfinite_steps=1)
    with pytest.raises(NotFinite, match=r"1 steps in a row.*--trainer.gradient_clip_val 1\), and start again$"):
        fit(tmp_path, [Fragile.FORWARD], module=module)


class Spoil(L.Callback):
    """Makes something infinite after a training step, as an update that overflows does."""

    def __init__(self, what: str, step: int) -> None:
        self.what, self.step = what, step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            weight = pl_module.network.head.weight
            tensors = {
                "network.head.weight": weight.data,
                "network.norm.running_var": pl_module.network.norm.running_var,
                "the optimizer's momentum_buffer": trainer.optimizers[0].state[weight]["momentum_buffer"],
            }
            tensors[self.what].view(-1)[0] = math.inf


@pytest.mark.parametrize("what", ["network.head.weight", "network.norm.running_var", "the optimizer's momentum_buffer"])
def test_no_checkpoint_that_is_not_finite_replaces_one(tmp_path: Path, what: str) -> None:
    last = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises(NotFinite, match=rf"{what} is not finite, so no checkpoint is written \(epoch 1, step 2\)"):
        fit(tmp_path, [0] * 4, callbacks=[Spoil(what, 2), last], enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_infinite_gradients_of_a_scaler_are_its_own_affair() -> None:
    network = nn.Linear(2, 1)
    steps = NonFiniteSteps(2)
    for looks in (False, True, False):
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, math.inf)
        assert steps.note_loss(torch.tensor(1.0))
        assert steps.end_step(network, looks_at_gradients=looks) == (looks, looks)
    left_out = steps.look()
    assert (left_out.steps, left_out.in_a_row, left_out.problem) == (1, 1, "gradients were not finite")
    assert not steps.note_loss(torch.tensor(math.nan))
    assert steps.end_step(network, looks_at_gradients=False) == (1, 0)
    assert steps.look().problem == "the loss was nan"


def test_steps_in_a_row_are_counted_across_looks() -> None:
    network, steps = nn.Linear(2, 1), NonFiniteSteps(9)
    seen = []
    for loss, looks in ((math.nan, False), (math.inf, True), (math.nan, False), (0.0, False), (math.inf, True)):
        steps.note_loss(torch.tensor(loss))
        steps.end_step(network, looks_at_gradients=False)
        if looks:
            seen.append(steps.look())
    assert [(one.steps, one.in_a_row, one.loss) for one in seen] == [(2, 2, math.inf), (2, 3, math.inf)]
    assert steps.look() == LeftOut(0, 0, 0.0)


@pytest.fixture
def skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers that leave a step out by themselves, as on CUDA."""
    monkeypatch.setattr(VideoClassifier, "_skips_by_itself", True)


@pytest.mark.usefixtures("skipping")
@pytest.mark.parametrize("marks", [[0, 250, 0], [250, 0], [0, 251, 0]])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_leaves_them_out_by_itself(tmp_path: Path, marks: list[int], optimizer: Any) -> None:
    """Without anybody's knowledge: nothing is looked at before the end of the epoch."""

    def trained(marks: list[int], skip: list[int]) -> L.Trainer:
        torch.manual_seed(0)
        module = VideoClassifier(Fragile(), lr=0.1, schedule="constant", optimizer=optimizer)
        fixed: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, gradient_clip_val=1.0, log_every_n_steps=99, **fixed)
        data = [batch(n, mark) for n, mark in enumerate(marks) if n not in skip]
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))  # type: ignore[arg-type]
        return trainer

    with_it = trained(marks, [])
    expected = state(trained(marks, [n for n, mark in enumerate(marks) if mark]))
    for name, tensor in state(with_it).items():
        if Fragile.BACK not in marks or ("running" not in name and "tracked" not in name):
            assert torch.equal(tensor, expected[name]), name
    assert with_it.callback_metrics["train/nonfinite"] == 1


@pytest.mark.usefixtures("skipping")
def test_what_an_optimizer_left_out_is_said_when_it_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = VideoClassifier(Fragile(), lr=0.1, max_nonfinite_steps=3)
    with pytest.raises(NotFinite, match=r"4 steps in a row were not finite, the loss was nan \(epoch 1, step 7\)"):
        fit(tmp_path, [Fragile.FORWARD, 0, 0, 0, *[Fragile.FORWARD] * 9], module=module, log_every_n_steps=4)
    said = [record.getMessage() for record in caplog.records if record.name == "octvideo.training"]
    assert len(said) == 1 and said[0].startswith("epoch 1, step 3: the loss was nan; such steps are left out")


def test_the_bound_is_a_positive_number() -> None:
    with pytest.raises(UserError, match="max_nonfinite_steps: got 0, expected 1 or more"):
        VideoClassifier(Fragile(), max_nonfinite_steps=0)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_video_whose_scores_are_not_finite_is_named(tmp_path: Path, stage: str) -> None:
    good, bad = batch(0, views=2), batch(1, Fragile.FORWARD, views=2)
    role = {"validate": "validation", "predict": "prediction"}.get(stage, stage)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    told = rf"^scores of '1a\.mp4' are not finite in {role}, though the weights are: take a --trainer.precision of more"
    with pytest.raises(NotFinite, match=told):
        data = torch.utils.data.DataLoader([good, bad], batch_size=None)  # type: ignore[arg-type]
        getattr(trainer, stage)(VideoClassifier(Fragile(), views_per_chunk=1), data)


def test_weights_that_are_not_finite_are_not_tested(tmp_path: Path) -> None:
    trainer = fit(tmp_path, [0])
    file = tmp_path / "a.ckpt"
    trainer.save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    content["state_dict"]["network.norm.running_mean"][1] = math.nan
    torch.save(content, file)
    data = torch.utils.data.DataLoader([batch(0, views=1)], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=rf"weights from {file} are not finite, the first is network\.norm\.running_mean"
    ):
        trainer.test(VideoClassifier(Fragile()), data, ckpt_path=str(file))
