"""Saliency against independent references: gradients by hand, the merged map, and one path detached."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.explain import Saliency, explain_clip
from octvideo.explain.layers import last_layer, passes_beside
from octvideo.models import frame_network, i3d_small
from octvideo.octave import Octave, merge, split

CLIP = (3, 2, 9, 10)


class Pair(nn.Module):
    """Gives an Octave, with 3 of 8 channels low."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Octave:
        return split(self.conv(x).tanh(), 3 / 8)  # type: ignore[return-value]


class Network(nn.Module):
    """Clips to 4 logits: a pair, merged, and layers that are not linear; `merged` is what they read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.merged, self.conv = Pair(), nn.Identity(), nn.Conv3d(8, 6, (2, 3, 3))
        self.act, self.classifier = nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.act(self.conv(self.merged(merge(self.pair(x))))).mean((2, 3, 4)))


def test_both_paths_together_are_grad_cam_of_the_merged_map() -> None:
    network, clip = Network().eval(), torch.randn(CLIP)
    kept: list[Tensor] = []
    network.merged.register_forward_hook(lambda module, args, result: kept.append(result))
    score = network(clip[None])[0, 2]
    (gradient,) = torch.autograd.grad(score, kept[0])
    weighted = kept[0][0] * gradient[0].mean((1, 2, 3), keepdim=True)  # (C,T,H,W)
    found = explain_clip(network, clip, 2, layer="pair")
    for path, channels in (("high", slice(0, 5)), ("low", slice(5, 8)), ("both", slice(0, 8))):
        expected = weighted[channels].sum(0).relu().detach().numpy()
        np.testing.assert_allclose(found.maps[path], expected, atol=1e-7, err_msg=path)  # type: ignore[index]
        assert expected.max() > 1e-5, path
    assert found.logit == pytest.approx(float(score.detach()))


def test_a_path_s_gradient_is_that_with_the_other_path_detached() -> None:
    network, clip = Network().eval(), torch.randn(CLIP)

    def reference(detached: tuple[str, ...]) -> np.ndarray:
        handle = network.pair.register_forward_hook(
            lambda module, args, pair: Octave(
                *(x.detach() if n in detached else x for n, x in zip(("high", "low"), pair, strict=True))
            )
        )
        pixels = clip[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(pixels)[0, 1], pixels)
        handle.remove()
        return gradient[0].abs().sum(0).numpy()

    found = explain_clip(network, clip, 1, layer="pair", method="gradients", num_samples=1, noise=0.0)
    for path, detached in (("high", ("low",)), ("low", ("high",)), ("both", ())):
        expected = reference(detached)
        np.testing.assert_allclose(found.maps[path], expected, rtol=1e-4, atol=1e-7, err_msg=path)  # type: ignore[index]
        assert expected.max() > 1e-4
    again = explain_clip(network, clip, 1, layer="pair", method="gradients", num_samples=3)
    smooth = explain_clip(network, clip, 1, layer="pair", method="gradients", num_samples=3)
    np.testing.assert_array_equal(again.maps["both"], smooth.maps["both"])  # noise is drawn from a seed
    assert not np.allclose(again.maps["both"], found.maps["both"], rtol=1e-3)


def test_what_changes_the_layer_in_place_does_not_change_what_is_seen(small: ModuleType) -> None:
    network = small.small_network(0.0).eval()  # a ReLU in place follows the norm
    clip = torch.randn(3, 2, 24, 24)
    kept: list[Tensor] = []
    handle = network[3].register_forward_hook(lambda module, args, result: kept.append(result.clone()))
    network(clip[None])
    handle.remove()
    pre = kept[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network[5:](pre.relu())[0, 1], pre)
    expected = (pre[0] * gradient[0].mean((1, 2, 3), keepdim=True)).sum(0).relu().detach().numpy()
    np.testing.assert_allclose(explain_clip(network, clip, 1, layer="3").maps["both"], expected, atol=1e-6)


def test_the_network_is_left_as_it_was() -> None:
    network = i3d_small(num_classes=5, alpha=0.25, width=8).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for method in ("gradcam", "gradients"):
        explain_clip(network, torch.randn(3, 4, 32, 32), method=method, num_samples=2)  # type: ignore[arg-type]
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert all(not module._forward_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("alpha", "layer"), [(0.25, "blocks.4.res_blocks.1.activation"), (0.0, "blocks.5.res_blocks.1.activation")]
)
def test_the_layer_is_the_last_pair_or_the_last_map(alpha: float, layer: str) -> None:
    found = explain_clip(i3d_small(num_classes=5, alpha=alpha, width=8), torch.randn(3, 4, 64, 64))
    assert found.layer == layer
    assert set(found.maps) == ({"high", "low", "both"} if alpha else {"both"})
    assert found.upsampled("both").shape == (4, 64, 64)


class Branched(nn.Module):
    """Its last module with maps is in a branch; what is added to it passes beside."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.branch, self.classifier = nn.Conv3d(3, 4, 1), nn.Conv3d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.trunk(clips)
        return self.classifier((x + self.branch(x)).mean((2, 3, 4)))


