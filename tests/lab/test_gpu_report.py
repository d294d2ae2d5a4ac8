"""tools/gpu_report.py without a GPU: its steps on tiny networks, and how it withstands what steps do."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.benchmark import measure
from lab.benchmark.arms import Arm
from lab.benchmark.calls import Call, make_call
from lab.gpu_report import checks, command, speed, worker
from lab.gpu_report.child import Child, EndedError
from lab.gpu_report.command import STEPS, main
from lab.gpu_report.kernels import Kernel
from lab.gpu_report.report import Report, read_records
from lab.gpu_report.work import NothingToDoError, Settings, Work
from lab.roofline import device as roofline
from lab.roofline import report as predictions
from octvideo.models import __all__ as builders

Records = dict[str, dict[str, Any]]  # by key


@pytest.fixture
def do(tmp_path: Path) -> Callable[..., Records]:
    """Does a step in this process on tiny networks on the CPU; returns its results."""

    def run(step: Callable[[Work], object], *, seconds: float = 100, **settings: Any) -> Records:
        found: Records = {}
        own = {"device": "cpu", "folder": str(tmp_path), "cache": str(tmp_path), "tiny": True, "backend": "eager"}
        step(Work(Settings(**own | settings), seconds, lambda record: found.update({record["key"]: record})))
        return found

    return run


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_networks_agree_with_themselves_and_one_that_is_wrong_is_told(
    do: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = do(checks.networks)["networks"]["rows"]
    assert [row[-1] for row in rows] == ["agrees", "agrees"] and len(rows[0]) == 12
    assert all(0 <= float(error) < 0.3 for row in rows for error in row[1:-1])
    monkeypatch.setattr(checks, "compare_network", lambda arm, device: {("f32", "training"): float(arm.alpha > 0)})
    found: Records = {}
    with pytest.raises(RuntimeError, match=r"1 of 2 networks differ or fail: i3d_small:alpha=0\.25"):
        found = do(checks.networks)
    assert not found


def test_every_builder_is_checked() -> None:
    checked = {arm.network for arm in checks.checked_arms(tiny=False)}
    assert set(builders) - checked == {"frame_network", "video_network"}
    assert {name.partition(":")[0] for name in checked if ":" in name} == {"torchvision", "pytorchvideo"}


@pytest.mark.slow
def test_a_wrong_network_has_a_large_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(checks.VideoClassifier):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            logits = super().forward(clips)
            return logits if not self.channels_last else logits * 1.01

    monkeypatch.setattr(checks, "VideoClassifier", Wrong)
    errors = checks.compare_network(checks.checked_arms(tiny=True)[0], torch.device("cpu"))
    assert errors["f32", "training"] == pytest.approx(0.01, rel=0.01) and errors["f32", "engine"] < 1e-4
    assert errors["f32", "gradients"] > 1e-3


def test_the_machine_and_a_video(do: Callable[..., Records]) -> None:
    found = do(checks.machine)
    assert ["torch", torch.__version__] in found["versions"]["rows"]
    assert found["copy"]["data"]["bytes_per_second"] > 1e8
    assert found["product f32"]["data"]["flops_per_second"] > 1e8
    scores = do(checks.predictor)
    assert [row[:2] for row in scores["scores"]["rows"]] == [
        ["auto", "f32"], ["auto", "bf16"], ["cpu", "f32"], ["cpu", "bf16"],
    ]  # fmt: skip
    assert all(row[2].startswith("agrees") for row in scores["scores"]["rows"])
    assert scores["no such device"]["text"].startswith("`cuda:99` → error: device 'cuda:99' can't be used here")


@pytest.mark.slow
def test_times_ratios_predictions_and_profiles_of_training(do: Callable[..., Records], tmp_path: Path) -> None:
    device = roofline.Device(bandwidth=1e9, half_rate=1, float_rate=1, launch=0)
    for alpha, forms, milliseconds in ((0.0, "plain", 4), (0.25, "plain", 3), (0.25, "cuda", 2)):
        kernels = Counter({roofline.Kernel("copy", "copy", milliseconds * 10**6, "forward"): 1})
        ways: Any = ("training", "eager", forms)
        row = predictions.Row("i3d_small", predictions.Share(alpha), *ways, (2, 3, 4, 32, 32), "f32", kernels)
        predictions.save(tmp_path / f"{alpha} {forms}.json", [row], device, "")
    found = do(speed.training, roofline=tuple(map(str, tmp_path.glob("*.json"))))
    ordinary, octave, *fused = found["times"]["rows"]
    assert [row[0] for row in fused] == ["α 0.25 fused", "α 0 fused"] and fused[0][7:] == ["0.500", "2.00"]
    assert ordinary[0] == "α 0" and ordinary[3] == "" and octave[0] == "α 0.25"
    times = [arm["seconds"]["wall"] for arm in found["times"]["data"]]
    ratios = sorted(own / other for own, other in zip(times[1], times[0], strict=True))
    assert len(times[0]) == 2 and octave[3].startswith(f"{sum(ratios) / 2:.3f}")
    assert 0.5 < float(octave[4]) < 1 and octave[7:] == ["0.750", "3.00"]
    for label in ("α 0", "α 0.25"):
        kernels = found[f"profile {label}"]["data"]["kernels"]
        assert sum(count for _, kind, count, _ in kernels if kind == "convolution, product") > 20
        assert len(found[f"profile {label}"]["rows"]) == 15


@pytest.mark.slow
def test_inference_and_forms(do: Callable[..., Records]) -> None:
    rows = do(speed.inference)["times"]["rows"]
    assert [row[0] for row in rows] == ["α 0", "α 0.25", "α 0 not prepared"]
    found = do(speed.rest)
    rows = found["forms of training"]["rows"]
    assert [row[0] for row in rows] == ["α 0", "α 0.25", "α 0.25 without forms for CUDA"]
    rows = found["forms of inference"]["rows"]
    assert [row[0] for row in rows] == ["α 0", "α 0.25", *(f"α {a} prepared as for a CPU" for a in ("0", "0.25"))]
    assert all(float(row[2]) > 0 for row in rows)


@pytest.mark.slow
def test_where_memory_is_short_all_arms_begin_anew_with_half_the_batch(
    do: Callable[..., Records], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: list[tuple[float, int]] = []

    def make(arm: Arm, *args: Any, **kwargs: Any) -> Call:
        built.append((arm.alpha, arm.batch))
        if arm.batch > 1 and arm.alpha:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return Call(lambda: None)

    monkeypatch.setattr(measure, "make_call", make)
    found = do(speed.layouts)
    assert built[:4] == [(0, 2), (0.25, 2), (0, 1), (0.25, 1)]
    assert found["training memory"]["text"] == "out of memory with 2 clips: what follows has 1"
    layouts = [f"α {a} {of}" for of in ("channels_last", "contiguous") for a in ("0", "0.25")]
    assert [row[0] for row in found["training"]["rows"]] == layouts
    assert (tmp_path / "batch_training.txt").read_text() == "1"


@pytest.mark.slow
def test_an_arm_that_does_not_run_is_a_row_and_time_ends_a_step(
    do: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(arm: Arm, *args: Any, **kwargs: Any) -> Call:
        if arm.layout == "contiguous":
            raise RuntimeError("no kernel image")
        return make_call(arm, *args, **kwargs)

    monkeypatch.setattr(measure, "make_call", make)
    rows = do(speed.layouts)["inference"]["rows"]
    assert [row[:2] for row in rows[2:]] == [[f"α {a} contiguous", "no kernel image"] for a in ("0", "0.25")]
    assert [row[0] for row in do(speed.inference, seconds=2)["times"]["rows"]] == ["α 0"]  # which is always measured


TESTS = """
    import time
    import pytest

    @pytest.mark.gpu
    def test_good():
        pass

    @pytest.mark.gpu
    def test_other():
        {}
