"""Video networks of other libraries by name: their keys and costs, logits instead of softmax, any clip."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import pytorchvideo.models.hub as hub
import torch
import torchvision
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.models import video_network
from octvideo.models.checkpoint import build_network
from octvideo.models.costs import cost_rows
from octvideo.models.library import CLIP_FORMS
from octvideo.octave import OctConv3d, count_cost, octavize


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("name", ["r2plus1d_r50", pytest.param("csn_r101", marks=pytest.mark.slow), "x3d_s"])
def test_keys_are_pytorchvideos(name: str, alpha: float) -> None:
    with torch.device("meta"):
        theirs = getattr(hub, name)(pretrained=False).state_dict()
        ours = video_network(f"pytorchvideo:{name}", alpha=alpha).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize(
    ("name", "clip", "giga"),
    [
        # Published with 1x3xTxHxW; X3D-S by PySlowFast's MODEL_ZOO.md, R(2+1)D-18 by torchvision's documentation.
        ("pytorchvideo:x3d_s", (1, 3, 13, 160, 160), 1.96),
        ("torchvision:r2plus1d_18", (1, 3, 16, 112, 112), 40.52),
    ],
)
def test_multiply_adds(name: str, clip: tuple[int, ...], giga: float) -> None:
    with torch.device("meta"):
        ordinary, octave = video_network(name), video_network(name, alpha=0.25)
    cost = count_cost(ordinary, clip)
    assert cost.multiply_adds / 1e9 == pytest.approx(giga, abs=0.01)
    assert count_cost(octave, clip).multiply_adds < 0.95 * cost.multiply_adds


def test_logits_not_probabilities() -> None:
    """pytorchvideo's X3D ends in a softmax: ours is what comes before it."""
    published = hub.x3d_xs(pretrained=False, model_num_class=5).eval()
    ours = video_network("pytorchvideo:x3d_xs", 5).eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(2, 3, 4, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).softmax(1), published(x))
        assert ours(torch.randn(1, 3, 2, 65, 97)).shape == (1, 5)  # theirs has one fixed size


def test_torchvisions_network_is_the_same() -> None:
    published = torchvision.models.video.r2plus1d_18(num_classes=5).eval()
    ours = video_network("torchvision:r2plus1d_18", 5).eval()
    ours.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(1, 3, 4, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), published(x))


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("pytorchvideo:x3d_xs", 0.25),
        pytest.param("torchvision:r2plus1d_18", 0.5, marks=pytest.mark.slow),
        pytest.param("pytorchvideo:x3d_xs", 0.5, marks=pytest.mark.slow),
        pytest.param("torchvision:r2plus1d_18", 0.25, marks=pytest.mark.slow),
    ],
)
def test_constant_clip_gives_the_ordinary_logits(name: str, alpha: float) -> None:
    networks = [video_network(name, 7, a).eval().double() for a in (0.0, alpha)]
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(std=0.2)
            if isinstance(module, nn.Conv3d):
                module.padding_mode = "replicate"
    ordinary, octave = networks
    octave.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(1, 3, 1, 1, 1, dtype=torch.float64).expand(1, 3, 4, 49, 70)
    with torch.no_grad():
        torch.testing.assert_close(octave(x), ordinary(x))


def test_last_stage_is_ordinary() -> None:
    with torch.device("meta"):
        network = video_network("pytorchvideo:r2plus1d_r50", alpha=0.25)
    written = {
        path.split(".")[1]
        for path, m in network.named_modules()
        if isinstance(m, OctConv3d) and not m.partition_out.is_ordinary
    }
    assert written == {"1", "2", "3"}  # blocks: 0 stem, 1 to 4 res2 to res5, 5 head


