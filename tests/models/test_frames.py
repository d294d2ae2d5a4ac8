"""Image networks on video: equal to the library's network frame by frame, and octave where the paper's are."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from octvideo.errors import UserError
from octvideo.models import frame_network
from octvideo.models.checkpoint import build_network
from octvideo.models.library import FrameNetwork
from octvideo.octave import OctConv2d, count_cost, octavize

RESNET = "torchvision:resnet18"


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "replicate"


def test_scores_are_the_mean_of_the_frames() -> None:
    """Against torchvision's own network, one frame at a time."""
    published = torchvision.models.resnet18(num_classes=5).eval()
    ours = frame_network(RESNET, 5).eval()
    ours.image_network.load_state_dict(published.state_dict(), strict=True)
    clips = torch.randn(2, 3, 3, 40, 33)
    with torch.no_grad():
        expected = torch.stack([published(clips[:, :, t]) for t in range(3)]).mean(0)
        torch.testing.assert_close(ours(clips), expected)


def test_gradients_are_those_of_the_mean() -> None:
    network = FrameNetwork(nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 4))).double()
    clips = torch.randn(2, 3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, clips)


@pytest.mark.parametrize("alpha", [0.25, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [RESNET, "timm:resnet10t", pytest.param("torchvision:mobilenet_v2", marks=pytest.mark.slow)]
)
def test_constant_clip_gives_the_ordinary_logits(name: str, alpha: float) -> None:
    ordinary = frame_network(name, 7).eval().double()
    randomise_norms(ordinary)
    octave = frame_network(name, 7, alpha).eval().double()
    randomise_norms(octave)
    octave.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(2, 3, 2, 1, 1, dtype=torch.float64).expand(2, 3, 2, 49, 70)
    torch.testing.assert_close(octave(x), ordinary(x))


@pytest.mark.parametrize("name", [RESNET, "timm:resnet10t"])
def test_stem_and_last_stage_of_a_resnet_are_ordinary(name: str) -> None:
    network = frame_network(name, 5, 0.25)
    convs = {path: m for path, m in network.image_network.named_modules() if isinstance(m, OctConv2d) and m.is_octave}
    assert {path.split(".")[0] for path in convs} == {"layer1", "layer2", "layer3", "layer4"}
    written = {path for path, conv in convs.items() if not conv.partition_out.is_ordinary}
    assert not any(path.startswith("layer4") for path in written) and "layer1.0.conv1" in written
    assert set(network.octave_report.layers) == set(convs)


def test_shares_by_module_path() -> None:
    network = frame_network(RESNET, 5, {"layer2": 0.5, "layer3": 0.25})
    shares = {path: out for path, (_, out) in network.octave_report.layers.items()}
    assert shares["layer2.1.conv1"] == 0.5 and shares["layer3.1.conv1"] == 0.25
    assert "layer1.1.conv1" not in shares and shares["layer4.0.conv1"] == 0
    assert network.meta["built_from"]["init_args"]["downsample"] == "pool"


def test_multiply_adds_are_the_frames() -> None:
    """ResNet-50 at 224: 4.089 G ordinary (arXiv 1904.05049 prints 4.1), with its 1000 classes."""
    cost = count_cost(frame_network("torchvision:resnet50", 1000), (1, 3, 8, 224, 224))
    assert cost.multiply_adds / 8e9 == pytest.approx(4.089, abs=0.0005)
    octave = count_cost(frame_network("torchvision:resnet50", 1000, 0.25), (1, 3, 8, 224, 224))
    assert octave.multiply_adds / 8e9 == pytest.approx(3.104, rel=0.02)
    assert octave.parameters == cost.parameters


def test_trains_in_channels_last_and_bfloat16() -> None:
    network = frame_network(RESNET, 3, 0.25).to(memory_format=torch.channels_last_3d)
    conv = network.image_network.get_submodule("conv1")
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 3, 2, 33, 33).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 1]))
    loss.backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and seen[0].data_ptr() == x.data_ptr()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.to(torch.float64)
    assert network(x.double()).dtype == torch.float64


