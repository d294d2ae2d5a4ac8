"""What is measured, on networks made for it: clocks, turns, Ctrl-C, counts, weights, scores, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch.utils._python_dispatch import TorchDispatchMode

from lab.benchmark import calls, measure
from lab.benchmark.arms import Arm, parse_arms
from lab.benchmark.calls import Call, make_call
from lab.benchmark.command import main
from lab.benchmark.machine import describe, machine_line, peak_product
from lab.benchmark.measure import agreements, build_calls, run_pass
from lab.benchmark.networks import WeightStore, build_network, count, smooth_clips
from lab.benchmark.results import Pass
from octvideo.errors import UserError
from octvideo.inference import torch_engines
from octvideo.inference.engine import EngineEntry, ModelSpec
from octvideo.inference.engines import ENGINES
from octvideo.inference.torch_engines import EagerEngine
from octvideo.octave import count_cost
from octvideo.octave.kernel.layout import LAYOUTS
from octvideo.octave.kernel.library import load_library
from octvideo.progress import Progress
from octvideo.training import scoring_module as training

CPU = torch.device("cpu")
TINY = Arm("i3d_small", width=8, classes=5, frames=4, crop=32)


def busy(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def test_a_pass_measures_each_call_by_both_clocks_and_the_peak_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"slow": TINY, "waits": replace(TINY, alpha=0.5)}
    calls = {"slow": Call(lambda: busy(0.06)), "waits": Call(lambda: time.sleep(0.06))}
    found = Pass("cpu", 1, "cpu")
    steps: list[int] = []
    progress = Progress()
    monkeypatch.setattr(progress, "begin", lambda text, number: steps.append(number))
    monkeypatch.setattr(progress, "advance", lambda: steps.append(1))
    assert run_pass(arms, calls, found, rounds=2, device=CPU, progress=progress)
    assert found.rounds == 2 and steps == [6, *[1] * 6]
    for label in calls:
        assert {clock: len(times) for clock, times in found.seconds[label].items()} == {"cpu": 2, "wall": 2}
    assert min(found.seconds["slow"]["cpu"]) >= 0.06 and max(found.seconds["waits"]["cpu"]) < 0.03
    assert min(found.seconds["waits"]["wall"]) >= 0.06
    assert len(found.peak["f32"]) == 2 and 1e8 < max(found.peak["f32"]) < 1e13
    assert found.peak_how["f32"] == "products in registers" if load_library() else " x " in found.peak_how["f32"]


def test_a_short_call_is_repeated_and_its_mean_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now, number = 0.0, 0

    def once() -> None:
        nonlocal now, number
        now, number = now + 0.004, number + 1

    clock = SimpleNamespace(process_time=lambda: now / 2, perf_counter=lambda: now)
    monkeypatch.setattr(measure, "time", clock)
    turn = measure.turn_of(once, CPU)
    assert turn() == pytest.approx({"cpu": 0.002, "wall": 0.004}) and number == 1
    assert turn() == pytest.approx({"cpu": 0.002, "wall": 0.004}) and number == 1 + 13  # 50 ms of them
    assert turn() == pytest.approx({"cpu": 0.002, "wall": 0.004}) and number == 1 + 2 * 13


def test_ctrl_c_keeps_the_complete_rounds() -> None:
    turns = iter(range(5))

    def once() -> None:
        busy(0.06)
        if next(turns, None) is None:
            raise KeyboardInterrupt

    found = Pass("cpu", 1, "cpu")
    calls = {"a": Call(once), "b": Call(once)}
    assert not run_pass(dict.fromkeys(calls, TINY), calls, found, rounds=9, device=CPU, progress=Progress())
    assert found.rounds == 1 and {len(clocks["cpu"]) for clocks in found.seconds.values()} == {1}


def test_a_product_is_counted_as_it_is() -> None:
    product = peak_product("f32", CPU)
    result = product.once()
    size = int(product.text.split()[0])
    assert result.numel() == size**2 and product.multiply_adds == size**3


@pytest.mark.slow
def test_counts_are_those_of_the_network_and_the_backward_pass_is_two_more() -> None:
    octave = replace(TINY, alpha=0.25)
    network = build_network(octave)
    cost = count_cost(network, octave.clip_shape)
    counts = count(octave)
    assert (counts.multiply_adds, counts.parameters) == (cost.multiply_adds, cost.parameters)
    assert cost.activations < counts.traffic / 4 < 3 * cost.activations  # bytes written, and read
    training = count(replace(octave, mode="training"))
    # Gradients of weights and of inputs cost what the forward pass does; of the stem's input there is none.
    stem = 8 * 4 * 16**2 * 3 * 5 * 7**2
    assert training.multiply_adds == 3 * cost.multiply_adds - stem


def test_traffic_is_every_map_read_and_written() -> None:
    """By hand: ResNet-18's stem alone reads 3 x 64 x 64 and writes 64 x 32 x 32 numbers."""
    arm = Arm("torchvision:resnet18", engine="plain", frames=1, crop=64, classes=5)
    by_hand = 3 * 64**2 + 64 * 32**2
    for width, size, width_in, size_in in ((64, 16, 64, 16), (128, 8, 64, 16), (256, 4, 128, 8), (512, 2, 256, 4)):
        by_hand += width_in * size_in**2 + width * size**2 + 3 * 2 * width * size**2
        by_hand += width_in * size_in**2 + width * size**2 if width > 64 else 0  # the shortcut
    assert count(arm).traffic == 4 * by_hand
    assert count(replace(arm, precision="bf16", batch=3)).traffic == 3 * 2 * by_hand


