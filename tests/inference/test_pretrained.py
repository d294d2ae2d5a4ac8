"""`octvideo.from_pretrained`: the predictor of a shared network, from a folder and from a hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import octvideo
from octvideo.cli import main
from octvideo.errors import UserError
from octvideo.inference import Predictor
from octvideo.inference.checkpoint import find_checkpoint, network_of_checkpoint
from octvideo.inference.conversion import Trained, convert
from octvideo.models import i3d_small
from octvideo.models.checkpoint import trained_network
from octvideo.models.pretrained import write_pretrained
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings
from tests.fake_hub import Hub

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NAMES = ["left", "right", "up"]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.1, 0.3)


def network_of(alpha: float) -> nn.Module:
    torch.manual_seed(3)
    network = i3d_small(num_classes=3, width=8, alpha=alpha, zero_init_last_norm=False)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.mul_(1 + 0.3 * torch.rand(value.shape))
    network.get_parameter("blocks.6.proj.weight").data.mul_(20)  # of 0.01: scores differ
    return network.eval()


def save(network: nn.Module, file: Path) -> Path:
    """As a run has it."""
    block = make_block(network, NAMES, views=VIEWS, mean=MEAN, std=STD)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "octvideo": block}, file)
    return file


def share(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_pretrained(*trained_network(checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.ckpt, and the same network as the folder `net`."""
    folder = tmp_path_factory.mktemp("work")
    share(save(network_of(0.25), folder / "run.ckpt"), folder / "net")
    return folder


def test_a_folder_gives_the_scores_of_its_checkpoint(shared: Path, tiny_video: Path) -> None:
    predictor = octvideo.from_pretrained(shared / "net", device="cpu")
    expected = Predictor.from_checkpoint(shared / "run.ckpt", device="cpu")
    assert torch.equal(predictor.scores(tiny_video), expected.scores(tiny_video))
    assert (predictor.class_names, predictor.views, predictor.mean) == (NAMES, VIEWS, MEAN)
    assert predictor.source == str(shared / "net")
    with pytest.raises(UserError, match=r"engine: got 'fast'"):
        octvideo.from_pretrained(shared / "net", engine="fast")
    with pytest.raises(AttributeError, match=r"module 'octvideo' has no attribute 'nothing'"):
        _ = octvideo.nothing


def test_a_converted_network_is_the_same_bits(tmp_path: Path, tiny_video: Path) -> None:
    ordinary = Trained(network_of(0.0), NAMES, VIEWS, MEAN, STD, "a test")
    clips = torch.randn(3, 1, 3, 4, 32, 32)
    made = convert(ordinary, list(clips), 0.25, {}, choose="output", spread="budget", refit="norms")
    checkpoint = save(made.network, tmp_path / "converted.ckpt")
    network, settings = network_of_checkpoint(share(checkpoint, tmp_path / "net"))
    shares = network.meta["built_from"]["init_args"]["alpha"]  # type: ignore[index]
    assert isinstance(shares, dict) and len(set(shares.values())) > 2 and settings["views"] == VIEWS
    with torch.inference_mode():
        assert torch.equal(network(clips[0]), made.network(clips[0]))


def test_a_hub_gives_the_same_and_then_the_cache(
    shared: Path, tiny_video: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.add("me/net", shared / "net", "main", "v1")
    other = share(save(network_of(0.0), tmp_path / "other.ckpt"), tmp_path / "other")
    hub.add("me/net", other, "main")
    old, new = octvideo.from_pretrained("hf:me/net", revision="v1"), octvideo.from_pretrained("hf:me/net")
    scores = old.scores(tiny_video)
    assert torch.equal(scores, octvideo.from_pretrained(shared / "net").scores(tiny_video))
    assert torch.equal(new.scores(tiny_video), octvideo.from_pretrained(other).scores(tiny_video))
    assert not torch.equal(scores, new.scores(tiny_video))
    assert old.source == f"hf:me/net@{first[:12]}"
    hub.goes_down(monkeypatch)
    assert torch.equal(octvideo.from_pretrained("hf:me/net@v1").scores(tiny_video), scores)


def test_the_command_takes_folders_and_names_of_the_hub(
    shared: Path, tiny_video: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shared)
    commit = hub.add("me/net", shared / "net", "main")
    printed = []
    for name in ("run.ckpt", "net", "hf:me/net", f"hf:me/net@{commit}"):
        assert main(["infer", str(tiny_video), "--ckpt", name, "--engine", "eager", "--precision", "f32"]) == 0
        out, err = capsys.readouterr()
        printed.append(out)
    assert len(set(printed)) == 1 and f"weights: hf:me/net@{commit[:12]}" in err
    assert find_checkpoint("net") == Path("net")
    for name, said in (("hf:me/gone", "no repository hf:me/gone"), ("hf:me/net@v9", "hf:me/net has no revision v9")):
        assert main(["infer", str(tiny_video), "--ckpt", name]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_importing_octvideo_brings_no_library() -> None:
    words = "import sys, octvideo; print(sorted({'torch', 'huggingface_hub', 'pytorchvideo'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", words], text=True, capture_output=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
