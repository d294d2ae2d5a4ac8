"""Steps 1 to 6: arms in turns, measured as they are built; where their time goes; the same compiled."""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octvideo.octave as octave
from lab.benchmark.arms import Arm, arm_text, parse_arms
from lab.benchmark.calls import Call
from lab.benchmark.measure import build_calls, run_pass
from lab.benchmark.networks import WeightStore, count
from lab.benchmark.results import ArmResult, Pass, Run, spread, summarise
from lab.gpu_report.kernels import by_kind, profiled
from lab.gpu_report.work import Work
from octvideo.errors import UserError
from octvideo.octave.kernel import layout
from octvideo.progress import Progress

_ALPHAS = "alpha=0/.25/.5/.1", "alpha=.1,channel_multiple=8"
_ROUNDS, _ROUNDS_AS_BUILT = 10, 3
_KERNELS_SHOWN = 15


@dataclass(frozen=True)
class Variant:
    """An arm, and the state of torch that it runs in.

    Args:
        arm: which network runs how.
        note: what else is special, for its label.
        within: entered around each call, and while it is built.
        change: made to its network before anything else.
    """

    arm: Arm
    note: str = ""
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    change: Callable[[nn.Module], object] | None = None

    @property
    def label(self) -> str:
        """α and what is special."""
        multiple = dict(self.arm.octave).get("channel_multiple")
        parts = [f"α {self.arm.alpha:g}", f"multiple {multiple}" if multiple else "", self.note]
        return " ".join(filter(None, parts))


class _Changed(WeightStore):
    def __init__(self, change: Callable[[nn.Module], object] | None) -> None:
        super().__init__(as_built=True)  # neither time nor bytes depend on what is learnt
        self._change = change

    def network(self, arm: Arm) -> nn.Module:
        network = super().network(arm)
        if self._change is not None:
            self._change(network)
        return network


def training_arms(work: Work, **changes: Any) -> list[Arm]:
    """The five of step 1, at the batch that fits in memory."""
    own: dict[str, Any] = {"mode": "training", "precision": "bf16", "optimizer": "sgd", "layout": "channels_last"}
    name, alphas = ("i3d_r50", _ALPHAS) if not work.settings.tiny else ("i3d_small:width=8", ("alpha=0/.25",))
    separator = "," if ":" in name else ":"
    return parse_arms([f"{name}{separator}{text}" for text in alphas], **own | _size(work, batch=32) | changes)


def inference_arms(work: Work, **changes: Any) -> list[Arm]:
    """Prepared networks on 30 views of 256 pixels, and first the ordinary one as it is."""
    own: dict[str, Any] = {"precision": "bf16", "layout": "channels_last"}
    name, alphas = ("i3d_r50", _ALPHAS) if not work.settings.tiny else ("i3d_small:width=8", ("alpha=0/.25",))
    separator = "," if ":" in name else ":"
    return parse_arms(
        [f"{name}{separator}{text}" for text in alphas], **own | _size(work, batch=30, crop=256) | changes
    )


def _size(work: Work, *, batch: int, crop: int = 224) -> dict[str, int]:
    if work.settings.tiny:
        return {"batch": 2, "crop": 32, "frames": 4, "classes": 5}
    return {"batch": batch, "crop": crop}


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(work: Work, key: str, variants: Sequence[Variant], *, rounds: int = _ROUNDS) -> dict[str, Call]:
    """Builds variants one by one, and measures all there are in turns after each; the table is said each time.

    Where memory is short, all begin anew with half the batch.

    Args:
        work: gets the table by `key`.
        variants: the first that is ordinary is what the others are compared with.
        rounds: once all are built.

    Returns:
        The calls, by label.

    Raises:
        UserError: none of them runs.
    """
    batch = variants[0].arm.batch
    while True:
        try:
            return _measure_at(work, key, [replace(v, arm=replace(v.arm, batch=batch)) for v in variants], rounds)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
        gc.collect()
        if work.device.type == "cuda":
            torch.cuda.empty_cache()
        work.say(f"{key} memory", f"out of memory with {2 * batch} clips: what follows has {batch}")


def _measure_at(work: Work, key: str, variants: Sequence[Variant], rounds: int) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    arms = {variant.label: variant.arm for variant in variants}
    within = {variant.label: variant.within for variant in variants}
    results = []
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
            results.append(ArmResult(variant.label, variant.arm, **_counts(variant.arm), memory=memory))
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


def _counts(arm: Arm) -> dict[str, int]:
    """Of one clip, since that does not depend on the layout and the engine, times the batch."""
    found = _counts_of_clip(replace(arm, batch=1, layout="auto", engine="eager"))
    return {**found, **{name: found[name] * arm.batch for name in ("multiply_adds", "traffic")}}


@functools.cache
def _counts_of_clip(arm: Arm) -> dict[str, int]:
    return vars(count(arm))


def _say_times(work: Work, key: str, results: list[ArmResult], found: Pass, left_out: Mapping[str, str]) -> None:
    header = ["arm", "ms (quartiles)", "clips/s", "to ordinary (quartiles)", "FLOP ratio", "ms between events"]
    header += ["peak GB", "predicted ratio", "predicted ms"]
    reference = next((result.label for result in results if result.arm.is_ordinary), results[0].label)
    run = Run({}, "", results, [found], reference)
    predictions = _predictions(work)
    rows, data = [], []
    for row in summarise(run, found):
        own, clocks = row.result, found.seconds[row.result.label]
        ratio = row.to_twin or (None if own.label == reference else _ratio(found, own.label, reference))
        memory = None if own.memory is None else own.memory.peak
        told = predictions.get(_prediction_key(own.arm))
        ordinary = predictions.get(_prediction_key(replace(own.arm, alpha=0.0, octave=())))
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
    text = (
        f"`{arm_text(results[0].arm)}`; {found.rounds} rounds in turns of {len(results)} arms; ratios of the same round"
    )
    work.say(key, f"{text} to {reference}", header=header, rows=rows, data=data)


