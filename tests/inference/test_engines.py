"""Each engine against plain eager PyTorch, on networks of random weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference.engine import in_batches
from octvideo.inference.engines import ENGINES, build_engine
from octvideo.inference.torch_engines import EagerEngine
from octvideo.models import i3d_small
from octvideo.octave import octavize
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS, FormatName
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.library import load_library

SHAPE = (2, 3, 4, 31, 32)  # an odd height: low maps round up
# f32: rounding alone. bf16 keeps 8 bits of each number, int8 about as many levels: a share of the logits' range.
TOLERANCE = {"f32": 1e-5, "bf16": 0.05, "int8": 0.15}


class Pooled(nn.Module):
    """Logits (N, K) of features (N, K, T, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """An octave network with all four paths, a strided layer and norms that are not trivial."""
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1))]
    for channels, stride in ((8, 1), (16, 2), (16, 1)):
        layers += [nn.Conv3d(channels, 16, 3, (1, stride, stride), 1), nn.BatchNorm3d(16), nn.ReLU()]
    network = octavize(nn.Sequential(*layers, nn.Conv3d(16, 5, 1), Pooled()), 0.25).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.randn(5, *SHAPE[1:], generator=torch.Generator().manual_seed(2))


def compare(network: nn.Module, clips: Tensor, name: str, precision: str) -> None:
    with torch.no_grad():
        expected = network(clips)
    engine = build_engine(
        name, network, example_shape=(2, *clips.shape[1:]), precision=precision, num_threads=1, calibration=clips
    )
    assert engine.name == name
    logits = engine(clips)  # five clips, two at a time where the engine has a batch size
    spread = float(expected.max() - expected.min())
    torch.testing.assert_close(logits, expected, atol=TOLERANCE[precision] * spread, rtol=0)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(engine(clips[3:4]), logits[3:4], atol=1e-3 * spread, rtol=0)


@pytest.fixture(autouse=True)
def _keep_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("eager", "bf16"), *((name, "f32") for name in ENGINES if name not in ("compile", "aot"))],  # the others compile
)
def test_an_engine_gives_eagers_logits(name: str, precision: str, tiny: nn.Module, clips: Tensor) -> None:
    compare(tiny, clips, name, precision)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_kernel_computes_in_the_precision(
    precision: FormatName, tiny: nn.Module, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_format(FORMATS[precision]):
        pytest.skip(f"this processor has no products in {precision}")
    monkeypatch.setattr("octvideo.inference.torch_engines.bf16_pays", lambda: True)
    compare(tiny, clips, "eager", precision)
    engine = build_engine("eager", tiny, example_shape=SHAPE, precision=precision, calibration=clips)
    assert isinstance(engine, EagerEngine) and engine.precision == precision
    sequences = [m for m in engine._run.modules() if isinstance(m, FusedSequence)]
    assert sequences and all(sequence.format == FORMATS[precision] for sequence in sequences)
    if precision == "int8":
        assert engine.note == "calibrated on 5 clips; the same class as in f32 on 5 of them"


def test_bf16_that_does_not_pay_is_f32(
    tiny: nn.Module, clips: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if load_library() is None:
        pytest.skip("no kernel")
    monkeypatch.setattr("octvideo.inference.torch_engines.bf16_pays", lambda: False)
    engine = build_engine("eager", tiny, example_shape=SHAPE, precision="bf16")
    assert engine.precision == "f32" and "multiplies no faster in bf16 than in f32" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(engine(clips), tiny(clips), atol=1e-4, rtol=1e-4)


def test_int8_without_its_products_names_another_engine(
    tiny: nn.Module, clips: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octvideo.inference.torch_engines.has_format", lambda format: False)
    with pytest.raises(UserError, match="engine eager computes int8 on CPUs with AVX512-VNNI or AMX"):
        build_engine("eager", tiny, example_shape=SHAPE, precision="int8", calibration=clips)


@pytest.mark.skipif(not has_format(FORMATS["int8"]), reason="no int8 on this processor")
def test_int8_of_a_network_without_layers_of_the_kernel(clips: Tensor) -> None:
    """It would be float32 that is called int8."""
    for layers in ([nn.Identity()], [nn.Conv3d(3, 6, 3, padding_mode="replicate"), nn.ReLU()]):
        with pytest.raises(UserError, match="has no layer of this network: no int8 by engine eager"):
            build_engine(
                "eager", nn.Sequential(*layers, Pooled()), example_shape=SHAPE, precision="int8", calibration=clips
            )


@pytest.mark.skipif(not has_format(FORMATS["int8"]), reason="no int8 on this processor")
def test_int8_of_maps_that_overflow(clips: Tensor) -> None:
    network = nn.Sequential(nn.Conv3d(3, 8, 1), nn.ReLU(), Pooled())
    nn.init.constant_(network[0].weight, 3e38)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="int8: calibration: a map has NaN or infinite elements"):
        build_engine("eager", network, example_shape=SHAPE, precision="int8", calibration=clips)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [(e.name, p) for e in ENGINES.values() for p in e.precisions])
def test_an_engine_gives_eagers_logits_of_i3d(name: str, precision: str) -> None:
    torch.manual_seed(1)
    network = i3d_small(num_classes=5, alpha=0.25, zero_init_last_norm=False).eval()
    compare(network, torch.randn(5, 3, 4, 48, 48), name, precision)


def test_the_network_is_left_as_it_is(tiny: nn.Module, clips: Tensor) -> None:
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    build_engine("eager", tiny, example_shape=SHAPE, precision="bf16")(clips)
    after = tiny.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) and value.dtype == after[key].dtype


def test_batches_are_filled_up_and_cut() -> None:
    sizes = []

    def run(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.sum((1, 2, 3, 4))[:, None]

    clips = torch.arange(7.0).view(7, 1, 1, 1, 1)
    assert in_batches(run, clips, 3).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("tensorrt", "f32", "engine: got 'tensorrt', expected eager, compile, aot"),
        ("onnx", "bf16", r"precision: got 'bf16' for engine 'onnx', expected f32 \(engines with bf16: eager, compile"),
        ("eager", "f16", "precision: got 'f16' for engine 'eager', expected f32 or bf16 or int8$"),
        ("openvino", "int8", "int8 needs typical videos"),
    ],
)
def test_what_there_is_not_is_refused(name: str, precision: str, message: str, tiny: nn.Module) -> None:
    with pytest.raises(UserError, match=message):
        build_engine(name, tiny, example_shape=SHAPE, precision=precision)


def test_a_device_that_an_engine_has_not_is_refused(tiny: nn.Module) -> None:
    told = "engine 'onnx' runs on cpu here, got device 'cuda': add --device cpu, or --engine eager, compile, aot"
    with pytest.raises(UserError, match=told):
        build_engine("onnx", tiny, example_shape=SHAPE, device="cuda")


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_library_says_what_to_install(
    name: str, module: str, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"this needs {module} \(.*\): pip install 'octvideo\[{name}\]'"):
        build_engine(name, tiny, example_shape=SHAPE)