"""


@pytest.mark.parametrize(
    ("body", "seconds", "told"),
    [
        ("pass", 600, "2 passed"),
        ("assert False", 600, "1 failed, 1 passed"),
        ("time.sleep(60)", 3, "stopped for want of time, after: "),
    ],
)
@pytest.mark.slow
def test_the_tests_of_kernels(body: str, seconds: float, told: str, do: Callable[..., Records], tmp_path: Path) -> None:
    file = tmp_path / "test_kernels.py"
    file.write_text(textwrap.dedent(TESTS).format(body))
    if body == "pass":
        text = do(checks.tests, tests=(str(file),))["tests"]["text"]
        assert text.startswith(told) and "FAILED" not in text
        return
    with pytest.raises(RuntimeError, match=told):
        do(checks.tests, seconds=seconds, tests=(str(file),))
    if "failed" in told:
        assert "FAILED" in (tmp_path / "tests.txt").read_text()


# ── processes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


WORKER = """
    import os, signal, sys, time
    from lab.gpu_report.child import serve

    def answer(asked, send):
        step, end, said = asked["step"], "done", None
        send({"step": step, "key": "pid", "text": f"in {os.getpid()}", "data": os.getpid()})
        if step == "networks":
            end, said = "failed", "RuntimeError: two | three"
        elif step == "compiled":
            end, said = "skipped", "no arm has been compiled"
        elif step == "tests":
            print("a crash", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGSEGV)
        elif step == "predictor":
            time.sleep(60)
        elif step in os.environ.get("STOPS", ""):
            os.kill(os.getppid(), getattr(signal, os.environ["SIGNAL"]))
            time.sleep(60)
        send({"end": end, "said": said, "leaves": step == "inference"})
        return step != "inference"

    serve(answer)
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, list[dict[str, Any]]]]:
    """Runs the tool with a worker that does nothing but fail; returns exit code, page and records."""
    (tmp_path / "worker_for_tests.py").write_text(textwrap.dedent(WORKER))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(command, "WORKER", "worker_for_tests")

    def run(*words: str) -> tuple[int, str, list[dict[str, Any]]]:
        out = tmp_path / "out"
        code = main(["--device", "cpu", "--out", str(out), *words])
        return code, (out / "report.md").read_text(), read_records(out / "results.jsonl")

    return run


