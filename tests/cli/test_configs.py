"""Every config in configs/, through the real command line on tiny data: trained for a step, tested, and listed."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from octvideo.cli.config_files import with_bases
from octvideo.models.library import CLIP_FORMS
from octvideo.models.weights import PixelScale, library_pixels

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
# Only for others to start from.
BASES = ["kinetics400"]
# Given after a config of Kinetics-400: another data set, and the recipe to fine-tune by.
DATA_SETS = ["kinetics600", "kinetics700", "ucf101", "hmdb51"]
WITH_NETWORK = [file for file in FILES if file.stem not in (*BASES, *DATA_SETS)]

# Whatever a config is of: few, small and short clips.
TINY = {
    "data.classes": "classes.txt",
    "data.train": "train.txt",
    "data.test": "test.txt",
    "data.clip_frames": 4,
    "data.frame_stride": 2,
    "data.augment.crop_px": 32,
    "data.augment.short_side_px": "[32,40]",
    "data.short_side_px": 32,
    "data.crop_px": 32,
    "data.num_clips": 1,
    "data.num_crops": 1,
    "data.batch_size": 2,
    "data.num_workers": 0,
    "model.init_weights": "null",
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.precision": "null",
    "trainer.max_epochs": 1,
    "trainer.limit_train_batches": 1,
    "trainer.limit_val_batches": 1,
    "trainer.enable_progress_bar": "false",
}
# Twins of these differ by a line or two, and are tried in the fast tests.
TWINS = (
    *(
        "c2d",
        "c2d_oct",
        "i3d",
        "i3d_oct",
        "i3d_nl",
        "i3d_nl_oct",
        "i3d_pool",
        "slowfast",
        "slowfast_oct",
        "i3d_oct_k600",
    ),
    *("jhmdb_i3d", "jhmdb_i3d_pool", "jhmdb_frames", "jhmdb_slowfast_oct"),
    *("x3d_s", "x3d_s_oct", "x3d_m", "tsm_resnet50", "tsm_mobilenet_v2", "tsm_mobilenet_v2_oct"),
    *("slow", "slow_oct", "slowfast_8x8", "slowfast_8x8_oct", "x3d_xs", "x3d_m_oct", "x3d_l"),
    *("i3d_a1", "i3d_oct_a1", "x3d_s_a1"),
    *("tsm_resnet50_ssv2", "tsm_resnet50_diving48", "tsm_resnet50_jester", "slowfast_ssv2", "slowfast_charades"),
)
# What a network needs of them.
OWN = {name: {"data.clip_frames": 8} for name in ("slowfast", "slowfast_oct")}  # Slow sees every 8th frame
OWN |= {name: {"data.clip_frames": 8} for name in ("slowfast_ssv2", "slowfast_charades")}
OWN |= {name: {"data.flip_labels": "{left: right}"} for name in ("tsm_resnet50_ssv2", "tsm_resnet50_jester")}
OWN["tsm_resnet50_jester"] |= {"data.frame_names": "null"}  # of folders of frames: tests/cli/test_protocols.py
OWN |= {name: {"data.batch_size": 4} for name in ("i3d_a1", "i3d_oct_a1", "x3d_s_a1")}  # two clips of a video


def merged(file: Path) -> dict:
    """The content of a config after its bases."""
    content: dict = {}

    def update(into: dict, new: dict) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                update(into[key], value)
            else:
                into[key] = value

    for part in with_bases(file):
        update(content, yaml.safe_load(part.read_text(encoding="utf-8")))
    return content


@pytest.mark.parametrize(
    "name",
    [pytest.param(file.stem, marks=pytest.mark.slow if file.stem in TWINS else []) for file in WITH_NETWORK],
)
def test_it_trains_and_tests(
    name: str,
    octvideo: Callable[..., tuple[str, str]],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = merged(CONFIGS / f"{name}.yaml")
    words = [word for key, value in {**TINY, **OWN.get(name, {})}.items() for word in (f"--{key}", value)]
    words += ["--data.root", tiny_data, "--data.val", "test.txt" if content["data"].get("val") else "null"]
    out, _ = octvideo("fit", "-c", name, *words)
    assert "epoch 1/1  train/loss" in out
    run = Path("runs", name)
    block = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, mmap=True)["octvideo"]
    network, asked = block["network"], content["model"]["network"]
    assert network["class_path"] == asked["class_path"] and network["init_args"]["num_classes"] == 3
    given = asked.get("init_args", {})
    assert {key: network["init_args"][key] for key in given} == given
    octvideo("test", "-c", name, *words)
    assert json.loads((run / "metrics_test.json").read_text())["videos"] == 5


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.slow
def test_a_data_set_goes_on_any_config_of_kinetics(
    name: str,
    octvideo: Callable[..., tuple[str, str]],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for key, value in TINY.items() for word in (f"--{key}", value)]
    words += ["--data.root", tiny_data, "--data.val", "test.txt"]
    octvideo("fit", "-c", "slow", "-c", name, *words)
    written = yaml.safe_load(Path("runs", name, "config.yaml").read_text(encoding="utf-8"))
    assert written["model"]["network"]["class_path"] == "octvideo.models.slow_r50"
    given = merged(CONFIGS / f"{name}.yaml")
    untouched = {"data": {"decoder"}, "model": {"lr", "milestones", "warmup_epochs"}, "trainer": {"gradient_clip_val"}}
    for part, keys in untouched.items():
        for key in keys & given.get(part, {}).keys():
            assert written[part][key] == given[part][key]
    octvideo("test", "-c", "slow", "-c", name, *words)
    assert json.loads(Path("runs", name, "metrics_test.json").read_text())["videos"] == 5


@pytest.mark.parametrize("file", WITH_NETWORK, ids=lambda file: file.stem)
def test_its_network_takes_what_it_is_given(file: Path) -> None:
    network = merged(file)["model"]["network"]
    module, _, name = network["class_path"].rpartition(".")
    builder = getattr(importlib.import_module(module), name)
    inspect.signature(builder).bind(**network.get("init_args", {}))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_what_it_is_and_is_in_the_table(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# ")
    assert file.name in (CONFIGS / "README.md").read_text(encoding="utf-8")


def test_bases_are_used() -> None:
    used = {part.stem for file in FILES for part in with_bases(file)[:-1]}
    assert set(BASES) <= used
    without_network = {file.stem for file in FILES if "network" not in merged(file).get("model", {})}
    assert without_network == {*BASES, *DATA_SETS}


def test_kinetics_is_decoded_by_decord_and_nothing_else_is() -> None:
    named = {file.stem: merged(file)["data"].get("decoder", "auto") for file in FILES}
    of_kinetics = {file.stem for file in FILES if "kinetics" in merged(file)["data"]["root"]}
    of_kinetics -= {"kinetics600", "kinetics700"}  # which go on a config that says it
    assert "i3d_oct_k600" in of_kinetics and not {"demo", "slowfast_ssv2"} & of_kinetics
    assert named == {name: "decord" if name in of_kinetics else "auto" for name in named}


def test_kinetics_is_trained_as_a_gpu_needs_it() -> None:
    for file in FILES:
        if "kinetics400" in {part.stem for part in with_bases(file)}:
            content = merged(file)
            assert content["model"]["channels_last"] and content["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("name", ["slowfast", "slowfast_oct", "slowfast_8x8", "slowfast_8x8_oct", "slow", "slow_oct"])
def test_slowfasts_recipe_is_pyslowfasts(name: str, octvideo: Callable[..., tuple[str, str]]) -> None:
    """Its configs/Kinetics/SLOWFAST_4x16_R50.yaml, SLOWFAST_8x8_R50.yaml and SLOW_8x8_R50.yaml. jhmdb_slowfast_oct
    trains a smaller one."""
    octvideo("fit", "-c", name, "--print_config")  # all keys are there
    content = merged(CONFIGS / f"{name}.yaml")
    model, data = content["model"], content["data"]
    assert (model["lr"], model["schedule"], model["warmup_epochs"]) == (0.1, "cosine", 34)
    assert content["trainer"]["max_epochs"] == 196
    assert (model["weight_decay"], model["momentum"], 8 * data["batch_size"]) == (1e-4, 0.9, 64)
    assert (data["clip_frames"], data["frame_stride"]) == ((32, 2) if "fast" in name else (8, 8))
    assert data["crop_px"] == 256 and ("fast" in name or model["precise_bn"] == 200)
    assert data["augment"] == {"crop_px": 224, "short_side_px": [256, 320], "flip": 0.5}
    assert model["network"]["init_args"]["dropout"] == 0.5


@pytest.mark.parametrize("name", ["x3d_xs", "x3d_s", "x3d_s_oct", "x3d_m", "x3d_m_oct", "x3d_l"])
def test_x3ds_recipe_is_pyslowfasts(name: str) -> None:
    """Its configs/Kinetics/X3D_XS.yaml, X3D_S.yaml, X3D_M.yaml and X3D_L.yaml."""
    content = merged(CONFIGS / f"{name}.yaml")
    model, data = content["model"], content["data"]
    clips, epochs = (64, 256) if name == "x3d_l" else (128, 300)
    assert (model["lr"], model["schedule"], model["warmup_epochs"]) == (0.1 * clips / 128, "cosine", 35)
    assert content["trainer"]["max_epochs"] == epochs and model["precise_bn"] == 200
    assert (model["weight_decay"], model["momentum"], 8 * data["batch_size"]) == (5e-5, 0.9, clips)
    form = CLIP_FORMS[name.removesuffix("_oct")]
    assert (data["clip_frames"], data["frame_stride"]) == (form.frames, form.stride)
    assert (data["augment"]["crop_px"], data["crop_px"]) == (form.train_px, form.test_px)
    short_sides = {160: [182, 228], 224: [256, 320], 312: [356, 446]}
    assert data["augment"]["short_side_px"] == short_sides[form.train_px]
    assert model["network"]["init_args"]["dropout"] == 0.5


@pytest.mark.parametrize("name", ["tsm_resnet50", "tsm_mobilenet_v2", "tsm_mobilenet_v2_oct"])
def test_temporal_shifts_recipe_is_its_authors(name: str) -> None:
    """README of github.com/mit-han-lab/temporal-shift-module, its 50 epochs and two steps doubled."""
    content = merged(CONFIGS / f"{name}.yaml")
    model, data, trainer = content["model"], content["data"], content["trainer"]
    assert model["lr"] * 128 / (8 * data["batch_size"]) == 0.02 and model["gamma"] == 0.1
    assert (trainer["max_epochs"], model["milestones"], trainer["gradient_clip_val"]) == (100, [40, 80], 20.0)
    assert model["weight_decay"] == (1e-4 if name == "tsm_resnet50" else 2e-5)
    assert (data["clip_frames"], data["frame_stride"], data["num_clips"], data["num_crops"]) == (8, 8, 10, 3)
    init_args = model["network"]["init_args"]
    assert (init_args["shift"], init_args["dropout"]) == (1 / 8, 0.5)
    pixels = PixelScale(tuple(model["mean"]), tuple(model["std"]))
    assert pixels.is_close(library_pixels(init_args["network"]))


@pytest.mark.parametrize("name", ["i3d", "i3d_pool", "i3d_oct", "c2d", "c2d_oct", "i3d_nl", "i3d_nl_oct"])
def test_the_kinetics_recipe_is_the_papers(name: str) -> None:
    """Non-local networks' recipe, from arXiv 1904.05049: in iterations and clips, as printed there."""
    content = merged(CONFIGS / f"{name}.yaml")
    model, data = content["model"], content["data"]
    clips_per_epoch, clips_per_iteration = 240_000, 64
    assert content["trainer"]["max_epochs"] * clips_per_epoch / clips_per_iteration == 300_000
    steps = [milestone * clips_per_epoch / clips_per_iteration for milestone in model["milestones"]]
    assert steps == pytest.approx([150_000, 250_000], rel=0.01)
    assert (model["lr"], model["gamma"], model["weight_decay"], model["momentum"]) == (0.01, 0.1, 1e-4, 0.9)
    assert (data["clip_frames"], data["frame_stride"], 8 * data["batch_size"]) == (8, 8, clips_per_iteration)
    assert (data["num_clips"], data["num_crops"], data["short_side_px"], data["crop_px"]) == (10, 3, 256, 256)
    assert data["augment"] == {"crop_px": 224, "short_side_px": [256, 320], "flip": 0.5}
    assert model["network"]["init_args"]["dropout"] == 0.5