def test_arms_of_one_function_have_one_set_of_weights_and_sound_scores() -> None:
    arms = {"hub": Arm("torchvision:resnet18", engine="plain", frames=1, crop=32, classes=9)}
    arms["ours"] = replace(arms["hub"], engine="eager")
    arms["bf16"] = replace(arms["hub"], precision="bf16", batch=3)
    calls, left_out = build_calls(arms, WeightStore(), threads=1, device=CPU, progress=Progress())
    assert not left_out
    found = agreements(arms, calls)
    assert set(found) == {"ours", "bf16"} and {each.other for each in found.values()} == {"hub"}
    assert found["ours"].difference < 1e-4 * found["ours"].spread
    assert 1e-4 * found["bf16"].spread < found["bf16"].difference < found["bf16"].spread
    assert found["ours"].clips == found["bf16"].clips == found["ours"].same_top1 == 4
    assert 0.1 < found["ours"].spread < 100


def test_what_cannot_be_built_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: object, arm: Arm) -> nn.Module:
        raise RuntimeError("\nout of memory\nmore of it")

    arms = {"int8": replace(TINY, engine="plain", precision="int8"), "plain": replace(TINY, engine="plain")}
    calls, left_out = build_calls(arms, WeightStore(), threads=1, device=CPU, progress=Progress())
    assert list(calls) == ["plain"] and list(left_out) == ["int8"]
    assert left_out["int8"].startswith("engine plain: precision: got 'int8', expected f32 or bf16")
    monkeypatch.setattr(WeightStore, "network", no_memory)
    assert build_calls(arms, WeightStore(), threads=1, device=CPU, progress=Progress()) == (
        {},
        dict.fromkeys(arms, "out of memory"),
    )


