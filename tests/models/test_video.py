"""The networks: equal to pytorchvideo's where ordinary, right in cost and wiring where octave."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import pytorchvideo.models.hub as hub
import torch
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.models.layers import TimePool
from octvideo.octave import OctConv3d, count_cost

SMALL = ["c2d_small", "i3d_small", "slow_small"]
CLIP = (1, 3, 8, 224, 224)


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv3d):
            module.padding_mode = "replicate"


@pytest.mark.parametrize(
    "name", ["i3d_r50", *(pytest.param(name, marks=pytest.mark.slow) for name in ("c2d_r50", "slow_r50"))]
)
def test_ordinary_network_is_pytorchvideos(name: str) -> None:
    """Same keys, same logits bit for bit, at the training crop and where the head's kernel slides."""
    published = getattr(hub, name)(pretrained=False).eval()
    ours = getattr(models, name)().eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(1, 3, 8, 224, 256)
    with torch.no_grad():
        assert torch.equal(ours(x), published(x))


# 0.1: numbers of channels that no vector divides; 1: no high channel where there may be none.
ALPHAS = [0.1, 1.0, *(pytest.param(alpha, marks=pytest.mark.slow) for alpha in (0.25, 0.5))]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", SMALL)
def test_constant_clip_gives_the_ordinary_logits(name: str, alpha: float) -> None:
    """The one test that finds wrong wiring: with replicate padding a constant clip has no resolution."""
    ordinary = getattr(models, name)(num_classes=7).eval().double()
    randomise_norms(ordinary)
    octave = getattr(models, name)(num_classes=7, alpha=alpha).eval().double()
    randomise_norms(octave)
    octave.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(2, 3, 1, 1, 1, dtype=torch.float64).expand(2, 3, 8, 49, 70)
    torch.testing.assert_close(octave(x), ordinary(x))


@pytest.mark.parametrize(
    "octave",
    [{"factor": [2, 2, 2]}, {"factor": [2, 1, 1]}, {"octave_downsample": "stride"}],
    ids=str,
)
@pytest.mark.parametrize("frames", [pytest.param(8, marks=pytest.mark.slow), 5, 2])
def test_other_ways_to_be_octave_on_a_constant_clip(octave: dict, frames: int) -> None:
    """Time octaves and strided convolutions, on odd numbers of frames too."""
    ordinary = models.i3d_small(num_classes=7).eval().double()
    randomise_norms(ordinary)
    network = models.i3d_small(num_classes=7, alpha=0.25, octave=octave).eval().double()
    randomise_norms(network)
    network.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(2, 3, 1, 1, 1, dtype=torch.float64).expand(2, 3, frames, 49, 70)
    torch.testing.assert_close(network(x), ordinary(x))


def test_a_time_octave_stores_half_the_frames() -> None:
    network = models.slow_small(num_classes=2, alpha=0.5, octave={"factor": [2, 2, 2]})
    seen = []
    conv = network.get_submodule("blocks.1.res_blocks.0.branch2.conv_b")
    conv.register_forward_hook(lambda module, args, output: seen.append(output))
    network(torch.randn(2, 3, 8, 48, 48))
    assert seen[0].high.shape[2:] == (8, 12, 12) and seen[0].low.shape[2:] == (4, 6, 6)
    cost, plain = (count_cost(n, CLIP) for n in (network, models.slow_small(num_classes=2, alpha=0.5)))
    assert cost.multiply_adds < plain.multiply_adds


def test_options_reach_every_layer_and_the_record() -> None:
    network = models.i3d_small(num_classes=2, alpha=0.25, octave={"exchange": "high_to_low"})
    octave = [m for m in network.modules() if isinstance(m, OctConv3d) and m.is_octave]
    assert octave and all(m.exchange == "high_to_low" for m in octave)
    init_args = network.meta["built_from"]["init_args"]
    assert init_args["octave"] == {"exchange": "high_to_low"}
    assert models.i3d_small(**init_args).state_dict().keys() == network.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50", "slow_r50"])
def test_constant_clip_full_networks(name: str, alpha: float) -> None:
    test_constant_clip_gives_the_ordinary_logits(name, alpha)


@pytest.mark.parametrize("name", SMALL)
def test_any_clip_length_and_crop(name: str) -> None:
    network = getattr(models, name)(num_classes=5, alpha=0.5).eval()
    for shape in ((1, 3, 2, 33, 47), (2, 3, 5, 64, 64), (1, 3, 16, 97, 31)):
        assert network(torch.randn(shape)).shape == (shape[0], 5)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("frames", [4, 5])
