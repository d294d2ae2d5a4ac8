"""`octvideo convert`: a trained network in, a run out that every other command takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorchvideo.models.hub as hub
import timm
import torch
import torchvision
import yaml

from octvideo.cli.convert import taught_on
from octvideo.cli.convert_state import Kept
from octvideo.errors import UserError
from octvideo.inference.checkpoint import network_of_checkpoint
from octvideo.inference.conversion import Clips, Trained, alpha_for, convert, trained_by_name, trained_checkpoint
from octvideo.models import frame_network, i3d_small
from octvideo.octave import count_cost, octavize
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings

from .conftest import Cli

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=1, short_side_px=32, crop_px=32)


HEAD = "blocks.6.proj.bias"
ONE_STAGE = '{"blocks.1": 0.5}'  # sooner than the whole network


def save(network: torch.nn.Module, path: Path) -> None:
    """As a run of octvideo has it."""
    block = make_block(network, ["down", "left", "right"], views=VIEWS, mean=[0.45] * 3, std=[0.225] * 3)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "octvideo": block}, path)


@pytest.fixture
def own(workplace: Path) -> Path:
    """The checkpoint of the run "own", ordinary."""
    torch.manual_seed(0)
    path = workplace / "runs" / "own" / "checkpoints" / "last.ckpt"
    network = i3d_small(num_classes=3, width=8, zero_init_last_norm=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 3, 4, 32, 32))  # whose statistics norms then have
    save(network.eval(), path)
    return path


def test_a_run_becomes_an_octave_run(octvideo: Cli, own: Path, tiny_data: Path) -> None:
    words = ("convert", "own", "--data", tiny_data / "train", "-o", "runs/oct")
    out, _ = octvideo(*words, "--num_clips", 10, "--compare")
    folder = Path("runs/oct")
    for step in ("last channels low", "before fitting", "norms fitted", "weights fitted"):
        assert f"| octave, {step} |" in out
    assert {file.name for file in folder.iterdir()} == {
        "checkpoints", "config.yaml", "layers.json", "report.md", "spectrum.png", "spectrum.pt",
    }  # fmt: skip
    layers = json.loads((folder / "layers.json").read_text())
    assert layers["cost"] < 0.95 and all(layer["low"] for layer in layers["layers"].values())
    octave, _ = network_of_checkpoint(folder / "checkpoints" / "converted.ckpt")
    ordinary, _ = network_of_checkpoint(own)
    assert octave.octave_report.layers and octave.state_dict().keys() == ordinary.state_dict().keys()

    # The other commands take it: to name actions, to train on.
    video = next((tiny_data / "test").rglob("*.mp4"))
    said = json.loads(octvideo("infer", video, "--ckpt", "oct", "--engine", "eager", "--json")[0])
    assert {said["top"][0]["class"]} <= {"down", "left", "right"} if "top" in said else said
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config["model"]["network"]["init_args"]["alpha"].values()) == {0.25}
    fit = ("fit", "-c", "tiny", "--config", folder / "config.yaml", "--name", "on", "--trainer.max_epochs", 1)
    octvideo(*fit, "--trainer.limit_train_batches", 1, "--data.clip_frames", 4)
    octvideo("test", "-c", "tiny", "--config", folder / "config.yaml", "--name", "tested", "--ckpt", "oct")

    said = octvideo(*words, code=2)[1]
    assert "holds checkpoints already" in said
    said = octvideo("convert", "oct", "--data", tiny_data / "train", "-o", "runs/twice", code=2)[1]
    assert "holds an octave network already" in said and not Path("runs/twice").exists()


@pytest.mark.slow
def test_an_interrupted_command_goes_on(
    octvideo: Cli, own: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        "convert",
        "own",
        "--data",
        tiny_data / "train",
        "--num_clips",
        4,
        "--refit",
        "norms",
        "--alpha",
        ONE_STAGE,
    )
    octvideo(*words, "-o", "runs/whole")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("octvideo.cli.convert.draw_spectrum", interrupted)
        said = octvideo(*words, "-o", "runs/parts", code=130)[1]
    assert "the same command goes on" in said and Path("runs/parts/unfinished.pt").exists()
    measured = []
    monkeypatch.setattr("octvideo.octave.conversion.refit.fit_norm", lambda *args: measured.append(args))
    octvideo(*words, "-o", "runs/parts")
    assert not measured and not Path("runs/parts/unfinished.pt").exists()
    states = [
        network_of_checkpoint(f"runs/{name}/checkpoints/converted.ckpt")[0].state_dict() for name in ("whole", "parts")
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("goal", "value"),
    [
        ("--alpha", ONE_STAGE),
        *[pytest.param(*goal, marks=pytest.mark.slow) for goal in [("--cost", "0.9"), ("--time", "0.9")]],
    ],
)
def test_other_goals(
    octvideo: Cli, own: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, goal: str, value: str
) -> None:
    if goal == "--time":  # as if time were cost
        cost = lambda network: count_cost(network, (1, 3, 4, 32, 32)).multiply_adds  # noqa: E731
        monkeypatch.setattr("octvideo.cli.convert.cpu_seconds", lambda networks, clip: [cost(n) for n in networks])
    octvideo(
        "convert", "own", "--data", tiny_data / "train", "--num_clips", 4, "-o", "oct", goal, value, "--refit", "none"
    )
    layers = json.loads(Path("oct/layers.json").read_text())
    if goal in ("--cost", "--time"):
        assert 0.85 < layers["cost"] <= 0.9
    else:
        assert {name.partition(".res")[0] for name in layers["layers"]} == {"blocks.1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "--data", "."], "no checkpoint at none"),
        (["own", "--data", "nothing"], "no file or folder nothing"),
        (["own", "--data", ".", "--alpha", "2"], "--alpha: got 2, expected 0 to 1"),
        (["own", "--data", ".", "--alpha", '{"blocks.1": "x"}'], "--alpha: got x, expected 0 to 1"),
        (["own", "--data", ".", "--octave", "{"], "expected JSON"),
        (["own", "--data", ".", "--weights", "x"], "--weights is for networks of libraries"),
        (["timm:no_such_net", "--data", "."], "timm has no network 'no_such_net'"),
        (["torchvision:resnet18", "--weights", "no.pth", "--data", "."], "no weights at no.pth"),
    ],
)
def test_mistakes_are_told(octvideo: Cli, own: Path, words: list[str], said: str) -> None:
    assert said in octvideo("convert", *words, "-o", "oct", code=2)[1]
    assert not Path("oct").exists()


def test_folders_that_would_lose_something_are_refused(octvideo: Cli, own: Path) -> None:
    said = octvideo("convert", "own", "--data", ".", "-o", "runs/own", "--overwrite", code=2)[1]
    assert "holds the network to convert" in said and own.exists()
    Path("file").touch()
    assert "is a file" in octvideo("convert", "own", "--data", ".", "-o", "file", code=2)[1]


def test_a_goal_out_of_reach_leaves_no_folder(octvideo: Cli, own: Path, tiny_data: Path) -> None:
    words = ("convert", "own", "--data", tiny_data / "train", "--num_clips", 4, "-o", "new/oct", "--cost", ".1")
    assert "--cost: got 0.1, but at alpha 0.75 it is" in octvideo(*words, code=2)[1]
    assert not Path("new").exists()


def kept(folder: str, trained: Trained, clips: Clips, asked: Any = None) -> Kept:
    return Kept(Path(folder), asked or {}, {}, trained, clips, seed=0)


@pytest.fixture
def some_clips() -> Clips:
    """Of five videos, the last one shorter."""
    videos = [name for name in "abcde" for _ in range(3)][:-1]
    return Clips(
        [torch.randint(0, 256, (1, 3, 4, 8, 8), dtype=torch.uint8) for _ in videos], videos, [0.5] * 3, [0.2] * 3
    )


def test_what_was_measured_is_there_for_another_goal(own: Path, some_clips: Clips) -> None:
    trained = trained_checkpoint(own)
    with kept("new/oct", trained, some_clips, {"alpha": 0.25}) as first:
        first.options({"refit": "norms"})["keep"]({"spectrum": {"num_clips": 14}, "fitted": {}})
    assert {path.name for path in Path("new/oct").iterdir()} == {"spectrum.pt"}
    with kept("new/oct", trained, some_clips, {"alpha": 0.5}) as second:
        assert second.options({"refit": "norms"})["begun"] == {"spectrum": {"num_clips": 14}}
        second.drop()
    assert Path("new/oct/spectrum.pt").exists()  # it was there before
    with kept("new/oct", trained, some_clips[1:], {"alpha": 0.5}) as other:
        assert other.options({})["begun"] == {}


def test_what_was_fitted_is_for_the_same_command_alone(own: Path, some_clips: Clips) -> None:
    trained = trained_checkpoint(own)
    for alpha, there in ((0.25, False), (0.25, True), (0.5, False)):
        with pytest.raises(KeyboardInterrupt), kept("oct", trained, some_clips, {"alpha": alpha}) as one:
            assert ("fitted" in one.options({"refit": "norms"})["begun"]) == there
            if alpha == 0.25:
                one.options({"refit": "norms"})["keep"]({"spectrum": {"num_clips": 14}, "fitted": {"a": {}}})
            raise KeyboardInterrupt
    with kept("oct", trained, some_clips, {"alpha": 0.5}) as one:
        one.drop()
    with kept("lost", trained, some_clips) as one:
        one.once("alpha", lambda: 0.3)
        assert Path("lost").exists()
        one.drop()
    assert not Path("lost").exists()


def test_no_video_is_on_both_sides(some_clips: Clips) -> None:
    measured, compared = some_clips.shared_out()
    assert (len(measured), set(measured.videos), set(compared.videos)) == (11, set("bcde"), {"a"})
    assert torch.equal(compared[2], some_clips[2]) and torch.equal(measured[0], some_clips[3])
    assert [len(part) for part in some_clips[1:4].shared_out()] == [1, 2]
    for count, sizes in ((3, [2, 1]), (1, [1, 1])):  # of a single video
        assert [len(part) for part in some_clips[:count].shared_out()] == sizes


@pytest.mark.slow
def test_the_nearest_step_is_kept(octvideo: Cli, own: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that went wrong: its weights are not written."""

    def spoilt(trained: Trained, clips: Any, alpha: Any, octave: Any, **options: Any) -> Trained:
        made = convert(trained, clips, alpha, octave, **options)
        if options["refit"] == "norms":
            made.network.get_parameter(HEAD).data += torch.tensor([9.0, 0.0, 0.0])
        return made

    monkeypatch.setattr("octvideo.cli.convert.convert", spoilt)
    words = ("convert", "own", "--data", tiny_data / "train", "--num_clips", 4, "--refit", "norms", "-o", "oct")
    out, err = octvideo(*words, "--choose", "last")
    said = 'After the step "octave, norms fitted" the network agrees less with the ordinary one'
    assert said in out and f"kept: octave, before fitting. {said}" in err
    written = network_of_checkpoint("oct/checkpoints/converted.ckpt")[0].state_dict()
    assert torch.equal(written[HEAD], network_of_checkpoint(own)[0].state_dict()[HEAD])