@pytest.mark.slow
def test_trains_pickles_and_is_built_again() -> None:
    network = video_network("pytorchvideo:x3d_xs", 3, 0.25, dropout=0.1)
    x = torch.randn(2, 3, 4, 33, 33)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    again = build_network({"network": network.meta["built_from"]}, "last.ckpt").eval()
    again.load_state_dict(network.state_dict(), strict=True)
    for clone in (again, pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(clone(x), network(x))
    dropouts = [m.p for m in again.modules() if isinstance(m, nn.Dropout)]
    assert dropouts == [0.1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "x3d_s"}, "network: got 'x3d_s', expected pytorchvideo:NAME or torchvision:NAME, such as"),
        ({"network": "pytorchvideo:x3d_xl"}, "pytorchvideo has no network 'x3d_xl': did you mean pytorchvideo:x3d_"),
        ({"network": "torchvision:swin3d_t"}, "torchvision has no network 'swin3d_t'"),
        ({"num_classes": 0}, "num_classes: got 0, expected 1 or more"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        video_network(**options)


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_x3d_has_torchs_activations(alpha: float) -> None:
    """pytorchvideo's Swish would end a compiler's graph at each of them."""
    names = {type(module).__name__ for module in video_network("pytorchvideo:x3d_xs", 5, alpha).modules()}
    assert "SiLU" in names and "Swish" not in names


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_x3d_is_compiled_as_one_graph(alpha: float) -> None:
    network = video_network("pytorchvideo:x3d_xs", 5, alpha, dropout=0.0)
    clips = torch.randn(2, 3, 4, 32, 32)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    torch.compile(network, backend=backend, fullgraph=True)(clips)
    assert len(graphs) == 1


def test_torchs_swish_changes_no_key_and_the_last_bit_of_scores() -> None:
    torch.manual_seed(0)
    ordinary = hub.x3d_xs(pretrained=False, model_num_class=5, head_activation=None).eval()
    converted = octavize(ordinary, 0.0, leaf_modules=["ResNetBasicHead"]).eval()
    assert list(converted.state_dict()) == list(ordinary.state_dict())
    clips = torch.randn(1, 3, 4, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(converted(clips), ordinary(clips), rtol=1e-5, atol=1e-6)


_OF_PYTORCHVIDEO = ["x3d_s", "x3d_m", "x3d_l", "csn_r101", "r2plus1d_r50", "slowfast_r50"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x3d_xs", *_OF_PYTORCHVIDEO])
def test_builders_of_pytorchvideos_names(name: str) -> None:
    """Keys and shapes of the hub's network; X3D's cost as PySlowFast's MODEL_ZOO.md prints it."""
    with torch.device("meta"):
        theirs = getattr(hub, name)(pretrained=False).state_dict()
        network = getattr(models, name)()
        octave = getattr(models, name)(num_classes=400, alpha=0.25)
    assert network.meta["built_from"]["class_path"] == f"octvideo.models.{name}"
    for own in (network.state_dict(), octave.state_dict()):
        assert {key: value.shape for key, value in own.items()} == {key: v.shape for key, v in theirs.items()}
    (row,) = cost_rows([name], [0.0], clip=None)
    form = CLIP_FORMS[name]
    assert row[0] == f"{name} {form.frames}x{form.train_px}²"
    published = {"x3d_xs": 0.60, "x3d_s": 1.96, "x3d_m": 4.73, "x3d_l": 18.37}
    assert float(row[2]) == pytest.approx(published.get(name, float(row[2])), abs=0.011)


@pytest.mark.slow
def test_a_builder_of_pytorchvideos_name_is_built_again() -> None:
    network = models.x3d_xs(3, {"blocks.2": 0.5}, dropout=0.1, octave={"inverted_residuals": "all"})
    with torch.device("meta"):
        again = build_network({"network": network.meta["built_from"]}, "last.ckpt")
    assert again.state_dict().keys() == network.state_dict().keys() and again.meta == network.meta
    assert {path.split(".")[1] for path in again.octave_report.layers} == {"2", "3"}  # res4's first block merges
