"""`octvideo features` and `octvideo similar`, from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from octvideo.cli import main
from octvideo.inference import Predictor
from octvideo.inference.feature_files import FeatureFolder
from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings

Cli = Callable[..., tuple[str, str]]
VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
EAGER = ("--engine", "eager", "--precision", "f32")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(3, 0.25, width=8, zero_init_last_norm=False)
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    block = make_block(network, ["a", "b", "c"], views=VIEWS, mean=(0.4,) * 3, std=(0.2,) * 3)
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "octvideo": block}, path)
    return path


@pytest.fixture
def videos(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """videos/left/clip 1.mp4, videos/right/clip 2.mp4, videos/broken.mp4, from the folder above."""
    monkeypatch.chdir(tmp_path)
    return make_videos(tiny_data, tmp_path)


def make_videos(tiny_data: Path, folder: Path) -> Path:
    for name in ("left/clip 1.mp4", "right/clip 2.mp4"):
        (folder / "videos" / name).parent.mkdir(parents=True)
        shutil.copy(tiny_data / "test" / name, folder / "videos" / name)
    (folder / "videos" / "broken.mp4").write_bytes(b"no video at all")
    return folder / "videos"


@pytest.fixture(scope="module")
def words(checkpoint: Path) -> tuple[object, ...]:
    return ("features", "videos", "-o", "out", "--ckpt", checkpoint, "--window", 0.5, "--stride", 0.25)


@pytest.fixture(scope="module")
def written(words: tuple[object, ...], tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `videos`, and their features in `out`."""
    folder = tmp_path_factory.mktemp("written")
    make_videos(tiny_data, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*map(str, words), *EAGER]) == 1
    return folder


def test_features_are_those_of_python_and_are_listed(
    written: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written)
    index = Path("out/index.csv").read_text().splitlines()
    assert index[1].startswith("videos/broken.mp4,,0,,,,")
    assert index[2] == "videos/left/clip 1.mp4,videos/left/clip 1.mp4.safetensors,3,0.0,1.0,20.0,"
    entry = FeatureFolder("out").find("videos/left/clip 1.mp4")
    assert entry is not None
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    windows = list(predictor.features("videos/left/clip 1.mp4", window_sec=0.5, stride_sec=0.25))
    expected = torch.stack([w.features for w in windows]).numpy()
    np.testing.assert_allclose(entry.array("features"), expected, atol=1e-6)
    np.testing.assert_array_equal(entry.array("start_sec"), [w.start_sec for w in windows])


def test_a_run_goes_on_with_what_is_left(
    octvideo: Cli, written: Path, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By "auto", which keeps the engine: what is done stays, what was taken away is made, the broken one is tried."""
    shutil.copytree(written, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    kept, gone = Path("out/videos/left/clip 1.mp4.safetensors"), Path("out/videos/right/clip 2.mp4.safetensors")
    before, content, index = kept.stat().st_mtime_ns, gone.read_bytes(), Path("out/index.csv").read_text()
    gone.unlink()
    left = Path("out/videos/.gone.mp4.safetensors.part")
    left.touch()  # of a run that was killed, of a video that is no more
    _, err = octvideo(*words, code=1)
    assert not left.exists()
    assert "1 of 3 videos are in out already" in err and "engine: eager, f32 (as the features in out so far)" in err
    assert "layer: blocks.6.proj:input" in err
    assert "error: cannot read video 'videos/broken.mp4': " in err and err.count("error") == 1
    assert kept.stat().st_mtime_ns == before and Path("out/index.csv").read_text() == index
    assert len(gone.read_bytes()) == len(content)
    _, err = octvideo(*words[:-1], 0.5, code=2)
    assert err.startswith("error: out holds features of other settings (stride_sec: 0.25, now 0.5): give another -o")


def test_what_is_like_a_video(octvideo: Cli, written: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    out, _ = octvideo("similar", "out", "videos/left/clip 1.mp4@0.6s", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 3 and {one["video"] for one in found} == {"videos/right/clip 2.mp4"}
    assert {(one["query_start"], one["query_end"]) for one in found} == {(0.25, 0.75)}
    shutil.copy("videos/right/clip 2.mp4", "new.mp4")
    out, _ = octvideo("similar", "out", "new.mp4", "--per_video", "-k", 1, "--json")
    best = json.loads(out)
    assert best["video"] == "videos/right/clip 2.mp4" and best["similarity"] == pytest.approx(1, abs=1e-5)
    out, _ = octvideo("similar", "out", "videos/right/clip 2.mp4", "--per_video")
    assert "videos/left/clip 1.mp4" in out and "clip 2" not in out
    _, err = octvideo("similar", "out", "videos/broken.mp4", code=1)
    assert err.count("\n") == 1 and err.startswith("error: cannot read video 'videos/broken.mp4'")
    other = checkpoint.with_name("other.ckpt")
    other.write_bytes(checkpoint.read_bytes() + b"0")
    for words, message in (
        (("videos/left/clip 1.mp4@9s",), "has no window at 9 s"),
        (("nothing.mp4",), "neither a video nor one whose features are in out"),
        (("new.mp4", "--ckpt", other), "is not the network that wrote out"),
    ):
        _, err = octvideo("similar", "out", *words, code=2)
        assert message in err and err.count("\n") == 1


def test_steps_halves_and_npz(octvideo: Cli, videos: Path, checkpoint: Path) -> None:
    octvideo("features", "videos/left", "-o", "out", "--ckpt", checkpoint, "--per_step", "--num_clips", 1, *EAGER,
             "--num_crops", 1, "--format", "npz", "--dtype", "float16", "--layer", "blocks.3")  # fmt: skip
    with np.load("out/videos/left/clip 1.mp4.npz") as arrays:
        assert arrays["features"].shape == (8, 64) and arrays["features"].dtype == np.float16
        assert arrays["window"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        np.testing.assert_allclose(arrays["start_sec"][:4], [0, 0.2, 0.2, 0.4])
        np.testing.assert_allclose(arrays["end_sec"][:4], [0.2, 0.4, 0.4, 0.6])
        settings = json.loads(str(arrays["metadata"]))
    assert settings["layer"] == "blocks.3" and settings["video"] == "videos/left/clip 1.mp4" and settings["fps"] == 20


def test_ctrl_c_leaves_an_index(octvideo: Cli, videos: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = FeatureFolder.write

    def stop(self: FeatureFolder, *args: object) -> Path:
        wrote(self, *args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureFolder, "write", stop)
    _, err = octvideo("features", "videos", "-o", "out", "--ckpt", checkpoint, "--whole", *EAGER, code=130)
    assert err.endswith("stopped: the same command goes on with the videos that are left\n")
    assert len(Path("out/index.csv").read_text().splitlines()) == 3  # the broken one, and one that is done


def test_mistakes(octvideo: Cli, videos: Path, checkpoint: Path) -> None:
    out, _ = octvideo("features", "--layer", "list", "--ckpt", checkpoint)
    assert "blocks.3.res_blocks.1.activation" in out and "48 x 2 x 4 x 4 and 16 x 2 x 2 x 2" in out
    for words, message in (
        (("videos", "--ckpt", checkpoint), "-o/--output not given"),
        (("-o", "out", "--ckpt", checkpoint), "no video given"),
        (
            ("videos", "-o", "out", "--model", "x"),
            "an exported model holds no layers to take",
        ),
        (("videos", "-o", "out", "--ckpt", checkpoint, "--layer", "blocks.9"), "no layer 'blocks.9'"),
    ):
        _, err = octvideo("features", *words, code=2)
        assert message in err and err.count("\n") == 1
    assert not Path("out").exists()