class Layouts(TorchDispatchMode):
    """Notes the layouts of what convolutions read: maps, and weights."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: set[str] = set()
        self.weights: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.namespace == "aten" and "conv" in str(operation):  # conv3d, convolution, convolution_backward
            maps, weight = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.dim() > 3][-2:]
            self._note(self.maps, maps)
            self._note(self.weights, weight)
        elif "conv" in str(operation):  # oneDNN's, whose weights have layouts of their own
            self._note(self.maps, args[0])
        return operation(*args, **(kwargs or {}))

    def _note(self, seen: set[str], tensor: torch.Tensor) -> None:
        last = tensor.is_contiguous(memory_format=LAYOUTS[tensor.dim()])
        if tensor.is_contiguous() != last:  # of one channel or pixel it is both
            seen.add("channels_last" if last else "contiguous")


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own convolutions, as on a GPU."""
    monkeypatch.setenv("OCTVIDEO_FUSED", "0")
    load_library.cache_clear()
    yield
    load_library.cache_clear()


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.slow
def test_maps_have_the_layout_that_an_arm_names(
    engine: str, mode: str, no_kernel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes_layout: set[bool] = set()  # whether inductor may, when a network is compiled

    def compile_(module: nn.Module, *, options: Any = None, **_: Any) -> None:
        def run(*args: Any) -> Any:
            changes_layout.add((options or {}).get("layout_optimization", config.layout_optimization))
            return module._call_impl(*args)  # type: ignore[no-untyped-call]

        module._compiled_call_impl = run

    for module in (calls, training, torch_engines):
        monkeypatch.setattr(module, "compile_module", compile_)
    arm = replace(TINY, alpha=0.25, engine=engine, mode=mode, batch=2)
    for layout in ("contiguous", "channels_last"):
        changes_layout.clear()
        call = make_call(replace(arm, layout=layout), WeightStore(as_built=True), threads=1, device=CPU)
        compiled_by = set(changes_layout)  # training's first step
        with Layouts() as seen:
            call.once()
        assert seen.maps == {layout}
        if layout == "contiguous":  # one such operand makes cuDNN convert the others
            assert seen.weights == {layout}
        if engine == "compile":
            assert next(iter(compiled_by or changes_layout)) == (layout == "channels_last")


def test_the_kernel_has_no_contiguous_maps() -> None:
    if load_library() is None:
        pytest.skip("no kernel here")
    with pytest.raises(UserError, match="layout: got 'contiguous', expected channels_last or auto"):
        make_call(replace(TINY, layout="contiguous"), WeightStore(as_built=True), threads=1, device=CPU)


def test_statistics_are_of_the_clips_so_that_no_layer_is_dead() -> None:
    network = WeightStore().network(replace(TINY, alpha=0.25))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_var is not None and module.running_var.min() > 1e-6 and module.momentum == 0.1
            assert not torch.equal(module.running_var, torch.ones_like(module.running_var))
    one, other = smooth_clips((2, 3, 4, 32, 32), seed=1), smooth_clips((2, 3, 4, 32, 32), seed=2)
    assert one.std() == pytest.approx(1, abs=0.2) and not torch.equal(one, other)
    assert not torch.equal(network(one).argmax(1), network(other).argmax(1)) or (network(one) - network(other)).std()


def test_a_training_step_learns_and_leaves_gradients() -> None:
    arm = replace(TINY, alpha=0.25, mode="training", optimizer="sgd", batch=2)
    call = make_call(arm, WeightStore(), threads=1, device=CPU)
    torch.manual_seed(0)  # of the dropout
    losses = [float(call.once()) for _ in range(4)]
    assert losses[-1] < losses[0] and call.logits is None
    bf16 = make_call(replace(arm, precision="bf16"), WeightStore(), threads=1, device=CPU)
    torch.manual_seed(0)
    assert float(bf16.once()) == pytest.approx(losses[0], rel=0.05)


def test_an_engine_is_an_arms_by_its_entry_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    specs: list[ModelSpec] = []

    def start(network: nn.Module, spec: ModelSpec) -> EagerEngine:
        specs.append(spec)
        return EagerEngine(network, spec)

    entry = EngineEntry("toy", ("f32",), start=start, compiles=True, trains=True, packages=("pytest",))
    monkeypatch.setitem(ENGINES, "toy", entry)
    [toy, trained] = parse_arms(["i3d_small:width=8,classes=5,frames=4,crop=32,engine=toy,mode=inference/training"])
    assert toy == replace(TINY, engine="toy") and trained.mode == "training"
    logits = make_call(toy, WeightStore(), threads=1, device=CPU).logits
    eager = make_call(TINY, WeightStore(), threads=1, device=CPU).logits
    clips = smooth_clips(TINY.clip_shape, seed=9)
    assert logits is not None and eager is not None and torch.equal(logits(clips), eager(clips))
    assert specs[0].shape == TINY.clip_shape
    assert f"pytest {pytest.__version__}" in machine_line(describe(CPU))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "openvino, toy)" in " ".join(capsys.readouterr().out.split())


def test_a_store_gives_the_same_weights_after_one_of_its_networks_was_trained() -> None:
    store, arm = WeightStore(), replace(TINY, mode="training", optimizer="sgd", batch=2)
    before = {key: value.clone() for key, value in store.network(arm).state_dict().items()}
    make_call(arm, store, threads=1, device=CPU).once()
    after = store.network(arm).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i3d_r51", "network: got 'i3d_r51', expected one of c2d_r50, .* or LIBRARY:NAME of pytorchvideo, torchvision"),
        ("mmaction:i3d", "network: got 'mmaction:i3d', expected one of c2d_r50"),
        ("pytorchvideo:i3d_r51", "pytorchvideo has no network 'i3d_r51'"),
        ("i3d_r50:width=8", "width: got 8 for i3d_r50, expected a small network"),
        ("timm:resnet18:width=8,alpha=.5", "width: got 8 for timm:resnet18, expected a builder"),
        ("i3d_small:alpha=.5,exchange=some", "exchange: got 'some', expected"),
        ("i3d_small:frames=1", "i3d_small takes no clips of 1x3x1x224x224: .*frame"),
    ],
)
def test_networks_that_cannot_be_built(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        count(parse_arms([text])[0])


def test_the_machine_in_one_line() -> None:
    facts = describe(CPU)
    line = machine_line(facts)
    assert f"torch {torch.__version__}" in line and f"{torch.get_num_threads()} thread" in line and facts["cpu"] in line
