"""Weighted and focused losses against torch's, torchvision's and timm's, and weights against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from octvideo.errors import UserError
from octvideo.training.losses import LabelLoss, balancing_weights, positive_weights

N, K = 6, 4


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(N, K, generator=draw), torch.randint(K, (N,), generator=draw)


def several() -> Tensor:
    return (torch.rand(N, K, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, K).float()


def mixed(targets: Tensor) -> Tensor:
    return 0.3 * targets + 0.7 * targets.flip(0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs(smoothing: float) -> None:
    logits, labels = batch()
    weights = [0.5, 2.0, 1.0, 4.0]
    loss = LabelLoss(K, weights=weights, smoothing=smoothing)
    expected = F.cross_entropy(
        logits, labels, weight=torch.tensor(weights), label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(loss(logits, one_hot(labels)), expected.mean())


def test_without_options_it_is_the_plain_one() -> None:
    logits, labels = batch()
    soft = mixed(one_hot(labels))
    assert torch.equal(LabelLoss(K, smoothing=0.1)(logits, soft), F.cross_entropy(logits, soft, label_smoothing=0.1))


@pytest.mark.parametrize("of", ["cross_entropy", "bce"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 4.0]])
def test_a_small_focus_is_next_to_none(of: Any, weights: list[float] | None) -> None:
    """Two formulas of ours: that with a focus ends in torch's, with smoothing, weights and mixed labels."""
    logits, labels = batch()
    soft = mixed(one_hot(labels) if of == "cross_entropy" else several())
    plain, focused = (LabelLoss(K, name=of, weights=weights, smoothing=0.1, gamma=gamma) for gamma in (0.0, 1e-7))
    torch.testing.assert_close(focused(logits, soft), plain(logits, soft), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_several_labels_is_torchvisions(gamma: float) -> None:
    logits, targets = batch()[0], several()
    expected = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(LabelLoss(K, name="bce", gamma=gamma)(logits, targets), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_two_classes_is_torchvisions_of_one(gamma: float) -> None:
    """softmax over (0, z) is the sigmoid of z; alpha weighs the two classes."""
    z, labels = 3 * torch.randn(9, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 2
    logits = torch.stack([torch.zeros(9), z], 1)
    expected = sigmoid_focal_loss(z, labels.float(), alpha=0.25, gamma=gamma, reduction="mean")
    loss = LabelLoss(2, weights=[0.75, 0.25], gamma=gamma)
    torch.testing.assert_close(loss(logits, F.one_hot(labels, 2).float()), expected)


def test_the_focus_keeps_gradients_finite() -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0, 0.0]], requires_grad=True)
    for name in ("cross_entropy", "bce"):
        LabelLoss(K, name=name, gamma=0.5)(logits, one_hot(torch.tensor([0]))).backward()  # type: ignore[arg-type]
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_several_labels_are_smoothed_as_timm_smooths_one() -> None:
    logits, labels = batch()
    expected = BinaryCrossEntropy(smoothing=0.1)(logits, labels)
    torch.testing.assert_close(LabelLoss(K, name="bce", smoothing=0.1)(logits, one_hot(labels)), expected)


def test_positives_are_weighted_as_torch_weighs_them() -> None:
    logits, targets, weights = batch()[0], several(), [0.5, 2.0, 1.0, 4.0]
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor(weights))
    torch.testing.assert_close(LabelLoss(K, name="bce", weights=weights)(logits, targets), expected)


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_inverse_weights_by_hand() -> None:
    # 24 videos of 3 classes: 8 each if they were balanced; the class without a video weighs 1.
    assert balancing_weights(torch.tensor([2, 20, 0, 2]), None).tolist() == pytest.approx([4.0, 0.4, 1.0, 4.0])


def test_effective_numbers_by_hand() -> None:
    # beta .5: 1 video has 1, 2 have 1.5, 3 have 1.75.
    raw = torch.tensor([1.0, 1 / 1.5, 1 / 1.75])
    counts = torch.tensor([1, 2, 3])
    expected = raw * 6 / (raw * counts).sum()
    torch.testing.assert_close(balancing_weights(counts, 0.5), expected)
    torch.testing.assert_close(balancing_weights(counts, 0.0), torch.ones(3))  # every class is one sample
    torch.testing.assert_close(balancing_weights(counts, 1 - 1e-9), balancing_weights(counts, None))


def test_weights_of_positives_by_hand() -> None:
    assert positive_weights(torch.tensor([2, 8, 0, 10]), 10).tolist() == [4.0, 0.25, 1.0, 1.0]


def test_weights_by_name() -> None:
    loss = LabelLoss(3, weights={"move left": 3.0})
    loss.settle(["jump", "move_left", "wave"], None)
    assert loss.weights.tolist() == [1.0, 3.0, 1.0]
    assert loss.described(["jump", "move_left", "wave"], None) == "class weights, given: 1 (jump) to 3 (move_left)"
    with pytest.raises(UserError, match=r"model.class_weights: 'jmp' is no known class, did you mean 'jump"):
        LabelLoss(3, weights={"jmp": 3.0}).settle(["jump", "move_left", "wave"], None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [1.0, 2.0]}, "got 2 weights for 4 classes, expected one for each"),
        ({"weights": [1.0, -2.0, 1.0, 1.0]}, "model.class_weights: got -2.0, expected 0 or more"),
        ({"gamma": -1.0}, "model.focal_gamma: got -1.0, expected 0 or more"),
        ({"beta": 1.0}, "model.class_weights_beta: got 1.0, expected 0 to less than 1"),
        ({"weights": "effective", "name": "bce"}, "effective is for cross entropy"),
    ],
)
def test_what_cant_be_meant(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelLoss(K, **given)
