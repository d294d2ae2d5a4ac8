"""Clips of segments, and folders of frames, through the commands: trained on, resumed, tested, exported."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
import torch
import yaml
from PIL import Image

from octvideo.evaluation.scores import VideoScores
from octvideo.inference import Predictor
from octvideo.video import ViewSettings

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "--trainer.enable_progress_bar", "false", "--checkpoint_minutes", 0)
SEGMENTS = "base: tiny.yaml\ndata: {sampling: segments, num_clips: 2, num_crops: 3}\n"


@pytest.fixture
def stoppable(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, where KeepRuns can be given to `octvideo`."""
    (workplace / "tsm.yaml").write_text(SEGMENTS)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield workplace
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_segments_are_trained_resumed_tested_and_kept(
    octvideo: Cli, stoppable: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = stoppable / "runs/tsm/checkpoints/last.ckpt"
    octvideo(*FIT, "-c", "tsm")
    whole = torch.load(last, weights_only=True)
    octvideo(*FIT, "-c", "tiny")
    dense = torch.load(stoppable / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert any(not torch.equal(value, dense["state_dict"][key]) for key, value in whole["state_dict"].items())
    shutil.rmtree("runs")
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5)
    octvideo(*FIT, "-c", "tsm", *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    octvideo(*FIT, "-c", "tsm", "--resume")
    resumed = torch.load(last, weights_only=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key

    views = ViewSettings(4, 2, 2, 3, 32, 32, sampling="segments")
    assert whole["octvideo"]["views"] == views.as_dict()
    octvideo("test", "--name", "tsm")
    protocol = json.loads(Path("runs/tsm/metrics_test.json").read_text())["protocol"]
    assert protocol["views"] == views.as_dict()
    best = "runs/tsm/checkpoints/best.ckpt"
    video = str(tiny_data / "test" / "left" / "clip 1.mp4")
    predictor = Predictor.from_checkpoint(best, device="cpu")
    assert predictor.views == views
    tested = VideoScores.load(Path("runs/tsm/scores.npz"))
    row = tested.scores[tested.paths.index(video)]
    torch.testing.assert_close(predictor.scores(video), torch.as_tensor(row), atol=1e-5, rtol=0)
    expected = pytest.approx(dict(zip(tested.class_names, row.tolist(), strict=True)), abs=1e-5)
    out, _ = octvideo("infer", video, "--ckpt", best, "--engine", "eager", "--precision", "f32", "--json")
    assert {top["name"]: top["score"] for top in json.loads(out)["videos"][0]["top"]} == expected

    caplog.clear()
    octvideo("test", "--name", "tsm", "--data.sampling", "dense", "--data.frame_stride", 8)
    (said,) = [message for message in caplog.messages if "clips" in message]
    assert said.startswith("test: all clips of 5 of 5 videos show the same frames, as these are too short for several")

    octvideo("export", "--ckpt", best, "--engine", "onnx", "-o", "exported")
    assert json.loads(Path("exported/octvideo.json").read_text())["views"] == views.as_dict()
    command = [sys.executable, "-I", "exported/classify.py", video, "--json"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    # Resized pixels may differ by one level of 256.
    told = {top["name"]: top["score"] for top in json.loads(alone.stdout)["videos"][0]["top"]}
    assert told == pytest.approx(expected.expected, abs=5e-3)


@pytest.fixture
def folders(stoppable: Path, tiny_data: Path) -> Path:
    """The tiny data as folders of images, lossless, beside a config that trains on them."""
    root = stoppable / "images"
    for split in ("train", "test"):
        lines = []
        for line in (tiny_data / f"{split}.txt").read_text().splitlines():
            video, _, label = line.rpartition(" ")
            folder = root / video.removesuffix(".mp4")
            folder.mkdir(parents=True)
            with av.open(str(tiny_data / video)) as container:
                for n, frame in enumerate(container.decode(video=0)):
                    Image.fromarray(frame.to_ndarray(format="rgb24")).save(folder / f"{n:04d}.png")
            lines.append(f"{video.removesuffix('.mp4')} 20 {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(tiny_data / "classes.txt", root)
    images = 'frame_names: "{:04d}.png", first_frame: 0, frame_fps: 20'
    (stoppable / "images.yaml").write_text(f"base: tiny.yaml\ndata: {{root: images, target_fps: 10, {images}}}\n")
    return root


@pytest.mark.slow
def test_folders_of_frames_are_trained_on_resumed_sharded_checked_and_classified(octvideo: Cli, folders: Path) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(value, other[key]) for key, value in one.items())

    octvideo(*FIT, "-c", "images")
    whole = weights("images")
    # The same frames out of video files.
    octvideo(*FIT, "-c", "tiny", "--data.target_fps", 10, "--name", "videos")
    assert same(whole, weights("videos"))
    names = ("--frame_names", "{:04d}.png", "--first_frame", 0)
    octvideo("shards", "train.txt", "--root", "images", *names, "--frame_fps", 20, "-o", "sharded")
    octvideo(*FIT, "-c", "images", "--name", "shards", "--data.train", str(folders.parent / "sharded"))
    assert same(whole, weights("shards"))
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5, "--name", "again")
    octvideo(*FIT, "-c", "images", *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    octvideo(*FIT, "-c", "images", "--name", "again", "--resume", "--data.num_workers", 2)
    assert same(whole, weights("again"))

    out, _ = octvideo("test", "--name", "again")
    tested = VideoScores.load(Path("runs/again/scores.npz"))
    assert all(not Path(path).suffix for path in tested.paths)
    row = tested.scores[tested.paths.index("images/test/left/clip 1")]
    best = ("--ckpt", "runs/again/checkpoints/best.ckpt", "--engine", "eager", "--precision", "f32")
    out, _ = octvideo("infer", "images/test", *best, "--json", "--frame_fps", 20)
    inferred = {
        video["path"]: {top["name"]: top["score"] for top in video["top"]} for video in json.loads(out)["videos"]
    }
    assert set(inferred) == set(tested.paths)
    expected = dict(zip(tested.class_names, row.tolist(), strict=True))
    assert inferred["images/test/left/clip 1"] == pytest.approx(expected, abs=1e-5)
    _, err = octvideo("infer", "images/test", *best, code=2)
    assert "give frame_fps" in err and "Traceback" not in err
    octvideo("timeline", "images/test/left", *best, "--frame_fps", 20, "--window", 0.5, "-o", "windows.jsonl")
    windows = [json.loads(line) for line in Path("windows.jsonl").read_text().splitlines()]
    ends = [line["end"] for line in windows if line.get("path", "").endswith("clip 1") and "end" in line]
    assert ends and max(ends) == 1.0

    octvideo("check", "images/train.txt", "--root", "images", *names, "-o", "checked")
    (folders / "train" / "left" / "clip 1" / "0007.png").unlink()
    out, _ = octvideo("check", "images/train.txt", "--root", "images", *names, "-o", "checked", code=1)
    assert "its frame 0007.png: no such file" in out
    assert "train/left/clip 1\tits frame 0007.png" in Path("checked/quarantine.txt").read_text()
    octvideo(*FIT, "-c", "images", "--name", "less", "--data.quarantine", "checked/quarantine.txt")


@pytest.mark.slow
def test_jester_is_listed_trained_on_with_swapped_labels_tested_and_checked(
    octvideo: Cli, stoppable: Path, tiny_data: Path
) -> None:
    """Its official files, of few gestures; the commands that are printed are the ones that run."""
    root = stoppable / "jester"
    root.mkdir()
    names = {"down": "Pulling Hand In", "left": "Swiping Left", "right": "Swiping Right"}
    (root / "jester-v1-labels.csv").write_text("".join(f"{name}\n" for name in names.values()))
    for split, ours in (("train", "train"), ("validation", "test")):
        rows = []
        for video in sorted((tiny_data / ours).rglob("*.mp4")):
            number = f"{1 if ours == 'train' else 2}{video.stem.split()[-1]}"
            folder = root / "20bn-jester-v1" / number
            folder.mkdir(parents=True)
            with av.open(str(video)) as container:
                for n, frame in enumerate(container.decode(video=0), 1):
                    Image.fromarray(frame.to_ndarray(format="rgb24")).save(folder / f"{n:05d}.jpg", quality=95)
            rows.append(f"{number};{names[video.parent.name]}\n")
        (root / f"jester-v1-{split}.csv").write_text("".join(rows))
    out, _ = octvideo("prepare", "list", "jester", str(root))
    check, fit = (shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  octvideo "))
    octvideo(*check)
    data = fit[fit.index("--data.root") :]
    octvideo(*FIT, "-c", "tsm", "--name", "jester", *data, "--data.augment.flip", 0.5)
    config = yaml.safe_load(Path("runs/jester/config.yaml").read_text())["data"]
    assert (config["frame_names"], config["frame_fps"], config["flip_labels"]) == (
        "{:05d}.jpg",
        12.0,
        "flip_labels.yaml",
    )
    octvideo("test", "--name", "jester")
    tested = VideoScores.load(Path("runs/jester/scores.npz"))
    assert tested.class_names == list(names.values()) and len(tested.paths) == 5
    out, _ = octvideo("infer", str(root / "20bn-jester-v1" / "20"), "--ckpt", "runs/jester/checkpoints/best.ckpt")
    assert any(name in out for name in names.values())
