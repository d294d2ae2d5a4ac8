"""Non-local blocks: pytorchvideo's block in results, the paper's places, and octave around the attention."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import octvideo.models as models
from octvideo.models.checkpoint import build_network
from octvideo.models.layers import NonLocalBlock
from octvideo.octave import count_cost

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


def giga_multiply_adds(name: str, alpha: float) -> dict[str, float]:
    """Of convolutions and of the attention's matrix products."""
    with torch.device("meta"):
        network = getattr(models, name)(alpha=alpha).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(CLIP, device="meta"))
    counts = {str(operation): flops / 2e9 for operation, flops in counter.get_flop_counts()["Global"].items()}
    return {"convolutions": counts["aten.convolution"], "products": counts.get("aten.bmm", 0.0)}


@pytest.mark.parametrize("size", [(4, 7, 6), (1, 2, 3)])
def test_block_is_pytorchvideos(size: tuple[int, int, int]) -> None:
    published = create_nonlocal(dim_in=6, dim_inner=3, pool_size=(1, 2, 2), instantiation="softmax").eval().double()
    randomise_norms(published)
    ours = NonLocalBlock(6).eval().double()
    ours.load_state_dict(published.state_dict(), strict=True)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), published(x))


def test_gradients() -> None:
    block = NonLocalBlock(4).double()
    randomise_norms(block)
    x = torch.randn(2, 4, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


@pytest.mark.parametrize(
    ("name", "without"), [("i3d_nl_r50", "i3d_r50"), pytest.param("c2d_nl_r50", "c2d_r50", marks=pytest.mark.slow)]
)
def test_ordinary_weights_fit_all_but_the_blocks(name: str, without: str) -> None:
    with torch.device("meta"):
        keys = {key: value.shape for key, value in getattr(models, name)().state_dict().items()}
        others = {key: value.shape for key, value in getattr(models, without)().state_dict().items()}
    assert others.items() <= keys.items()
    blocks = {key.split(".nonlocal_blocks.")[0] + "@" + key.split(".")[3] for key in keys.keys() - others.keys()}
    # res3 is blocks.3 and res4 is blocks.4, behind the pool over time.
    assert blocks == {"blocks.3@1", "blocks.3@3", "blocks.4@1", "blocks.4@3", "blocks.4@5"}


def test_blocks_start_as_nothing() -> None:
    with_blocks = models.i3d_nl_small(num_classes=3, zero_init_last_norm=True).eval()
    without = models.i3d_small(num_classes=3).eval()
    without.load_state_dict({key: with_blocks.state_dict()[key] for key in without.state_dict()})
    x = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(with_blocks(x), without(x))
    block = with_blocks.get_submodule("blocks.3.nonlocal_blocks.1")
    nn.init.ones_(block.norm.weight)
    assert not torch.allclose(with_blocks(x), without(x))


def test_multiply_adds_and_the_papers() -> None:
    """33.3 G in Table 8 (arXiv 1904.05049) are convolutions alone; ours on 56 x 56 instead of 55 x 55 maps.

    The two products of five blocks are queries x keys x inner channels each: they are not in that figure.
    """
    i3d, network = giga_multiply_adds("i3d_r50", 0.0), giga_multiply_adds("i3d_nl_r50", 0.0)
    assert network["convolutions"] == pytest.approx(33.55, abs=0.01)
    queries, keys = {3: 4 * 28 * 28, 4: 4 * 14 * 14}, {3: 4 * 14 * 14, 4: 4 * 7 * 7}
    channels, blocks = {3: 512, 4: 1024}, {3: 2, 4: 3}
    # theta and out work at all places, phi and g behind the pool.
    convs = sum(blocks[n] * 2 * (queries[n] + keys[n]) * channels[n] ** 2 // 2 for n in (3, 4))
    products = sum(blocks[n] * 2 * queries[n] * keys[n] * channels[n] // 2 for n in (3, 4))
    assert network["convolutions"] - i3d["convolutions"] == pytest.approx(convs / 1e9, rel=1e-9)
    assert network["products"] == pytest.approx(products / 1e9, rel=1e-9)


@pytest.mark.slow
def test_octave_saves_in_the_blocks_convolutions_and_not_in_their_products() -> None:
    ordinary, octave = giga_multiply_adds("i3d_nl_r50", 0.0), giga_multiply_adds("i3d_nl_r50", 0.1)
    assert octave["products"] == ordinary["products"]
    in_blocks = octave["convolutions"] - giga_multiply_adds("i3d_r50", 0.1)["convolutions"]
    # theta reads and out writes a pair, nothing else can be cheaper: 4.11 of 5.14 G, of which a twentieth to a
    # tenth goes.
    assert 0.9 * 5.14 < in_blocks < 5.14 - 0.05 * 4.11


@pytest.mark.parametrize("alpha", [0.1, *(pytest.param(alpha, marks=pytest.mark.slow) for alpha in (0.25, 0.5, 1.0))])
def test_constant_clip_gives_the_ordinary_logits(alpha: float) -> None:
    ordinary = models.i3d_nl_small(num_classes=7).eval().double()
    randomise_norms(ordinary)
    octave = models.i3d_nl_small(num_classes=7, alpha=alpha).eval().double()
    randomise_norms(octave)
    octave.load_state_dict(ordinary.state_dict(), strict=True)
    x = torch.randn(2, 3, 1, 1, 1, dtype=torch.float64).expand(2, 3, 8, 49, 70)
    torch.testing.assert_close(octave(x), ordinary(x))


def test_blocks_read_and_write_pairs() -> None:
    network = models.i3d_nl_small(alpha=0.25)
    for block, stage in (("blocks.3.nonlocal_blocks.1", 3), ("blocks.4.nonlocal_blocks.1", 4)):
        stream = network.get_submodule(f"blocks.{stage}.res_blocks.1.branch2.conv_c").partition_out
        assert not stream.is_ordinary
        assert network.get_submodule(f"{block}.conv_theta").partition_in == stream
        assert network.get_submodule(f"{block}.conv_theta").partition_out.is_ordinary
        assert network.get_submodule(f"{block}.conv_out").partition_out == stream


def test_trains_in_bfloat16_pickles_and_is_built_again() -> None:
    network = models.i3d_nl_small(num_classes=3, alpha=0.25).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 3, 8, 48, 48).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        nn.functional.cross_entropy(network(x), torch.tensor([0, 1])).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.eval()
    again = build_network({"network": network.meta["built_from"]}, "last.ckpt").eval()
    again.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        for clone in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
            assert torch.equal(clone(x), network(x))
        torch.testing.assert_close(again(x.contiguous()), network(x.contiguous()))
    assert count_cost(again, CLIP) == count_cost(network, CLIP)