def test_steps_that_fail_crash_and_hang_are_lines_and_the_next_follow(
    report: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.STEPS, "predictor", command.Step("a video", 1, 0.5))
    code, page, records = report()
    said = {record["step"]: record for record in records if "state" in record}
    assert code == 1
    assert [said[name]["state"] for name in STEPS] == ["done", *["failed"] * 3, *["done"] * 4, "skipped", "done"]
    assert said["compiled"]["said"] == "no arm has been compiled"
    assert said["networks"]["said"] == "RuntimeError: two | three" and r"two \| three" in page
    assert said["tests"]["said"] == "its process ended with code -11: a crash"
    assert said["predictor"]["said"] == "ended after 0 s, all that it may take"
    pids = {record["step"]: record["data"] for record in records if record.get("key") == "pid"}
    # The process goes on where it can, and is another after a crash, a hang, and an end of its own.
    assert pids["machine"] == pids["networks"] == pids["tests"]
    assert len({pids[name] for name in ("tests", "predictor", "training", "layouts")}) == 4
    assert pids["training"] == pids["inference"] and pids["layouts"] == pids["rest"]
    assert page.count("\n## ") == len(STEPS) and f"in {pids['rest']}" in page


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:99", "auto", "meta"])
def test_a_device_that_is_not_here_is_told_before_any_step(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", name, "--out", str(tmp_path / "out")]) == 2
    assert f"--device: got '{name}', which can't be used here; expected cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert f"error: --out: can't write into {tmp_path / 'file'}: File exists" in capsys.readouterr().err
    if Path("/proc").is_dir():  # whose folders say that there is no such file
        assert main(["--device", "cpu", "--out", "/proc/x"]) == 2
        assert "error: --out: can't write into /proc/x: " in capsys.readouterr().err


def test_predictions_that_are_none_are_told_before_any_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    for name in ("missing.json", "other.json"):
        assert main(["--device", "cpu", "--out", str(tmp_path / "out"), "--roofline", str(tmp_path / name)]) == 2
        assert f"{name}, expected a file that tools/roofline.py --json wrote" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_run_keeps_what_the_first_one_measured(report: Callable[..., Any], tmp_path: Path) -> None:
    runs = {"0.2": "report.1.md", "0.1": "report.2.md", "0.15": "report.md"}
    for minutes in runs:
        report("--minutes", minutes)
    for minutes, page in runs.items():
        assert f"--minutes {minutes}`" in (tmp_path / "out" / page).read_text()
    assert len(read_records(tmp_path / "out" / "results.2.jsonl")) == len(STEPS)


def test_what_does_not_fit_is_skipped(report: Callable[..., Any]) -> None:
    code, page, records = report("--minutes", "0.2")
    assert code == 0 and {record["state"] for record in records} == {"skipped"}
    assert page.count("| skipped |  | 0 s are left, it needs ") == len(STEPS)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_report_holds_what_there_is(
    name: str,
    code: int,
    report: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STOPS", "training")
    monkeypatch.setenv("SIGNAL", name)
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells' background jobs ignore
    try:
        got, page, records = report("--steps", "machine", "training", "rest")
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert got == code and signal.getsignal(signal.SIGTERM) is before
    assert [(r["step"], r["state"]) for r in records if "state" in r] == [
        ("machine", "running"), ("machine", "done"), ("training", "running"), ("training", "stopped"),
    ]  # fmt: skip
    assert "| 5. training, eager, channels last | stopped |" in page and "cuDNN's search" in page
    assert "holds what there is" in capsys.readouterr().err


APART = """
    import json, os, sys
    from lab.gpu_report.child import serve

    alpha = json.loads(sys.argv[1])["alpha"]

    def ready():
        if alpha == 0.5:
            sys.exit("no compiler")

    def answer(asked, send):
        if asked["do"] == "turn":
            send({"seconds": {"wall": 0.25 if alpha else 0.5, "gpu": 0.2}, "memory": 3 * 10**9})
        else:
            send({"kernels": [{"name": "triton_poi_fused_add", "count": 3, "seconds": 0.1}]})
        return True

    serve(answer, ready)
"""


@pytest.mark.slow
def test_arms_compile_apart_and_take_turns(
    do: Callable[..., Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apart_for_tests.py").write_text(textwrap.dedent(APART))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(speed, "APART", "apart_for_tests")
    arms = [Arm("i3d_small", alpha, width=8, frames=4, crop=32, batch=2, mode="training") for alpha in (0, 0.125)]
    failing = Arm("i3d_small", 0.5, width=8, mode="training")
    monkeypatch.setattr(speed, "training_arms", lambda work, **_: [*arms, failing])
    with pytest.raises(speed.UserError, match=r"not compiled: α 0\.5"):
        do(speed.compile_arms, tiny=False)
    found = do(speed.compiled)
    assert [row[:5] for row in found["times"]["rows"]] == [
        ["α 0", "500.00 (500.00–500.00)", "4", "", ""],
        ["α 0.125", "250.00 (250.00–250.00)", "8", "0.500 (0.500–0.500)", found["times"]["rows"][1][4]],
    ]
    assert found["times"]["rows"][0][5:7] == ["200.00", "3.00"]
    assert found["profile α 0"]["text"].startswith("**α 0**: 3 kernels, 100.00 ms; by kind, ms (kernels): element by")
    with pytest.raises(NothingToDoError, match="no arm has been compiled"):
        do(speed.compiled)


@pytest.mark.parametrize("step", ["compiled", "networks"])
def test_a_worker_skips_what_has_nothing_to_do_and_fails_at_all_else(
    step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(work: Work) -> None:
        raise ValueError("no\nnetwork")

    monkeypatch.setitem(worker.CHECKS, "networks", broken)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "serve", lambda answer: answer({"step": step, "seconds": 9}, sent.append))
    worker.main(Settings("cpu", str(tmp_path), str(tmp_path), tiny=True))
    ends = {"compiled": ("skipped", "no arm has been compiled"), "networks": ("failed", "ValueError: no")}
    assert [(message["end"], message["said"]) for message in sent] == [ends[step]]


def test_a_child_answers_and_its_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child_for_tests.py").write_text(
        "import sys\nfrom lab.gpu_report.child import serve\n"
        "def answer(asked, send):\n    print('a library')\n    send(asked)\n    return asked['n'] < 2\n"
        "serve(answer)\nprint('the end', file=sys.stderr)\nsys.exit(4)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    child = Child("child_for_tests", [], tmp_path / "log.txt")
    child.tell({"n": 1})
    assert child.hear(60) == {"n": 1}
    with pytest.raises(TimeoutError):
        child.hear(0)
    child.tell({"n": 2})
    assert child.hear(60) == {"n": 2}
    for _ in range(2):
        with pytest.raises(EndedError, match="its process ended with code 4: the end"):
            child.hear(60)
    child.close()


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_whole_after_every_record(tmp_path: Path) -> None:
    report = Report(tmp_path, {"a": "first", "b": "second"}, "head")
    page = tmp_path / "report.md"
    assert "| 1. first | not begun |" in page.read_text()
    report.add({"step": "b", "key": "k", "text": "old"})
    report.add({"step": "b", "key": "k", "header": ["x", "y"], "rows": [["1", "2 | 3"]], "data": [float("nan")]})
    report.add({"step": "b", "state": "done", "seconds": 2.6})
    text = page.read_text()
    assert "old" not in text and "## 2. second\n\n| x | y |\n| --- | ---: |\n| 1 | 2 \\| 3 |\n" in text
    assert "| 2. second | done | 3 |  |" in text and "## 1." not in text
    assert [record.get("data") for record in read_records(tmp_path / "results.jsonl")] == [None, [None], None]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution, product"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, float>", "layout and copies"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NHWC<float>", "norm"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNN", "convolution, product"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "element by element"),
        ("void at::native::(anonymous namespace)::avg_pool3d_cuda_update_output<c10::BFloat16>", "pooling"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::ListMetadata>", "optimizer"),
        ("triton_poi_fused__native_batch_norm_legit_functional_relu_3", "norm"),
        ("_finish_sums", "norm"),
        ("triton_per_fused_sum_1", "sum"),
        ("Memcpy DtoD (Device -> Device)", "layout and copies"),
        ("aten::mkldnn_convolution", "convolution, product"),
        ("something_new", "other"),
    ],
)  # fmt: skip
def test_kinds_of_kernels(name: str, kind: str) -> None:
    assert Kernel(name, 1, 1.0).kind == kind
    assert len(Kernel(name, 1, 1.0).short_name) <= 70


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_report(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    records = read_records(tmp_path / "results.jsonl")
    states = {record["step"]: record["state"] for record in records if "state" in record}
    assert states == dict.fromkeys(STEPS, "done")
    assert {"compiled", "compile", "rest"} <= {record["step"] for record in records if "rows" in record}
    assert (tmp_path / "report.md").read_text().count("\n## ") == len(STEPS)
