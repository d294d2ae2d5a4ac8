"""Exported models: whole folders, the scores of the network they were made from, and programs that need no octvideo."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from octvideo import inference
from octvideo.cli import export, main
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.inference import Predictor
from octvideo.inference.engine import EngineEntry, ModelSpec, Run
from octvideo.inference.engines import ENGINES, file_engines
from octvideo.inference.export import write_export
from octvideo.models.layers import LEAVES
from octvideo.models.video import SlowFastPlan
from octvideo.octave import OctConv3d, octavize
from octvideo.video import ViewSettings, read_views

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NAMES = ["left", "right", "up"]
QUICK = [name for name in file_engines() if name != "aot"]


class Head(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4))


def tiny_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(3, 8, 3, 2, 1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 3, 1), Head()).eval()


def write(folder: Path, engine: str, **options: object) -> None:
    arguments: dict = {"precision": "f32", "views_per_call": 4, "say": lambda text: None, **options}
    write_export(
        arguments.pop("network", None) or tiny_network(),
        folder,
        engine=engine,
        class_names=NAMES,
        views=VIEWS,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.1, 0.3),
        source="a test",
        device=torch.device("cpu"),
        **arguments,
    )


@pytest.fixture(scope="module", params=[*QUICK, pytest.param("aot", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    write(folder, request.param)
    return folder


@pytest.fixture
def video(tmp_path: Path, encode: object, moving: object) -> Path:
    return encode(tmp_path / "moving.mp4", moving(30, 46, 62), crf=10)  # type: ignore[operator]


def eager() -> Predictor:
    return Predictor(tiny_network(), NAMES, views=VIEWS, mean=(0.4, 0.5, 0.6), std=(0.2, 0.1, 0.3), device="cpu")


def test_an_exported_model_gives_the_networks_scores(exported: Path, video: Path) -> None:
    predictor = Predictor.from_export(exported)
    torch.testing.assert_close(predictor.scores(video), eager().scores(video), atol=1e-5, rtol=0)
    assert (predictor.class_names, predictor.views, predictor.mean) == (NAMES, VIEWS, (0.4, 0.5, 0.6))
    assert predictor.source == f"a test ({exported})" and predictor.engine.name == exported.name


def test_octvideo_json_says_what_it_was_made_from(exported: Path) -> None:
    settings = json.loads((exported / "octvideo.json").read_text())
    assert settings["input_shape"] == [4, 3, 4, 32, 32]
    assert settings["versions"]["torch"] == torch.__version__.split("+")[0]
    assert settings["check"]["max_score_difference"] < 1e-5 and settings["check"]["clips"] == 4


def test_the_program_beside_it_needs_no_octvideo(exported: Path, video: Path) -> None:
    """Run elsewhere, where importing octvideo, decord or (if the engine has no need of it) torch would fail."""
    blocked = ["octvideo", "decord", "torchvision", *([] if ENGINES[exported.name].library == "torch" else ["torch"])]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked})); sys.argv[0] = 'classify.py'; "
    code += f"runpy.run_path({str(exported / 'classify.py')!r}, run_name='__main__')"
    words = [sys.executable, "-c", code, "classify.py", str(video), "nope.mp4", "--json", "--threads", "1"]
    words.remove("classify.py")
    done = subprocess.run(words, cwd=exported.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().endswith("error: cannot read video 'nope.mp4': no such file")  # torch warns, too
    content = json.loads(done.stdout)
    got = {one["name"]: one["score"] for one in content["videos"][0]["top"]}
    expected = eager().scores(video)
    # Resized pixels may differ by one level of 256 (sums in float32 there, in 16-bit whole numbers in torch).
    np.testing.assert_allclose([got[name] for name in NAMES], expected, atol=2e-3)
    assert next(iter(got)) == NAMES[int(expected.argmax())]


def write_toy(network: nn.Module, file: Path, spec: ModelSpec) -> None:
    file.write_text(f"mean of {spec.shape[1]} channels")


def load_toy(file: str, precision: str, device: str, threads: int) -> tuple[Run, str]:
    import numpy as np

    with open(file) as content:  # noqa: PTH123 (a path as text)
        assert content.read() == "mean of 3 channels"
    return lambda clips: np.asarray(clips).mean((2, 3, 4)), precision


def test_an_engine_is_added_by_one_entry(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predictor, export, the program beside the model, and the help texts know it by the table alone."""
    toy = EngineEntry("toy", ("f32",), devices=("cpu",), files=("model.toy",), write=write_toy, load=load_toy)
    monkeypatch.setitem(ENGINES, "toy", toy)
    expected = Predictor(Head(), NAMES, views=VIEWS, device="cpu").scores(video)
    predictor = Predictor(Head(), NAMES, views=VIEWS, engine="toy")
    assert predictor.engine.name == "toy" and predictor.device.type == "cpu"
    torch.testing.assert_close(predictor.scores(video), expected, atol=1e-6, rtol=0)
    write(tmp_path / "model", "toy", network=Head())
    names = ["classify.py", "engine.py", "model.toy", "octvideo.json"]
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == names
    assert Predictor.from_export(tmp_path / "model").engine.name == "toy"
    words = [sys.executable, "classify.py", str(video), "--json"]
    done = subprocess.run(words, cwd=tmp_path / "model", capture_output=True, text=True, timeout=120, check=True)
    assert [one["name"] for one in json.loads(done.stdout)["videos"][0]["top"]] != []
    for words in (["infer", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "toy" in capsys.readouterr().out


def test_the_program_says_which_library_is_missing(exported: Path) -> None:
    library = ENGINES[exported.name].library
    code = f"import sys, runpy; sys.modules[{library!r}] = None; sys.argv[1:] = ['x.mp4']; "
    code += "runpy.run_path('classify.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: this model needs {library} (" in done.stderr and f"pip install {library}" in done.stderr


@pytest.fixture(scope="module")
def program() -> dict:
    """What classify.py defines."""
    import runpy

    return runpy.run_path(str(Path(inference.__file__).parent / "standalone" / "classify.py"))


@pytest.mark.parametrize(
    ("size", "frames", "settings"),
    [
        ((46, 62), 30, VIEWS),
        ((62, 46), 9, VIEWS),  # upright, shorter than two clips
        ((90, 64), 5, ViewSettings(4, 3, 1, 1, 40, 32, short_video="loop")),
        ((20, 28), 24, ViewSettings(2, 5, 4, 3, 48, 48)),  # enlarged
        ((46, 62), 30, ViewSettings(4, 2, 3, 1, 40, 32, target_fps=13)),  # by time
    ],
)
def test_the_program_cuts_the_same_views(
    size: tuple[int, int], frames: int, settings: ViewSettings, program: dict, tmp_path: Path, encode, moving
) -> None:
    video = encode(tmp_path / "v.mp4", moving(frames, *size))
    ours = read_views(video, settings).numpy().astype(int)
    theirs = np.stack(list(program["cut_views"](str(video), settings.as_dict()))).astype(int)
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() <= 1
    assert (theirs != ours).mean() < 0.02


def test_serving_imports_no_training_libraries(tmp_path: Path, video: Path) -> None:
    write(tmp_path / "model", "openvino")
    blocked = ["lightning", "pytorch_lightning", "pytorchvideo", "torchmetrics", "torchvision", "fvcore", "matplotlib"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from octvideo.cli import main\n"
        f"sys.exit(main(['infer', {str(video)!r}, '--model', {str(tmp_path / 'model')!r}, '--json', '--threads', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    top = json.loads(done.stdout)["videos"][0]["top"]
    assert sorted(one["name"] for one in top) == NAMES


def test_int8_is_quantised_on_the_clips_given(tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = eager().normalise(read_views(video, VIEWS))
    write(tmp_path / "model", "openvino", precision="int8", calibration=clips, check_clips=clips)
    assert not capsys.readouterr().out  # progress is no result
    predictor = Predictor.from_export(tmp_path / "model")
    assert predictor.engine.precision == "int8"
    assert "FakeQuantize" in (tmp_path / "model" / "model.xml").read_text()
    torch.testing.assert_close(predictor.scores(video), eager().scores(video), atol=0.02, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_network_that_is_not_finite_is_not_exported(tmp_path: Path, value: float) -> None:
    network = tiny_network()
    network[3].bias.data[0] = value  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"model\.onnx: logits of the network are not finite in f32; not to be used"):
        write(tmp_path, "onnx", network=network)
    assert not (tmp_path / "octvideo.json").exists()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_the_program_names_no_action_by_scores_that_are_not_finite(program: dict, video: Path, value: float) -> None:
    settings = {"input_shape": [2, 3, 4, 32, 32], "views": VIEWS.as_dict(), "mean": [0.4] * 3, "std": [0.2] * 3}
    with pytest.raises(ValueError, match="its scores are not finite"):
        program["video_scores"](str(video), settings, lambda clips: np.array([[0.0, value]] * 2))


def test_mistakes_with_a_model_folder(tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "model", "onnx")
    with pytest.raises(UserError, match=r"already holds a model: add --overwrite"):
        write(tmp_path / "model", "onnx")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files: give another folder"):
        write(tmp_path / "full", "onnx", overwrite=True)
    with pytest.raises(UserError, match=r"expected one with model files: aot"):
        write(tmp_path / "new", "eager")

    def infer(*words: object) -> str:
        assert main(["infer", str(video), *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "no exported model in" in infer("--model", tmp_path)
    assert "--engine onnx with --model: an exported model has its own" in infer(
        "--model", tmp_path / "model", "--engine", "onnx"
    )
    assert "export once with octvideo export" in infer("--engine", "openvino", "--precision", "int8")
    broken = shutil.copytree(tmp_path / "model", tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a model")
    assert "ONNX Runtime can't load" in infer("--model", broken)
    (broken / "model.onnx").unlink()
    assert "is not whole: model.onnx is missing" in infer("--model", broken)
    (broken / "octvideo.json").write_text('{"format": 9}')
    assert "has format 9, this octvideo reads 1" in infer("--model", broken)


def test_the_command_exports_a_checkpoint(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"class_names": NAMES, "views": VIEWS, "mean": (0.4,) * 3, "std": (0.2,) * 3, "source": "my.ckpt"}
    monkeypatch.setattr(export, "network_of_checkpoint", lambda path: (tiny_network(), dict(settings)))
    words = ["--ckpt", "my.ckpt", "--engine", "onnx", "-o", str(tmp_path / "out"), "--calibrate", str(video)]
    assert main(["export", *words]) == 0
    out = capsys.readouterr().out
    assert "onnx f32" in out and "checked on 6 clips" in out and "6 view(s) per call of 3 x 4 x 32 x 32" in out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "classify.py", "engine.py", "model.onnx", "octvideo.json"
    ]  # fmt: skip
    assert main(["export", *words[:2], "--engine", "openvino", "--precision", "int8", "-o", "x"]) == 2
    assert "--calibrate VIDEO|FOLDER" in capsys.readouterr().err
    assert main(["export", "--engine", "auto", "-o", "x"]) == 2
    assert "--engine auto is for octvideo infer, which measures: a model is exported for one" in capsys.readouterr().err
    assert main(["export", "--engine", "onnx", "--precision", "auto", "-o", "x"]) == 2
    assert "--precision auto is for octvideo infer" in capsys.readouterr().err
    assert main(["export", "--engine", "eager", "-o", "x"]) == 2
    assert "--engine: got eager, expected aot, onnx, openvino" in capsys.readouterr().err
    assert main(["infer", str(video), "--model", str(tmp_path / "out"), "--timing"]) == 0
    assert " s in all (x " in capsys.readouterr().out


def tiny_slowfast() -> nn.Module:
    """Stems, res2 and the lateral connections of SlowFast, octave from res2 on: the whole takes seconds to export."""
    torch.manual_seed(7)
    ordinary = SlowFastPlan((1, 1, 1, 1), width=8, frame_ratio=4, fusion_kernel=5).ordinary(3, dropout=0.0).eval()
    stems, res2, *_, pool, head = ordinary.blocks
    ordinary.blocks = nn.ModuleList([stems, res2, pool, head])
    head.proj = nn.Linear(4 * 8 + 2 * 4 + 4, 3)  # Slow's channels, what Fast sends it, and Fast's own
    for norm in (module for module in ordinary.modules() if isinstance(module, nn.BatchNorm3d)):
        norm.bias.data.normal_()
    return octavize(ordinary, {"blocks.1": 0.5}, leaf_modules=LEAVES)


def test_two_pathways_are_exported_by_the_command(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, views = tiny_slowfast(), replace(VIEWS, num_crops=1)
    octave = [name for name, module in network.named_modules() if isinstance(module, OctConv3d)]
    assert {name.split(".")[2] for name in octave} == {"multipathway_blocks", "multipathway_fusion"}, octave
    settings = {"class_names": NAMES, "views": views, "mean": (0.4,) * 3, "std": (0.2,) * 3, "source": "my.ckpt"}
    expected = Predictor(network, NAMES, views=views, mean=(0.4,) * 3, std=(0.2,) * 3, device="cpu").scores(video)
    monkeypatch.setattr(export, "network_of_checkpoint", lambda path: (network, settings))
    assert main(["export", "--ckpt", "my.ckpt", "--engine", "onnx", "-o", str(tmp_path / "out")]) == 0
    scores = Predictor.from_export(tmp_path / "out").scores(video)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert scores.max() - scores.min() > 0.05  # no scores that any network has


@pytest.mark.slow  # imports OpenVINO in another process
def test_a_signal_after_models_of_openvino_have_come_and_gone_is_no_crash(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    program = """
import gc, os, signal, sys, torch
from pathlib import Path
from octvideo.inference.engines import FileEngine, write_model
from octvideo.inference.engine import ModelSpec
from octvideo.models import i3d_small
spec, file = ModelSpec((1, 3, 4, 32, 32)), Path(sys.argv[1]) / "model.xml"
write_model("openvino", i3d_small(num_classes=3), file, spec)
first, second = FileEngine("openvino", file, spec), FileEngine("openvino", file, spec)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("told"))
os.kill(os.getpid(), signal.SIGTERM)
print("goes on")
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    repo = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=repo, text=True, capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[-3:] == ["told", "goes on", ""]


@pytest.mark.parametrize(
    "scoring",
    [Scoring("sigmoid", (0.2, 0.5, 0.9)), pytest.param(Scoring(temperature=0.3), marks=pytest.mark.slow)],
)
def test_an_export_makes_scores_as_its_checkpoint_does(scoring: Scoring, tmp_path: Path, tiny_video: Path) -> None:
    """In octvideo, and in the program beside the model."""
    pytest.importorskip("onnxruntime")
    write(tmp_path / "model", "onnx", scoring=scoring)
    predictor = Predictor.from_export(tmp_path / "model")
    assert predictor.scoring == scoring
    how: dict = {"views": VIEWS, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.1, 0.3), "device": "cpu"}
    eager = Predictor(tiny_network(), NAMES, **how, scoring=scoring).predict(tiny_video)
    plain = Predictor(tiny_network(), NAMES, **how).predict(tiny_video)
    found = predictor.predict(tiny_video)
    command = [sys.executable, str(tmp_path / "model" / "classify.py"), str(tiny_video), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (alone,) = json.loads(done.stdout)["videos"]
    assert [name for name, _ in found.top] == [name for name, _ in eager.top] == [t["name"] for t in alone["top"]]
    for (_, one), (_, other), line in zip(found.top, eager.top, alone["top"], strict=True):
        assert one == pytest.approx(other, abs=1e-4) and line["score"] == pytest.approx(other, abs=1e-3)
    assert found.labels == eager.labels == alone.get("labels")
    assert max(abs(dict(plain.top)[name] - score) for name, score in eager.top) > 0.01
