"""Step 0: what the machine can do, and whether octvideo computes the same on it as on the CPU."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octvideo.models as models
from lab.benchmark.arms import Arm, arm_text, parse_arms
from lab.benchmark.machine import describe, peak_product, synchronize
from lab.benchmark.networks import build_network, set_weights, smooth_clips
from lab.gpu_report.work import Work
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.inference import Predictor
from octvideo.inference.engines import build_engine
from octvideo.octave import fuse_training
from octvideo.training.module import VideoClassifier
from octvideo.video import ViewSettings

_ROOT = Path(__file__).resolve().parents[3]
_GPU_TEST = re.compile(r"^(@|.*marks=.*)pytest\.mark\.gpu", re.MULTILINE)

# Each residual branch ends with one, in pytorchvideo and torchvision. Near zero, they let errors grow less on the way.
_LAST_NORMS = ("norm_c", "bn3")

_COMPARED = ("training", "gradients", "fused training", "fused gradients", "engine")

# ‖a − b‖ / ‖b‖ that rounding explains. Gradients jump where the input of a ReLU or of a max pool changes its sign or
# order, and few values of small maps have a large share in them.
_TOLERANCE = {("f32", "logits"): 1e-4, ("f32", "gradients"): 1e-2, ("bf16", "logits"): 0.05, ("bf16", "gradients"): 0.3}


def machine(work: Work) -> None:
    """Versions, the bandwidth of copies and the rate of products."""
    device = work.device
    facts = describe(device)
    for name in ("triton", "lightning", "pytorchvideo", "torchvision", "av", "decord"):
        facts[name] = _version(name)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts["gpu memory"] = f"{found.total_memory / 2**30:.0f} GiB"
        facts["multiprocessors"], facts["capability"] = str(found.multi_processor_count), f"{found.major}.{found.minor}"
        facts["TF32 in convolutions"] = str(torch.backends.cudnn.allow_tf32)
    work.say("versions", header=("", ""), rows=list(facts.items()), data=facts)
    rate = _copy_rate(2**22 if work.settings.tiny else 2**30, device)
    work.say("copy", f"copies: {rate / 1e12:.3g} TB/s, read and written", data={"bytes_per_second": rate})
    for precision in ("bf16", "f32"):
        if work.settings.tiny and precision == "bf16":
            continue  # CPUs without units for it take long
        product = peak_product(precision, device)
        rate = 2 * product.multiply_adds / _best_seconds(product.once, device)
        text = f"products, {precision}: {rate / 1e12:.4g} TFLOP/s ({product.text})"
        work.say(f"product {precision}", text, data={"flops_per_second": rate})


def _copy_rate(elements: int, device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source, target = torch.rand(2, elements, device=device)
    return 2 * source.element_size() * elements / _best_seconds(lambda: target.copy_(source), device)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not there"


def _best_seconds(call: Callable[[], object], device: torch.device, times: int = 10) -> float:
    taken = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


# ── networks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def checked_arms(*, tiny: bool) -> list[Arm]:
    """One of each builder of octvideo.models, and forms that these do not have."""
    if tiny:
        return parse_arms(["i3d_small:alpha=.25/0,width=8"], classes=5, crop=64, frames=8, batch=2)
    others = [name for name in models.__all__ if name not in ("frame_network", "video_network")]
    small_first = sorted(others, key=lambda name: not name.endswith("_small"))
    texts = [f"{name}:alpha=.25,frames={32 if name.startswith('slowfast') else 8}" for name in small_first]
    texts[1:1] = ["i3d_small:alpha=.25,factor=2x2x2", "i3d_small:alpha=0", "i3d_small:alpha=.1,channel_multiple=8"]
    texts += ["torchvision:resnet50:alpha=.25", "pytorchvideo:x3d_s:alpha=.25,frames=13,crop=160"]
    return parse_arms(texts, classes=10, crop=64, frames=8, batch=2)


def networks(work: Work) -> None:
    """A training step and an engine of each network on the device, against float32 on the CPU."""
    rows: list[list[str]] = []
    data = {}
    header = ("network", *(f"{p} {what}" for p in ("f32", "bf16") for what in _COMPARED), "")
    wrong = []
    with _exact_float32():
        for arm in checked_arms(tiny=work.settings.tiny):
            text = arm_text(arm)
            if work.left < 5:
                rows.append([text, *[""] * 2 * len(_COMPARED), "no time left"])
                continue
            try:
                errors = compare_network(arm, work.device)
            except (RuntimeError, UserError, ImportError, TypeError, ValueError) as error:
                rows.append([text, *[""] * 2 * len(_COMPARED), f"{type(error).__name__}: {one_line(error)}"])
                wrong.append(text)
                if "CUDA error" in str(error):  # nothing more can be checked by this process
                    break
                continue
            finally:
                work.say("networks", header=header, rows=rows)
            large = [name for name, error in errors.items() if not error <= _TOLERANCE[name[0], _kind(name[1])]]
            rows.append([text, *(f"{error:.1e}" for error in errors.values()), "DIFFERS" if large else "agrees"])
            wrong += [text] if large else []
            data[text] = {" ".join(name): error for name, error in errors.items()}
            work.say("networks", header=header, rows=rows, data=data)
    tolerances = ", ".join(f"{' '.join(name)} {bound:g}" for name, bound in _TOLERANCE.items())
    work.say("what", f"‖a − b‖ / ‖b‖ against float32 on the CPU; expected at most: {tolerances}")
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} networks differ or fail: {', '.join(wrong)}")


def _kind(what: str) -> str:
    return "gradients" if "gradients" in what else "logits"


def compare_network(arm: Arm, device: torch.device) -> dict[tuple[str, str], float]:
    """Relative errors of a network on a device.

    Args:
        arm: whose network and clip it is.
        device: to compare with the CPU in float32.

    Returns:
        By precision and what (`_COMPARED`): logits in training mode and all gradients, as built and with fused norms;
        logits of the engine "eager".
    """
    torch.manual_seed(0)
    network = build_network(arm)
    clips = smooth_clips(arm.clip_shape, seed=3)
    set_weights(network, [clips])
    for name, module in network.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if name.endswith(_LAST_NORMS):
            nn.init.constant_(module.weight, 0.1)  # type: ignore[arg-type]
        if ".nonlocal_blocks." in name and name.endswith(".norm"):  # of what attention leaves, which is near constant
            nn.init.constant_(module.weight, 0.01)  # type: ignore[arg-type]
    pixels = (127 + 60 * clips).clamp(0, 255).to(torch.uint8)
    expected = _trained(network, pixels, torch.device("cpu"))
    with torch.no_grad():
        scores = copy.deepcopy(network).eval()(clips)
    errors = {}
    for precision in ("f32", "bf16"):
        for whats, fuse in ((_COMPARED[:2], False), (_COMPARED[2:4], True)):
            found = _trained(network, pixels, device, bf16=precision == "bf16", channels_last=True, fuse=fuse)
            for what, value, wanted in zip(whats, found, expected, strict=True):
                errors[precision, what] = _relative(value, wanted)
        engine = build_engine("eager", network, example_shape=tuple(clips.shape), precision=precision, device=device)
        errors[precision, "engine"] = _relative(engine(clips).cpu(), scores)
    return errors


def _trained(
    network: nn.Module,
    pixels: Tensor,
    device: torch.device,
    *,
    bf16: bool = False,
    channels_last: bool = False,
    fuse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and all gradients in a row, on the CPU, of a copy of a network, as training has them."""
    module = VideoClassifier(copy.deepcopy(network), channels_last=channels_last).to(device).train()
    if fuse:
        fuse_training(module.network)
    pixels = pixels.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = module(pixels)
        loss = F.cross_entropy(logits, torch.arange(len(pixels), device=device) % logits.shape[1])
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in module.network.parameters() if parameter.grad is not None]
    return logits.detach().cpu(), torch.cat([gradient.flatten().float().cpu() for gradient in gradients])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _exact_float32() -> Iterator[None]:
    """float32 without TF32, for a while."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# ── kernels' tests ────────────────────────────────────────────────────────────────────────────────────────────────────


def tests(work: Work) -> None:
    """The tests that need a GPU, in a process that may take as long as there is time."""
    if work.device.type != "cuda" and not work.settings.tests:
        work.say("tests", "not run: there is no CUDA device")
        return
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rfE", "-p", "no:cacheprovider", "--tb=short"]
    words += work.settings.tests or files_with_gpu_tests()
    log, environment = Path(work.settings.folder).resolve() / "tests.txt", {**os.environ, "PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as file:
        running = subprocess.Popen(
            words, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = running.wait(timeout=max(1.0, work.left - 2))
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            code = None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    last = lines[-1].strip("= ") if lines else "pytest said nothing"
    said = f"stopped for want of time, after: {last}" if code is None else last
    work.say("tests", "\n".join([f"{said} (tests.txt)", *(f"- `{line}`" for line in failed)]), data={"code": code})
    if code not in (0, 5):  # 5: none has the marker
        raise RuntimeError(said)


def files_with_gpu_tests() -> list[str]:
    """Collecting all others takes half a minute."""
    files = sorted((_ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if _GPU_TEST.search(file.read_text(encoding="utf-8"))]


# ── a video ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def predictor(work: Work) -> None:
    """Scores of one video by device names and precisions, against the CPU's."""
    # Here, since it needs PyAV, which other steps do not.
    from octvideo.data.synthetic import CLASS_NAMES, DemoSettings, frames_of, write_video

    with tempfile.TemporaryDirectory(prefix="octvideo-video-") as folder:
        video = Path(folder) / "video.mp4"
        write_video(frames_of(DemoSettings(), "test", "move_left", 0), video)
        torch.manual_seed(0)
        [arm] = parse_arms(["i3d_small:alpha=.25"], classes=len(CLASS_NAMES), frames=8, crop=64)
        network = set_weights(build_network(arm), [smooth_clips((2, *arm.clip_shape[1:]), seed=1)])
        views = ViewSettings(clip_frames=8, frame_stride=2, num_clips=4, num_crops=3, short_side_px=72, crop_px=64)

        def scores(device: str, precision: str) -> Tensor:
            made = Predictor(network, CLASS_NAMES, views=views, device=device, precision=precision)
            return made.scores(video)

        expected = scores("cpu", "f32")
        names = ["auto", "cpu"] if work.device.type == "cpu" else ["auto", "cuda", "cuda:0", str(work.device)]
        rows, wrong = [], []
        for name in dict.fromkeys(names):
            for precision in ("f32", "bf16"):
                try:
                    error = float((scores(name, precision) - expected).abs().max())
                except (RuntimeError, UserError) as raised:
                    said = f"{type(raised).__name__}: {one_line(raised)}"
                else:
                    agrees = error <= (1e-3 if precision == "f32" else 0.05)  # TF32 where torch has it
                    said = "agrees" if agrees else "DIFFERS"
                    said += f", largest difference {error:.1e}"
                wrong += [] if said.startswith("agrees") else [f"{name} {precision}"]
                rows.append((name, precision, said))
                work.say("scores", header=("device", "precision", "scores"), rows=rows)
        try:
            scores("cuda:99", "f32")
            said = "no error"
            wrong.append("cuda:99")
        except UserError as error:
            said = f"error: {error}"
        work.say("no such device", f"`cuda:99` → {said}")
    if wrong:
        raise RuntimeError(f"wrong: {', '.join(wrong)}")


CHECKS: dict[str, Callable[[Work], Any]] = {
    "machine": machine,
    "networks": networks,
    "tests": tests,
    "predictor": predictor,
}