def test_compiles_for_any_clip_length() -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    images = octavize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0.25)
    network = FrameNetwork(images).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for frames in (1, 2, 5):
            x = torch.randn(2, 3, frames, 17, 17)
            torch.testing.assert_close(compiled(x), network(x))


def test_pickles_deep_copies_and_is_built_again_from_a_checkpoint() -> None:
    network = frame_network(RESNET, 3, 0.25, dropout=0.1).eval()
    x = torch.randn(1, 3, 2, 33, 33)
    for clone in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(clone(x), network(x)) and clone.meta == network.meta
    again = build_network({"network": network.meta["built_from"]}, "last.ckpt").eval()
    again.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(again(x), network(x)) and again.meta == network.meta


@pytest.mark.parametrize(
    "name",
    [
        RESNET,
        pytest.param("torchvision:mobilenet_v2", marks=pytest.mark.slow),
        "torchvision:mobilenet_v3_small",
        "timm:resnet10t",
    ],
)
def test_dropout_is_before_the_classifier(name: str) -> None:
    """All of it with p = 1 - 1e-9: nothing but the bias is left in training, and in evaluation all is."""
    with torch.device("meta"):
        keys = frame_network(name, 3, dropout=0.0).state_dict().keys()
    network = frame_network(name, 3, dropout=1 - 1e-9)
    assert network.state_dict().keys() == keys
    classifier = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    classifier.bias.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(2, 3, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.train()(x), classifier.bias.expand(2, 3))
        assert not torch.allclose(network.eval()(x), classifier.bias.expand(2, 3))


@pytest.mark.parametrize(
    "name", ["MobileVitBlock", pytest.param("timm.models.mobilevit.MobileVitBlock", marks=pytest.mark.slow)]
)
def test_classes_are_kept_whole_by_name_and_the_checkpoint_knows(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot trace stages.2.1 \(MobileVitBlock\): .* leaf_modules=\[Mob"):
        frame_network("timm:mobilevit_xxs", 3, 0.25)
    network = frame_network("timm:mobilevit_xxs", 3, 0.25, octave={"leaf_modules": [name]})
    merged = network.octave_report.merged
    assert merged["stages.2.1.conv_kxk.conv"] == "lies in stages.2.1 (MobileVitBlock), which is kept whole"
    assert "stages.1.0.conv1_1x1.conv" in network.octave_report.layers
    again = build_network({"network": network.meta["built_from"]}, "last.ckpt")
    assert again.octave_report == network.octave_report
    assert network(torch.randn(1, 3, 2, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "resnet50"}, "network: got 'resnet50', expected torchvision:NAME or timm:NAME, such as"),
        ({"network": "keras:resnet50"}, "network: got 'keras:resnet50', expected torchvision:NAME or timm:NAME"),
        (
            {"network": "torchvision:resnet05"},
            "torchvision has no network 'resnet05': did you mean torchvision:resn",
        ),
        ({"network": "timm:resnet50.a1_in1k"}, "timm has no network 'resnet50.a1_in1k': did you mean timm:"),
        ({"network": "timm:hf-hub:x/y"}, "timm has no network 'hf-hub:x/y'"),
        ({"network": "torchvision:squeezenet1_1"}, "squeezenet1_1 does not end in a linear classifier, expected"),
        ({"alpha": {"layer1": 2.0}}, "alpha: got 2.0, expected the share of low-frequency channels, 0 to 1"),
        ({"alpha": {"layr1": 0.5}}, "no convolution of this network is called 'layr1'"),
        (
            {"octave": {"leaf_modules": ["torch.nn.Linar"]}},
            "leaf_modules: got 'torch.nn.Linar', expected a class of this network's modules: .*BasicBlock, .*Linear",
        ),
        ({"num_classes": 0}, "num_classes: got 0, expected 1 or more"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected a probability, 0 or more and less than 1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_network(**{"network": RESNET, **options})


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import of it then finds
    with pytest.raises(UserError, match=r"timm:resnet26 needs timm, which is not installed: pip install 'octvideo\[i"):
        frame_network("timm:resnet26")