def test_pairs_of_frames_are_pooled_as_torch_pools_them(frames: int, ceil_mode: bool) -> None:
    pool, x = TimePool(), torch.randn(1, 6, frames, 7, 9)
    pool.ceil_mode = ceil_mode
    expected = nn.MaxPool3d((2, 1, 1), (2, 1, 1), ceil_mode=ceil_mode)(x)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        assert torch.equal(pool(x.contiguous(memory_format=layout)), expected)


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("c2d_small", 0.0),
        ("i3d_small", 0.25),
        *(pytest.param("c2d_small", alpha, marks=pytest.mark.slow) for alpha in (0.25, 1.0)),
        *(pytest.param("i3d_small", alpha, marks=pytest.mark.slow) for alpha in (0.0, 1.0)),
    ],
)
def test_a_clip_of_one_frame_is_refused_in_words(name: str, alpha: float) -> None:
    network = getattr(models, name)(num_classes=3, alpha=alpha, width=4)
    message = "the clip has 1 frame, expected 2 or more: this network pools pairs of frames after res2; raise data.clip"
    with pytest.raises(UserError, match=message):
        network(torch.zeros(1, 3, 1, 32, 32))
    assert models.slow_small(num_classes=3, width=4)(torch.zeros(2, 3, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_octave_stages_are_the_papers(name: str) -> None:
    network = getattr(models, name)(alpha=0.25)
    octave = {path for path, module in network.named_modules() if isinstance(module, OctConv3d) and module.is_octave}
    res5 = len(list(network.blocks.children())) - 2
    assert not any(path.startswith("blocks.0.") for path in octave)
    assert {p for p in octave if p.startswith(f"blocks.{res5}.")} == {
        f"blocks.{res5}.res_blocks.0.branch1_conv",
        f"blocks.{res5}.res_blocks.0.branch2.conv_a",
    }
    last = dict(network.named_modules())
    assert last[f"blocks.{res5}.res_blocks.0.branch2.conv_a"].partition_out.is_ordinary
    # "pool" is everywhere behind the stem, res5's strided convolutions included
    assert last[f"blocks.{res5}.res_blocks.0.branch2.conv_b"].downsample == "pool"


def test_control_arm_pools_without_octave() -> None:
    control = models.i3d_small(downsample="pool")
    pooled = [m for m in control.modules() if isinstance(m, OctConv3d)]
    assert len(pooled) == 6 and not any(m.is_octave for m in pooled)  # conv_b and shortcut of res3, res4, res5
    assert count_cost(control, CLIP).multiply_adds == count_cost(models.i3d_small(), CLIP).multiply_adds


def test_pickles_deep_copies_and_remembers_its_builder() -> None:
    network = models.i3d_small(num_classes=3, alpha=0.25).eval()
    x = torch.randn(1, 3, 4, 33, 33)
    for clone in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(clone(x), network(x))
        assert clone.meta["built_from"]["class_path"] == "octvideo.models.i3d_small"
        assert clone.meta["built_from"]["init_args"]["alpha"] == 0.25


def test_training_step_in_bfloat16_and_channels_last() -> None:
    # Eight frames: with two frames left behind the pool, torch's own bfloat16 conv3d (CPU, 3x1x1 kernel)
    # sometimes returns weight gradients that were never written (seen with torch 2.15, ordinary network too).
    network = models.i3d_small(num_classes=3, alpha=0.25).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 3, 8, 48, 48).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 1]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_width_of_the_small_networks(name: str) -> None:
    build = getattr(models, name)
    assert build().meta["built_from"]["init_args"]["width"] == 16
    network = build(num_classes=3, alpha=0.25, width=10)
    assert network.get_submodule("blocks.0.conv").out_channels == 10
    assert network(torch.randn(2, 3, 4, 33, 33)).shape == (2, 3)
    init_args = network.meta["built_from"]["init_args"]
    assert init_args["width"] == 10 and build(**init_args).state_dict().keys() == network.state_dict().keys()


def test_other_networks_have_no_width() -> None:
    assert "width" not in models.c2d_r50(num_classes=2).meta["built_from"]["init_args"]


@pytest.mark.parametrize("name", models.__all__)
def test_help_explains_every_argument(name: str) -> None:
    """What all builders share is written down once, and lands in the docstring of each."""
    builder = getattr(models, name)
    for argument in inspect.signature(builder).parameters:
        assert f"    {argument}: " in builder.__doc__
    assert inspect.signature(builder).return_annotation in (nn.Module, "nn.Module")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: got 0, expected 1 or more"),
        ({"width": 0}, "width: got 0, expected 1 or more"),
        ({"octave": {"factr": 2}}, "octave: got 'factr', expected octave_downsample, exchange, factor"),
        ({"alpha": 1.5}, "alpha: got 1.5, expected the share of low-frequency channels, 0 to 1"),
        ({"downsample": "max"}, "downsample: got 'max', expected 'stride' or 'pool'"),
    ],
)
def test_arguments_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.i3d_small(**options)