def test_those_that_scores_are_compared_on_do_not_teach(some_clips: Clips) -> None:
    measured, compared = some_clips.shared_out()
    assert taught_on([*"abcdef"], measured, compared, [("c", "broken")]) == [*"bdef"]
    assert taught_on(["a"], *some_clips[:3].shared_out(), []) == ["a"]


@pytest.mark.slow
def test_a_command_goes_on_with_its_own_network_and_alpha(
    octvideo: Cli, own: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times differ when they are measured again; and a run that is trained again has other weights."""
    words = ("convert", "own", "--data", tiny_data / "train", "-o", "oct", "--num_clips", 4, "--time", ".9")
    words = (*words, "--refit", "norms")
    times = iter([*[[1.0, 0.5]] * 7, [1.0, 0.5]])
    monkeypatch.setattr("octvideo.cli.convert.cpu_seconds", lambda *_: next(times))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("octvideo.cli.convert.draw_spectrum", interrupted)
        octvideo(*words, code=130)
    assert not Path("oct/checkpoints").exists()
    alpha = torch.load("oct/unfinished.pt")["states"]["alpha"]
    times = iter([[1.0, 2.0]])  # once, for the report
    octvideo(*words)
    assert json.loads(Path("oct/layers.json").read_text())["alpha"] == alpha
    assert yaml.safe_load(Path("oct/config.yaml").read_text())["model"]["init_weights"].startswith("/")

    measured = []
    for seed in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr("octvideo.cli.convert._step", interrupted)
            octvideo(*words[:-4], "-o", "other", "--refit", "none", code=130)
        states = torch.load("other/spectrum.pt")["states"]
        measured.append(next(iter(states["losses"].values()))["detail"])
        network = network_of_checkpoint(own)[0]
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        save(network, own)
    assert not torch.equal(*measured)


@pytest.mark.slow
def test_teaching_starts_anew_for_another_command(octvideo: Cli, own: Path, tiny_data: Path) -> None:
    words = ("convert", "own", "--data", tiny_data / "train", "-o", "oct", "--num_clips", 4, "--refit", "none")
    octvideo(*words, "--alpha", ".25", "--epochs", 1)
    octvideo(*words, "--alpha", ".5", "--epochs", 1, "--overwrite")
    taught, _ = network_of_checkpoint("oct/taught/run/checkpoints/last.ckpt")
    assert set(taught.octave_report.alpha.values()) == {0.5}


@pytest.mark.slow
def test_the_ordinary_network_teaches(octvideo: Cli, own: Path, tiny_data: Path) -> None:
    words = ("convert", "own", "--data", tiny_data / "train", "-o", "runs/oct", "--num_clips", 10, "--refit", "none")
    out, _ = octvideo(*words, "--epochs", 2)
    assert "| octave, taught for 2 epochs |" in out
    octave, _ = network_of_checkpoint("runs/oct/checkpoints/converted.ckpt")
    taught, _ = network_of_checkpoint("runs/oct/taught/run/checkpoints/last.ckpt")
    assert all(torch.equal(value, taught.state_dict()[key]) for key, value in octave.state_dict().items())
    start, _ = network_of_checkpoint("runs/oct/taught/start.ckpt")
    changed = {key for key, value in start.state_dict().items() if not torch.equal(value, octave.state_dict()[key])}
    assert changed and not any("running" in key for key in changed)


def test_broken_videos_a_single_one_and_few_clips_are_told(octvideo: Cli, own: Path, tiny_data: Path) -> None:
    Path("broken.mp4").write_bytes(b"no video")
    good = next((tiny_data / "test").rglob("*.mp4"))
    words = ("convert", "own", "--data", "broken.mp4", good, good, "-o", "oct", "--num_clips", 10, "--refit", "none")
    out, err = octvideo(*words, "--alpha", ONE_STAGE)
    assert "left out, can't be read: broken.mp4" in err
    assert "one video alone" in err and "warning: 4 clips to measure on" in err
    assert "Measured on 4 clips without labels, compared on 1 clips of the one video" in out


@pytest.mark.parametrize(
    "name",
    [
        "x3d_xs",
        *[pytest.param(name, marks=pytest.mark.slow) for name in ("i3d_r50", "slowfast_r50", "c2d_r50", "x3d_s")],
    ],
)
def test_checkpoints_of_pytorchvideo_load_by_name(name: str, tmp_path: Path) -> None:
    """Files of its form: {"model_state": ...} of the hub's network."""
    torch.manual_seed(0)
    theirs: Any = getattr(hub, name)(pretrained=False).eval()
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "weights.pyth")
    trained = trained_by_name(f"pytorchvideo:{name}", weights=str(tmp_path / "weights.pyth"))
    views = trained.views
    clip = torch.randn(1, 3, views.clip_frames, views.crop_px, views.crop_px)
    with torch.no_grad():
        wanted = theirs([clip[:, :, ::4], clip] if name == "slowfast_r50" else clip)
        scores = trained.network(clip)
    if "x3d" in name:  # its head ends in a softmax
        scores = scores.softmax(1)
    torch.testing.assert_close(scores, wanted, rtol=1e-3, atol=1e-5)
    assert trained.class_names[0] == "abseiling" and trained.mean == (0.45, 0.45, 0.45)