def test_a_layer_that_something_passes_beside_is_not_chosen() -> None:
    network, clips = Branched().eval(), torch.zeros(1, 3, 2, 4, 4)
    assert last_layer(network, clips) == "trunk"
    assert passes_beside(network, "branch", clips) and not passes_beside(network, "trunk", clips)
    assert not passes_beside(network, "classifier", clips)
    # A temporal shift begins the branch of a block, and gives the last pair.
    shifted = frame_network("torchvision:resnet18", 4, 0.25, shift=0.125).eval()
    assert last_layer(shifted, torch.zeros(1, 3, 2, 64, 64)) == "image_network.octave_ops.layer3_1_relu_1"
    assert passes_beside(shifted, "image_network.octave_ops.shift_layer4_0_conv1", torch.zeros(1, 3, 2, 64, 64))


def test_of_a_layer_that_is_called_twice_the_last_call_counts() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Conv3d(3, 4, 1), nn.Conv3d(4, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3, 4))

    assert last_layer(Shared().eval(), torch.randn(1, *CLIP)) == "relu"


def test_a_pair_of_one_position_is_not_chosen() -> None:
    found = explain_clip(i3d_small(num_classes=5, alpha=0.25, width=8), torch.randn(3, 4, 16, 16))
    assert found.layer == "blocks.3.res_blocks.1.activation" and found.maps["high"].shape == (2, 2, 2)


def test_an_ordinary_network_of_torchvision_has_the_map_of_backward_hooks() -> None:
    torch.manual_seed(0)
    network, clip = torchvision.models.video.r3d_18(num_classes=5).eval(), torch.randn(3, 4, 64, 64)
    kept: dict[str, Tensor] = {}
    network.layer3.register_forward_hook(lambda module, args, result: kept.update(map=result.detach().clone()))
    network.layer3.register_full_backward_hook(lambda module, inner, outer: kept.update(gradient=outer[0].clone()))
    network(clip[None])[0, 3].backward()
    expected = torch.einsum("cthw,c->thw", kept["map"][0], kept["gradient"][0].mean((1, 2, 3))).clamp_min(0).numpy()
    network.layer3._backward_hooks.clear()
    found = explain_clip(network, clip, 3, layer="layer3").maps["both"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert expected.max() > 1e-4


def test_networks_of_images_have_a_map_for_each_frame() -> None:
    network = frame_network("torchvision:resnet18", 4, 0.0).eval()
    clip = torch.randn(3, 3, 64, 64)
    found = explain_clip(network, clip, 0, layer="image_network.layer3.1.relu")
    assert found.maps["both"].shape == (3, 4, 4) and found.step_of_frame.tolist() == [0, 1, 2]


def test_frames_have_the_map_of_their_step() -> None:
    maps = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    found = Saliency({"both": maps}, "layer", 0, 1.0, "gradcam", (5, 8, 8))
    up = found.upsampled("both")
    assert found.step_of_frame.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(up[0], up[2])
    assert up[0, 0, 0] == 0 and up[0, -1, -1] == 3 and up[4, -1, -1] == 7 and 0 < up[0, 3, 3] < 3
    assert found.low_share is None


@pytest.mark.parametrize(
    ("layer", "class_index", "message"),
    [
        (
            "blocks.4.res_blocks.1.activatio",
            0,
            r"no layer '.*activatio' in this network: did you mean blocks.4.res_blocks.1",
        ),
        ("blocks.4", 0, "the network does not call its layer 'blocks.4'"),
        ("blocks.6.proj", 0, r"layer 'blocks.6.proj' gives \(1, 1, 1, 5\), expected maps \(C, T, H, W\)"),
        (None, 5, "class 5: expected 0 to 4"),
    ],
)
def test_errors_say_what_to_do(layer: str | None, class_index: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain_clip(i3d_small(num_classes=5, alpha=0.25, width=8), torch.randn(3, 4, 32, 32), class_index, layer=layer)
