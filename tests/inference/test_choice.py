"""`auto`: what is measured, remembered and told, by engines whose times are a test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference import Predictor, choice
from octvideo.inference.choice import Cost, Way, by_rule, cheapest, choice_device, choose_engine, measured, ways
from octvideo.inference.engine import EngineEntry, ModelSpec
from octvideo.inference.engines import ENGINES
from octvideo.video import ViewSettings

CPU = torch.device("cpu")
SHAPE = (2, 3, 4, 8, 8)
VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
FASTER, NO_FASTER, WITHOUT = (100.0, 200.0, 0.0), (100.0, 50.0, 400.0), (100.0, 0.0, 0.0)  # products a second


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))


class Machine:
    """Engines "near" and "far", and a clock that they move: by `start` seconds, and by `clip` seconds for each clip.

    Args:
        monkeypatch: makes them the only ones that may be chosen.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.clip = {Way("near", "f32"): 1.0, Way("near", "bf16"): 2.0, Way("far", "f32"): 1.5, Way("far", "bf16"): 0.5}
        self.start = {"near": 1.0, "far": 20.0}
        self.started: list[Way] = []
        self.calls: list[Way] = []
        both = ("f32", "bf16")
        for name, entry in ENGINES.items():
            monkeypatch.setitem(ENGINES, name, replace(entry, auto=()))
        for name in ("near", "far"):
            monkeypatch.setitem(ENGINES, name, EngineEntry(name, both, start=self.starter(name), auto=both))
        monkeypatch.setitem(ENGINES, "slow", EngineEntry("slow", both, start=self.starter("near")))
        monkeypatch.setattr(choice, "clock_of", lambda threads: lambda: self.now)
        monkeypatch.setattr(choice, "load_library", object)  # which would be compiled again in an empty cache
        self.multiplies(monkeypatch, FASTER)

    @staticmethod
    def multiplies(monkeypatch: pytest.MonkeyPatch, rates: tuple[float, ...]) -> None:
        monkeypatch.setattr(choice, "product_rates", lambda: rates)
        monkeypatch.setattr(choice, "bf16_pays", lambda: rates[1] > rates[0])

    def starter(self, name: str) -> Any:
        machine = self

        class Toy:
            views_per_call = None

            def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
                self.name, self.precision = name, spec.precision
                machine.now += machine.start[name]
                machine.started.append(self.way)
                if self.way not in machine.clip:
                    raise UserError("the network is too odd for it")
                self.network = network

            @property
            def way(self) -> Way:
                return Way(self.name, self.precision)

            def __call__(self, clips: Tensor) -> Tensor:
                machine.now += machine.clip[self.way] * len(clips)
                machine.calls.append(self.way)
                return self.network(clips)

        return Toy

    def choose(self, network: nn.Module | None = None, **options: Any) -> tuple[str, str, str]:
        """Engine, precision, reason; forgets what was started and called before."""
        self.started.clear()
        self.calls.clear()
        engine, reason = choose_engine(network or Mean(), **{"example_shape": SHAPE, **options})
        return engine.name, engine.precision, reason


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield Machine(monkeypatch)
    torch.set_num_threads(threads)


def remembered(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("choice_*.json"))


# ── measured and remembered ─────────────────────────────────────────────────────────────────────────────────


def test_the_fastest_is_measured_once_and_remembered(machine: Machine, tmp_path: Path) -> None:
    engine, precision, reason = machine.choose()
    assert (engine, precision) == ("far", "bf16")
    (file,) = remembered(tmp_path)
    measured = "far bf16 500 ms a clip, near f32 1000, far f32 1500, near bf16 2000"
    assert reason == f"measured here: {measured}; remembered in {file}"
    assert len(machine.started) == len(set(machine.started)) == 4  # what is chosen is not started again
    assert machine.choose() == (engine, precision, reason)
    assert machine.started == [Way("far", "bf16")] and machine.calls == []