def _ratio(found: Pass, label: str, reference: str) -> Any:
    from lab.benchmark.results import ratios

    return spread(ratios(found.seconds[label][found.clock], found.seconds[reference][found.clock]))


# ── predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _prediction_key(arm: Arm) -> tuple[Any, ...]:
    work = "training" if arm.mode == "training" else "inference" if arm.engine == "plain" else "prepared"
    way = "fused" if arm.engine == "compile" else "eager"
    multiple = dict(arm.octave).get("channel_multiple", 1)
    return arm.network, arm.alpha, multiple, work, way, arm.clip_shape, arm.precision


def _predictions(work: Work) -> dict[tuple[Any, ...], float]:
    """Milliseconds of what tools/roofline.py --json predicts."""
    if not work.settings.roofline:
        return {}
    found = {}
    for row in json.loads(Path(work.settings.roofline).read_text(encoding="utf-8"))["rows"]:
        key = (row["network"], row["alpha"], row["channel_multiple"], row["work"], row["way"])
        found[(*key, tuple(row["clip_shape"]), row["precision"])] = row["milliseconds"]
    return found


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def training(work: Work) -> None:
    """Step 1: five arms, and the profile of each."""
    arms = training_arms(work)
    calls = measure(work, "times", [Variant(arm) for arm in arms])
    for label, call in sorted(calls.items(), key=lambda item: "0.25" not in item[0] and item[0] != "α 0"):
        if work.left < 5:
            work.say("profiles", "no time left for more profiles")
            break
        _say_profile(work, label, call)


def _say_profile(work: Work, label: str, call: Call) -> None:
    kernels = profiled(call.once, work.device)
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


def compile_arms(work: Work) -> None:
    """Step 4: a process for each arm, all at once, which fill one cache."""
    arms = training_arms(work, engine="compile")
    folder = Path(work.settings.cache)
    threads = str(max(1, (os.cpu_count() or 1) // len(arms)))
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": threads, "OMP_NUM_THREADS": threads}
    words = [sys.executable, "-m", "lab.gpu_report.worker", "compile"]
    started = time.monotonic()
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    rows = {Variant(arm).label: "begun" for arm in arms}
    for number, arm in enumerate(arms):
        log = folder / f"compile_{number}.txt"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [*words, json.dumps(arm.to_dict()), work.settings.to_json()], env=environment, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip
        running[Variant(arm).label] = process, log
    failed = []
    while running:
        for label, (process, log) in list(running.items()):
            if (code := process.poll()) is None:
                continue
            del running[label]
            rows[label] = f"{time.monotonic() - started:.0f} s" if code == 0 else f"failed: {_last_line(log)}"
            failed += [label] if code else []
            _mark_compiled(folder, label, code == 0)
            work.say("arms", header=("arm", "compiled after"), rows=list(rows.items()))
        if running and work.left < 3:
            for label, (process, _) in running.items():
                process.kill()
                process.wait()
                rows[label] = "stopped for want of time"
            work.say("arms", header=("arm", "compiled after"), rows=list(rows.items()))
            break
        time.sleep(0.05)
    if failed:
        raise UserError(f"not compiled: {', '.join(failed)}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _mark_compiled(folder: Path, label: str, good: bool) -> None:
    if good:
        with (folder / "compiled.txt").open("a", encoding="utf-8") as file:
            file.write(f"{label}\n")


def compiled(work: Work) -> None:
    """Step 5: the arms that are in the cache, in turns."""
    marks = Path(work.settings.cache) / "compiled.txt"
    there = marks.read_text(encoding="utf-8").splitlines() if marks.exists() else []
    variants = [Variant(arm) for arm in training_arms(work, engine="compile") if Variant(arm).label in there]
    if not variants:
        raise UserError("no arm has been compiled")
    calls = measure(work, "times", variants)
    for label in [label for label in calls if label in ("α 0", "α 0.25")]:
        if work.left > 5:
            _say_profile(work, label, calls[label])


def rest(work: Work) -> None:
    """Step 6: what else may pay, the cheapest first."""
    arms = [arm for arm in training_arms(work) if arm.alpha in (0, 0.25)]
    [quarter] = [arm for arm in arms if arm.alpha == 0.25]
    forms = [Variant(arms[0]), Variant(quarter, "forms as usual"), *_without_forms(quarter)]
    measure(work, "forms", forms)
    if work.left > 15 and work.device.type == "cuda":
        searched = [Variant(arm, "cudnn.benchmark", within=_cudnn_searches) for arm in arms]
        measure(work, "cudnn.benchmark", [*map(Variant, arms), *searched])
    if work.left > 60 or work.settings.tiny:
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


def _without_forms(arm: Arm) -> list[Variant]:
    """The forms for CUDA on and off, as far as octvideo has them."""
    found = []
    fuse: Any = getattr(octave, "fuse_training", None)
    forms_of: Any = getattr(layout, "forms_of", None)
    if fuse is not None:
        found.append(Variant(arm, "norms fused", change=fuse))
    if forms_of is not None:
        unfuse: Any = getattr(octave, "unfuse", None)
        found.append(Variant(arm, "without forms for CUDA", within=lambda: forms_of("none"), change=unfuse))
    return found


MEASUREMENTS: dict[str, Callable[[Work], None]] = {
    "training": training,
    "inference": inference,
    "layouts": layouts,
    "compile": compile_arms,
    "compiled": compiled,
    "rest": rest,
}
