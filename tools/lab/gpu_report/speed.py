"""Steps 1 to 6: arms in turns, measured as they are built; where their time goes; the same compiled."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lab.benchmark.arms import Arm, arm_text, parse_arms
from lab.benchmark.calls import Call
from lab.benchmark.measure import build_calls, run_pass
from lab.benchmark.networks import WeightStore, build_network, count
from lab.benchmark.results import ArmResult, Memory, Pass, Run, Spread, ratios, spread, summarise
from lab.gpu_report.child import Child, EndedError
from lab.gpu_report.kernels import Kernel, by_kind, profiled
from lab.gpu_report.work import NothingToDoError, Work
from lab.timing import rounds_of
from octvideo.errors import UserError
from octvideo.octave import prepare_inference
from octvideo.octave.fused.prepare import use_bfloat16
from octvideo.octave.kernel.layout import forms_of
from octvideo.progress import Progress

_ROUNDS, _ROUNDS_AS_BUILT, _ROUNDS_TINY = 10, 2, 2
_KERNELS_SHOWN = 15
APART = "lab.gpu_report.apart"  # the module of processes that compile


@dataclass(frozen=True)
class Variant:
    """An arm, and the state of torch that it runs in.

    Args:
        arm: which network runs how.
        note: what else is special, for its label.
        within: entered around each call, and while it is built.
        change: gives the network that runs in its network's place.
    """

    arm: Arm
    note: str = ""
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    change: Callable[[nn.Module], nn.Module] | None = None

    @property
    def label(self) -> str:
        """α and what is special."""
        multiple = dict(self.arm.octave).get("channel_multiple")
        fused = "fused" if self.arm.fuse == "norms" else ""
        parts = [f"α {self.arm.alpha:g}", f"multiple {multiple}" if multiple else "", fused, self.note]
        return " ".join(filter(None, parts))


class _Changed(WeightStore):
    def __init__(self, change: Callable[[nn.Module], nn.Module] | None) -> None:
        super().__init__(as_built=True)  # neither time nor bytes depend on what is learnt
        self._change = change

    def network(self, arm: Arm) -> nn.Module:
        network = copy.deepcopy(_built(_of_clip(arm))).eval()
        return network if self._change is None else self._change(network)


def training_arms(work: Work, **changes: Any) -> list[Arm]:
    """The five of step 1, at the batch that fits in memory."""
    own: dict[str, Any] = {"mode": "training", "optimizer": "sgd", "layout": "channels_last", "batch": 32, "crop": 224}
    return _arms(work, own | changes)


def inference_arms(work: Work, **changes: Any) -> list[Arm]:
    """Prepared networks on 30 views of 256 pixels."""
    return _arms(work, {"layout": "channels_last", "batch": 30, "crop": 256, **changes})


def _arms(work: Work, options: dict[str, Any]) -> list[Arm]:
    if work.settings.tiny:
        tiny = {"batch": 2, "crop": 32, "frames": 4, "classes": 5}
        return parse_arms(["i3d_small:width=8,alpha=0/.25"], **options | tiny)
    fits = _batch_file(work, options.get("mode", "inference"))
    batch = int(fits.read_text()) if fits.exists() else options["batch"]
    texts = "i3d_r50:alpha=0/.25/.5/.1", "i3d_r50:alpha=.1,channel_multiple=8"
    return parse_arms(texts, **options | {"precision": "bf16", "batch": batch})


def _batch_file(work: Work, mode: str) -> Path:
    """Holds the batch that later steps begin with, where memory was short."""
    return Path(work.settings.cache) / f"batch_{mode}.txt"


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(work: Work, key: str, variants: Sequence[Variant]) -> dict[str, Call]:
    """Builds variants one by one, and measures all there are in turns after each; the table is said each time.

    Where memory is short, all begin anew with half the batch.

    Args:
        work: gets the table by `key`.
        variants: the first that is ordinary is what the others are compared with.

    Returns:
        The calls, by label.

    Raises:
        UserError: none of them runs.
    """
    batch = variants[0].arm.batch
    while True:
        try:
            return _measure_at(work, key, [replace(v, arm=replace(v.arm, batch=batch)) for v in variants])
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        gc.collect()
        if work.device.type == "cuda":
            torch.cuda.empty_cache()
        _batch_file(work, variants[0].arm.mode).write_text(str(batch))
        work.say(f"{key} memory", f"out of memory with {2 * batch} clips: what follows has {batch}")


def _measure_at(work: Work, key: str, variants: Sequence[Variant]) -> dict[str, Call]:
    rounds = _ROUNDS_TINY if work.settings.tiny else _ROUNDS
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    arms = {variant.label: variant.arm for variant in variants}
    within = {variant.label: variant.within for variant in variants}
    results: list[ArmResult] = []
    options: dict[str, Any] = {"device": work.device, "progress": Progress()}

    def take_turns(number: int) -> None:
        found = Pass(work.device.type, torch.get_num_threads(), "wall")
        run_pass(
            arms,
            {label: _within(call, within[label]) for label, call in calls.items()},
            found,
            rounds=number,
            **options,
        )
        _say_times(work, key, results, found, left_out)

    for number, variant in enumerate(variants):
        if calls and work.left < 3:
            left_out.update((other.label, "no time left") for other in variants[number:])
            break
        with variant.within():
            built, problems = build_calls(
                {variant.label: variant.arm}, _Changed(variant.change), threads=torch.get_num_threads(), **options
            )
        if any("out of memory" in problem for problem in problems.values()):
            raise torch.OutOfMemoryError(*problems.values())
        left_out |= problems
        if built:
            calls |= built
            memory = calls[variant.label].memory
            results.append(_result(variant.arm, variant.label, None if memory is None else memory.peak))
            take_turns(min(_ROUNDS_AS_BUILT, rounds))
    if not calls:
        raise UserError(f"nothing runs: {'; '.join(left_out.values())}")
    if work.left > 3:
        take_turns(rounds)
    elif left_out:
        work.say(f"{key} left out", f"left out: {left_out}")
    return calls


def _within(call: Call, within: Callable[[], AbstractContextManager[Any]]) -> Call:
    def once() -> None:
        with within():
            call.once()

    return call if within is nullcontext else replace(call, once=once)


def _result(arm: Arm, label: str, memory: int | None) -> ArmResult:
    counts: dict[str, Any] = _counts(arm)
    return ArmResult(label, arm, **counts, memory=None if memory is None else Memory(memory, 0, "peak"))


def _counts(arm: Arm) -> dict[str, int]:
    """Of a forward pass: that of one clip, times the batch."""
    found = _counts_of_clip(_of_clip(arm))
    return {**found, **{name: found[name] * arm.batch for name in ("multiply_adds", "traffic")}}


@functools.cache
def _counts_of_clip(arm: Arm) -> dict[str, int]:
    return vars(count(arm))


@functools.cache
def _built(arm: Arm) -> nn.Module:
    return build_network(arm)  # a second takes


def _of_clip(arm: Arm) -> Arm:
    """What its network and its counts depend on."""
    engine = "plain" if arm.engine == "plain" else "eager"
    own: dict[str, Any] = {"mode": "inference", "optimizer": "none", "precision": "f32", "fuse": "none"}
    return replace(arm, batch=1, layout="auto", engine=engine, **own)


def _say_times(work: Work, key: str, results: list[ArmResult], found: Pass, left_out: Mapping[str, str]) -> None:
    header = ["arm", "ms (quartiles)", "clips/s", "ratio (quartiles)", "forward FLOP ratio", "ms between events"]
    header += ["peak GB", "predicted ratio", "predicted ms"]
    reference = next((result.label for result in results if result.arm.is_ordinary), results[0].label)
    run = Run({}, "", results, [found], reference)
    predictions = read_predictions(work.settings.roofline)
    rows, data = [], []
    for row in summarise(run, found):
        own, clocks = row.result, found.seconds[row.result.label]
        ratio = None if own.label == reference else _ratio(found, own.label, reference)
        memory = None if own.memory is None else own.memory.peak
        told = predictions.get(_prediction_key(own.arm))
        ordinary = predictions.get(_prediction_key(replace(own.arm, alpha=0.0, octave=(), fuse="none")))
        rows.append([
            own.label,
            f"{1e3 * row.seconds.median:.2f} ({1e3 * row.seconds.low:.2f}–{1e3 * row.seconds.high:.2f})",
            f"{row.clips_per_sec:.4g}",
            "" if ratio is None else f"{ratio.median:.3f} ({ratio.low:.3f}–{ratio.high:.3f})",
            "" if row.flop_ratio is None else f"{row.flop_ratio:.3f}",
            f"{1e3 * spread(clocks['gpu']).median:.2f}" if "gpu" in clocks else "",
            "" if memory is None else f"{memory / 1e9:.2f}",
            f"{told / ordinary:.3f}" if told and ordinary else "",
            f"{told:.2f}" if told else "",
        ])  # fmt: skip
        data.append({"arm": arm_text(own.arm), "label": own.label, "seconds": clocks, "memory": memory})
    rows += [[label, reason, *[""] * (len(header) - 2)] for label, reason in left_out.items()]
    how = f"{found.rounds} rounds in turns of {len(results)} arms, ratios of the same round to {reference}"
    work.say(key, f"`{arm_text(results[0].arm)}`: {how}", header=header, rows=rows, data=data)


def _ratio(found: Pass, label: str, reference: str) -> Spread:
    return spread(ratios(found.seconds[label][found.clock], found.seconds[reference][found.clock]))


# ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _prediction_key(arm: Arm) -> tuple[Any, ...]:
    work = "training" if arm.mode == "training" else "inference" if arm.engine == "plain" else "prepared"
    way = "fused" if arm.engine == "compile" else "eager"
    forms = "plain" if arm.mode == "training" and arm.fuse == "none" else "cuda"
    multiple = dict(arm.octave).get("channel_multiple", 1)
    return arm.network, arm.alpha, multiple, work, way, forms, arm.clip_shape, arm.precision


def read_predictions(files: Sequence[str]) -> dict[tuple[Any, ...], float]:
    """Milliseconds of what tools/roofline.py --json predicts, by network and all that is asked of it.

    Raises:
        UserError: of a file that it did not write.
    """
    found = {}
    names = "network", "alpha", "channel_multiple", "work", "way", "forms", "clip_shape", "precision"
    for file in files:
        try:
            for row in json.loads(Path(file).read_text(encoding="utf-8"))["rows"]:
                key = tuple(tuple(row[name]) if name == "clip_shape" else row[name] for name in names)
                found[key] = row["milliseconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--roofline: got {file}, expected a file that tools/roofline.py --json wrote") from error
    return found


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def training(work: Work) -> None:
    """Step 1: five arms, the same with fused norms, and profiles."""
    arms = training_arms(work)
    fused = [replace(arm, fuse="norms") for arm in sorted(arms, key=lambda arm: arm.alpha != 0.25)]
    calls = measure(work, "times", [Variant(arm) for arm in [*arms, *fused]])
    shown = ("α 0", "α 0.25", "α 0.25 fused", "α 0 fused")
    for label, call in sorted(calls.items(), key=lambda item: shown.index(item[0]) if item[0] in shown else len(shown)):
        if work.left < 5:
            work.say("profiles", "no time left for more profiles")
            break
        _say_profile(work, label, profiled(call.once, work.device))


def _say_profile(work: Work, label: str, kernels: list[Kernel]) -> None:
    total = sum(kernel.seconds for kernel in kernels)
    kinds = by_kind(kernels)
    number = sum(kernel.count for kernel in kernels)
    said = ", ".join(f"{kind} {1e3 * seconds:.2f} ({count})" for kind, (count, seconds) in kinds.items())
    work.say(
        f"profile {label}",
        f"**{label}**: {number} kernels, {1e3 * total:.2f} ms; by kind, ms (kernels): {said}",
        header=("kernel", "calls", "ms", "%"),
        rows=[
            (f"`{k.short_name}`", k.count, f"{1e3 * k.seconds:.3f}", f"{100 * k.seconds / total:.1f}")
            for k in kernels[:_KERNELS_SHOWN]
        ],
        data={"kernels": [(k.name, k.kind, k.count, k.seconds) for k in kernels], "kinds": kinds},
    )


def inference(work: Work) -> None:
    """Step 2: the network as it is, and prepared networks, with their peak memory."""
    arms = inference_arms(work)
    plain = Variant(replace(arms[0], engine="plain"), "not prepared")
    measure(work, "times", [*map(Variant, arms), plain])


def layouts(work: Work) -> None:
    """Step 3: both layouts of training, then of inference."""
    for key, arms in (("training", training_arms(work)), ("inference", inference_arms(work))):
        if work.left < 10 and key == "inference":
            work.say(key, "inference: no time left")
            break
        pairs = [arm for arm in arms if arm.alpha in (0, 0.25)]
        both = [replace(arm, layout=of) for of in ("channels_last", "contiguous") for arm in pairs]
        measure(work, key, [Variant(arm, arm.layout) for arm in both])


# Arms that step 4 has compiled, by label: they wait in their processes for step 5.
_ready: dict[str, tuple[Arm, Child]] = {}


def compile_arms(work: Work) -> None:
    """Step 4: a process for each arm, all at once, with one cache."""
    arms = training_arms(work, engine="compile")[: 1 if work.settings.tiny else None]
    arms += [replace(arm, fuse="norms") for arm in arms if arm.alpha == 0.25]
    gc.collect()
    if work.device.type == "cuda":
        torch.cuda.empty_cache()  # for the others
    threads = str(max(1, (os.cpu_count() or 1) // len(arms)))
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": threads}
    started = time.monotonic()
    building: dict[str, tuple[Arm, Child]] = {}
    for number, arm in enumerate(arms):
        words = [json.dumps(arm.to_dict()), work.settings.to_json()]
        log = Path(work.settings.cache) / f"compile_{number}.txt"
        building[Variant(arm).label] = arm, Child(APART, words, log, environment)
    said = dict.fromkeys(building, "begun")
    failed = []
    while building:
        for label, (arm, child) in list(building.items()):
            try:
                child.hear(0.05)
                _ready[label] = arm, child
                said[label] = f"{time.monotonic() - started:.0f} s"
            except TimeoutError:
                if work.left > 3:
                    continue
                said[label] = "stopped for want of time"
                child.close()
            except EndedError as error:
                said[label] = f"failed: {error}"
                child.close()
                failed.append(label)
            del building[label]
            work.say("arms", header=("arm", "compiled after"), rows=list(said.items()))
    for label in said:
        if label in _ready:
            _ready[label] = _ready.pop(label)  # in the order of the arms, not of their ends
    if failed:
        raise UserError(f"not compiled: {', '.join(failed)}")


def compiled(work: Work) -> None:
    """Step 5: the arms that are compiled, in turns; then their processes end.

    Raises:
        NothingToDoError: there are none.
    """
    if not _ready:
        raise NothingToDoError("no arm has been compiled")
    memory: dict[str, Any] = {}

    def turn(label: str) -> dict[Any, float]:
        child = _ready[label][1]
        child.tell({"do": "turn"})
        answer = child.hear(work.left)
        memory[label] = answer["memory"]
        return answer["seconds"]

    try:
        found = Pass(work.device.type, torch.get_num_threads(), "wall")
        rounds = _ROUNDS_TINY if work.settings.tiny else _ROUNDS
        for measured in rounds_of({label: functools.partial(turn, label) for label in _ready}, rounds=rounds):
            for label, clocks in measured.items():
                for clock, seconds in clocks.items():
                    found.seconds.setdefault(label, {}).setdefault(clock, []).append(seconds)
            _say_times(
                work, "times", [_result(arm, label, memory[label]) for label, (arm, _) in _ready.items()], found, {}
            )
        for label, (_, child) in _ready.items():
            if work.left > 5:
                child.tell({"do": "profile"})
                _say_profile(work, label, [Kernel(**kernel) for kernel in child.hear(work.left)["kernels"]])
    finally:
        for _, child in _ready.values():
            child.close()
        _ready.clear()


def rest(work: Work) -> None:
    """Step 6: what else may pay, the cheapest first."""
    arms = [arm for arm in training_arms(work) if arm.alpha in (0, 0.25)]
    [quarter] = [arm for arm in arms if arm.alpha == 0.25]
    without = Variant(quarter, "without forms for CUDA", within=lambda: forms_of("none"))
    measure(work, "forms of training", [Variant(arms[0]), Variant(quarter), without])
    if work.left > 10:
        infers = [arm for arm in inference_arms(work) if arm.alpha in (0, 0.25)]
        for_cpus = [
            Variant(replace(arm, engine="plain"), "prepared as for a CPU", change=_for_cpus(arm)) for arm in infers
        ]
        measure(work, "forms of inference", [*map(Variant, infers), *for_cpus])
    if work.left > 15 and work.device.type == "cuda":
        searched = [Variant(arm, "cudnn.benchmark", within=_cudnn_searches) for arm in arms]
        measure(work, "cudnn.benchmark", [*map(Variant, arms), *searched])
    if work.left > 60 and not work.settings.tiny:
        ordinary, octave_arm = (a for a in inference_arms(work, engine="compile") if a.alpha in (0, 0.25))
        measure(work, "inference, compiled", [Variant(ordinary), Variant(octave_arm)])


@contextmanager
def _cudnn_searches() -> Iterator[None]:
    """`torch.backends.cudnn.benchmark`: the fastest algorithm of each convolution, by trial."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def _for_cpus(arm: Arm) -> Callable[[nn.Module], nn.Module]:
    """Prepares an arm's network without what `prepare_inference` has for CUDA."""

    def prepare(network: nn.Module) -> nn.Module:
        prepared = prepare_inference(network, device="cpu")
        if arm.precision == "bf16":
            use_bfloat16(prepared, by_kernel=False)
        return prepared

    return prepare


MEASUREMENTS: dict[str, Callable[[Work], None]] = {
    "training": training,
    "inference": inference,
    "layouts": layouts,
    "compile": compile_arms,
    "compiled": compiled,
    "rest": rest,
}