def test_a_start_counts_where_few_clips_are_to_come(machine: Machine) -> None:
    assert machine.choose(expected_clips=1000)[:2] == ("far", "bf16")
    engine, precision, reason = machine.choose(expected_clips=30)  # 1 + 30 s against 20 + 15
    assert (engine, precision) == ("near", "f32") and "near f32 1000 ms a clip, far bf16 500" in reason
    assert "; far bf16 starts 19.0 s later; remembered in" in reason
    assert machine.choose(expected_clips=50)[:2] == ("far", "bf16")


def test_short_work_is_not_worth_a_measurement(machine: Machine, tmp_path: Path) -> None:
    engine, precision, reason = machine.choose(expected_clips=29)  # of 2 s
    assert (engine, precision) == ("near", "bf16") and machine.calls == [Way("near", "bf16")]
    told = "by rule: this CPU multiplies faster in bf16; measured where more is to be done"
    assert reason == told and remembered(tmp_path) == []
    assert machine.choose(expected_clips=30)[2].startswith("measured here: ") and len(remembered(tmp_path)) == 1


def test_a_given_engine_or_precision_is_kept(machine: Machine) -> None:
    assert machine.choose(engine="near")[:2] == ("near", "f32")
    assert set(machine.started) == {Way("near", "f32"), Way("near", "bf16")}
    assert machine.choose(precision="f32")[:2] == ("near", "f32")
    assert Way("far", "f32") in machine.started  # which the first file does not have
    assert machine.choose(engine="far")[:2] == ("far", "bf16")
    assert machine.choose(engine="far", precision="f32")[2] == "there is no other to choose from"
    assert machine.choose(engine="slow")[:2] == ("near", "bf16") and machine.calls == []  # starts too long to be tried