@pytest.mark.slow
def test_image_networks_see_the_frames(octvideo: Cli, workplace: Path, tiny_data: Path, own: Path) -> None:
    torch.manual_seed(0)
    network = frame_network("torchvision:mobilenet_v3_small", num_classes=7).eval()
    torch.save(network.image_network.state_dict(), "weights.pth")
    words = ("--weights", "weights.pth", "--num_classes", 7, "--data", tiny_data / "train", "-o", "oct")
    octvideo("convert", "torchvision:mobilenet_v3_small", *words, "--num_clips", 4, "--refit", "norms")
    octave, settings = network_of_checkpoint("oct/checkpoints/converted.ckpt")
    assert octave.octave_report.layers and settings["class_names"][:2] == ["0", "1"]
    ordinary = octavize(network.image_network, 0.0)
    assert ordinary.state_dict().keys() == octave.image_network.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("torchvision:resnet18", (0.485, 0.456, 0.406)),
        ("torchvision:r3d_18", (0.43216, 0.394666, 0.37645)),
        ("timm:tf_efficientnet_lite0", (0.5, 0.5, 0.5)),
    ],
)
def test_pixels_are_the_librarys_where_a_file_does_not_say(name: str, mean: tuple[float, ...], tmp_path: Path) -> None:
    library, own_name = name.split(":")
    build = getattr(torchvision.models if "r3d" not in name else torchvision.models.video, own_name, None)
    network = timm.create_model(own_name) if library == "timm" else build(weights=None)
    classes = 400 if "r3d" in name else 1000
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    trained = trained_by_name(name, weights=str(tmp_path / "weights.pth"), num_classes=classes)
    assert trained.mean == mean


def test_the_least_alpha_is_found() -> None:
    assert alpha_for(0.8, lambda alpha: 1 - alpha) == pytest.approx(0.2, abs=0.02)
    with pytest.raises(UserError, match=r"got 0\.1, but at alpha 0\.75 it is 0\.250 still"):
        alpha_for(0.1, lambda alpha: 1 - alpha)