@pytest.mark.parametrize(
    "change",
    [
        {"num_threads": 1},
        {"example_shape": (1, *SHAPE[1:])},
        {"network": nn.Sequential(Mean())},
        {"network": nn.Sequential(Mean(), nn.Linear(3, 5))},
        {"network": nn.Sequential(Mean(), nn.Linear(3, 6))},
    ],
)
def test_another_network_or_shape_is_measured_by_itself(
    change: dict, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    machine.choose()
    machine.choose(**change)
    assert len(remembered(tmp_path)) == 2 and machine.calls != []
    for what, value in (
        ("sources_key", lambda: "new"),
        ("_version", lambda name: "9"),
        ("cpu_lines", lambda: ["model name : odd"]),
    ):
        monkeypatch.setattr(choice, what, value)
        machine.choose(**change)
        assert machine.calls != [], what


def test_other_weights_are_the_same_network(machine: Machine, tmp_path: Path) -> None:
    machine.choose(network=nn.Sequential(Mean(), nn.Linear(3, 5)))
    machine.choose(network=nn.Sequential(Mean(), nn.Linear(3, 5)))
    assert machine.calls == [] and len(remembered(tmp_path)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b'{"octvideo choice": 1}', b'{"octvideo choice": 2, "made_for": {}, "seconds": {}}',
        {"seconds": 3}, {"seconds": {"near": {"f32": {"start": 1, "clip": "fast"}}}},
        {"seconds": {"near": {"f32": {"start": -1, "clip": 0}}}}, {"seconds": {"near": {"f32": {"clip": 1}}}},
        {"seconds": {"near": [1]}}, {"made_for": {}},
        b"[" * 100_000, {"seconds": {"near": {"f32": {"start": 10**400, "clip": 1}}}},
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_measured_again(content: Any, machine: Machine, tmp_path: Path) -> None:
    machine.choose()
    (file,) = remembered(tmp_path)
    good = file.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else json.dumps({**json.loads(good), **content}).encode())
    assert machine.choose()[:2] == ("far", "bf16")
    assert len(machine.started) == 4 and file.read_bytes() == good


def test_a_cache_that_is_closed_is_no_error(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path / "file"))
    engine, precision, reason = machine.choose()
    assert (engine, precision) == (
        "far",
        "bf16",
    ) and f"; not remembered: can't write {tmp_path / 'file'}/choice_" in reason
    monkeypatch.delenv("OCTVIDEO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(kind: type) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert machine.choose()[2].endswith("; not remembered: there is no home folder")


def test_what_does_not_work_here_is_left_out(machine: Machine, tmp_path: Path) -> None:
    del machine.clip[Way("far", "bf16")]
    engine, precision, reason = machine.choose()
    assert (engine, precision) == ("near", "f32")
    assert "near bf16 2000, far bf16 does not work here; remembered in" in reason
    assert machine.choose()[2] == reason and machine.started == [Way("near", "f32")]  # nor is it tried again
    del machine.clip[Way("near", "bf16")]  # the rule's
    remembered(tmp_path)[0].unlink()
    with pytest.raises(UserError, match="too odd"):
        machine.choose()


@pytest.mark.parametrize(
    ("rates", "why"), [(NO_FASTER, "multiplies no faster in bf16 than in f32"), (WITHOUT, "has no units for bf16 that")]
)
def test_where_bf16_is_no_faster_it_is_not_tried(
    rates: tuple[float, ...], why: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.multiplies(monkeypatch, rates)
    assert machine.choose()[:2] == ("near", "f32")
    assert set(machine.started) == {Way("near", "f32"), Way("far", "f32")}
    engine, _, reason = machine.choose(engine="far")
    assert engine == "far" and machine.calls == [] and reason.startswith(f"this CPU {why}")
    assert machine.choose(precision="bf16")[:2] == ("far", "bf16")  # which is asked for


def test_turns() -> None:
    """The slow are out after one call that counts; the others take turns, and their least is what counts."""
    now, calls = 0.0, []
    seconds = {Way("a", "f32"): [9, 4, 3, 4, 5, 6], Way("b", "f32"): [9, 7], Way("c", "f32"): [1, 4, 5, 3, 2, 9]}

    def engine(way: Way) -> Any:
        def call(clips: Tensor) -> Tensor:
            nonlocal now
            now += seconds[way][sum(other == way for other in calls)]
            calls.append(way)
            return clips

        return call

    def broken(clips: Tensor) -> Tensor:
        raise RuntimeError("can't allocate memory\nat odd.cpp")

    engines = {way: engine(way) for way in seconds} | {Way("d", "f32"): broken}
    found = measured(engines, torch.zeros(SHAPE), lambda: now)
    assert {way.engine: value for way, value in found.items()} == {
        "a": 3 / 2, "b": 7 / 2, "c": 2 / 2, "d": "can't allocate memory"
    }  # fmt: skip
    assert "".join(way.engine for way in calls) == "abc" + "abc" + "ac" * 4


def test_of_ways_that_are_as_good_the_most_exact_is_taken() -> None:
    costs: choice.Costs = {
        Way("a", "bf16"): Cost(0, 0.98),
        Way("a", "f32"): Cost(0, 1.0),
        Way("b", "f32"): Cost(0, 0.97),
    }
    assert cheapest(costs, list(costs), None) == Way("a", "f32")
    assert "; b f32 is hardly faster; kept" in choice.reason(costs, list(costs), Way("a", "f32"), "kept")
    costs[Way("a", "bf16")] = Cost(0, 0.9)
    assert cheapest(costs, list(costs), None) == Way("a", "bf16")


# ── by rule ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rates", "lines", "precision"),
    [
        (FASTER, [], "bf16"),
        (NO_FASTER, ["flags : avx512_bf16 amx_bf16"], "f32"),
        (WITHOUT, [], "f32"),
        # Without the kernel:
        ((0.0, 0.0, 0.0), ["flags : avx512_bf16 amx_bf16", "model name : Intel(R) Xeon(R)"], "bf16"),
        ((0.0, 0.0, 0.0), ["flags : avx512_bf16", "model name : Intel(R) Xeon(R)"], "f32"),
        ((0.0, 0.0, 0.0), ["flags : avx512_bf16", "model name : AMD EPYC"], "bf16"),
        ((0.0, 0.0, 0.0), ["flags : avx2", "model name : AMD EPYC"], "f32"),
        ((0.0, 0.0, 0.0), [], "f32"),
    ],
)
def test_the_rule_of_processors(
    rates: tuple[float, ...], lines: list[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine.multiplies(monkeypatch, rates)
    monkeypatch.setattr(choice, "cpu_lines", lambda: lines)
    assert by_rule([Way("eager", "f32"), Way("eager", "bf16"), Way("openvino", "bf16")], CPU)[0] == ("eager", precision)
    assert by_rule([Way("onnx", "f32")], CPU)[0] == ("onnx", "f32")


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "f32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_rule_of_gpus(
    capability: tuple[int, int], precision: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    engine, chosen, reason = machine.choose(device="cuda")
    assert (engine, chosen) == ("near", precision) and machine.calls == [] and "by rule: this GPU has " in reason


# ── what there is to choose from ────────────────────────────────────────────────────────────────────────────


def test_candidates_are_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: True)
    eager, openvino = ([Way(name, one) for one in ("f32", "bf16")] for name in ("eager", "openvino"))
    assert ways("auto", "auto", CPU) == eager + openvino
    assert ways("auto", "auto", torch.device("cuda")) == eager
    assert ways("auto", "bf16", CPU) == [eager[1], openvino[1]]
    assert ways("openvino", "auto", CPU) == openvino  # int8 only where it is asked for
    assert Way("openvino", "int8") in ways("auto", "int8", CPU)
    assert ways("onnx", "auto", CPU) == [Way("onnx", "f32")]
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None if name == "openvino" else True)
    assert ways("auto", "auto", CPU) == eager


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("auto", "f16", "cpu"), "precision: got 'f16', expected auto, f32, bf16, int8"),
        (("tensorrt", "auto", "cpu"), "engine: got 'tensorrt', expected eager"),
        (("auto", "auto", "tpu9"), "device 'tpu9' can't be used here"),
        (("eager", "int9", "cpu"), "precision: got 'int9' for engine 'eager'"),
    ],
)
def test_what_there_is_not_is_refused(words: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choice_device(*words)


def test_openvinos_precisions_share_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "load_library", object)
    Machine.multiplies(monkeypatch, FASTER)
    written = []

    def write(network: nn.Module, file: Path, spec: ModelSpec) -> None:
        written.append(spec.precision)
        file.write_text("")

    def load(file: str, precision: str, device: str, threads: int) -> tuple[Any, str]:
        return lambda clips: clips.mean((2, 3, 4)), precision

    toy = {"files": ("model.toy",), "write": write, "load": load, "auto": ("f32", "bf16")}
    monkeypatch.setitem(ENGINES, "toy", EngineEntry("toy", ("f32", "bf16"), one_file=("f32", "bf16"), **toy))
    engine, _ = choose_engine(Mean(), engine="toy", example_shape=SHAPE)
    assert len(written) == 1
    torch.testing.assert_close(engine(torch.ones(5, *SHAPE[1:])), torch.ones(5, 3))
    monkeypatch.setitem(ENGINES, "toy", EngineEntry("toy", ("f32", "bf16"), **toy))
    (next(iter((tmp_path / "cache").iterdir()))).unlink()
    choose_engine(Mean(), engine="toy", example_shape=SHAPE)
    assert sorted(written[1:3]) == ["bf16", "f32"]


def test_a_predictor_says_what_auto_became(machine: Machine) -> None:
    many = Predictor(Mean(), ["a", "b", "c"], views=VIEWS, engine="auto", precision="auto", device="cpu")
    assert (many.engine.name, many.engine.precision) == ("far", "bf16")
    few = Predictor(
        Mean(), ["a", "b", "c"], views=VIEWS, engine="auto", precision="auto", device="cpu", expected_videos=4
    )  # of 6 views
    assert (few.engine.name, few.engine.precision) == ("near", "f32") and few.engine_reason.startswith("measured")
    given = Predictor(Mean(), ["a", "b", "c"], views=VIEWS, engine="near", device="cpu")
    assert (given.engine.precision, given.engine_reason) == ("f32", "")
