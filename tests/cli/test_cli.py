"""The command line as it is used: train, test, resume, predict, and every mistake told in one line."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Dataset

from octvideo.cli.config_files import prepare_argv
from octvideo.data.quarantine import read_quarantine
from octvideo.evaluation.scores import VideoScores
from octvideo.training.callbacks import ProgressBar

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def different(one: Path, other: Path) -> list[str]:
    """Keys whose weights are not equal bit for bit."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


def last(name: str) -> Path:
    return Path("runs", name, "checkpoints", "last.ckpt")


# ── a run from beginning to end ─────────────────────────────────────────────────────────────────────────────


def test_fit_test_and_infer_on_one_run(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    out, _ = octvideo(*FIT)
    assert "octvideo.models.i3d_small {'num_classes': 3, 'alpha': 0.25" in out
    assert re.search(r"epoch 2/2  train/loss [\d.]+  train/top1 [\d.]+ %  val/loss [\d.]+  val/top1 [\d.]+ %", out)
    run = Path("runs/tiny")
    there = {path.name.partition(".tfevents.")[0] for path in run.rglob("*") if path.is_file()}
    assert there == {"config.yaml", "metrics.csv", "events.out", "last.ckpt", "best.ckpt"}
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert [row["step"] for row in rows if row["val/top1"]] == ["2", "5"]

    # As the last line of the fit says.
    assert "test it with: octvideo test -c runs/tiny/config.yaml" in out
    out, _ = octvideo("test", "-c", "runs/tiny/config.yaml")
    assert "checkpoint: runs/tiny/checkpoints/best.ckpt" in out and "top-1" in out and "5 videos, 3 classes" in out
    scores = VideoScores.load(run / "scores.npz")
    listed = [line.rpartition(" ")[0] for line in (tiny_data / "test.txt").read_text().splitlines()]
    assert scores.paths == [str(tiny_data / path) for path in listed]
    metrics = json.loads((run / "metrics_test.json").read_text())
    assert metrics["top1"] == pytest.approx(np.mean(scores.scores.argmax(1) == scores.labels))
    assert (metrics["videos"], metrics["unreadable"]) == (5, 0)
    with (run / "predictions.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == scores.paths

    video = tiny_data / listed[0]
    out, _ = octvideo(
        "infer", video, "--ckpt", run / "checkpoints" / "best.ckpt", "--precision", "f32", "--json", "--topk", 3
    )
    top = {entry["name"]: entry["score"] for entry in json.loads(out)["videos"][0]["top"]}
    expected = dict(zip(scores.class_names, scores.scores[0].tolist(), strict=True))
    assert top == pytest.approx(expected, abs=1e-5)


def test_the_saved_config_repeats_the_run(octvideo: Cli, workplace: Path) -> None:
    octvideo(*FIT, "--model.lr", 0.02, "--trainer.max_epochs=1", "--name", "a")
    saved = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    assert (saved["model"]["lr"], saved["trainer"]["max_epochs"], saved["name"]) == (0.02, 1, "a")
    assert saved["model"]["network"]["init_args"]["num_classes"] == 3
    octvideo("fit", "-c", "runs/a/config.yaml", "--name", "b")
    assert different(last("a"), last("b")) == []


def test_a_config_starts_from_its_base_and_the_command_line_has_the_last_word(octvideo: Cli, workplace: Path) -> None:
    Path("more.yaml").write_text("base: tiny.yaml\nmodel:\n  network:\n    init_args: {alpha: 0.5}\n  lr: 0.5\n")
    out, _ = octvideo("fit", "-c", "more", "--model.lr", 0.25, "--print_config")
    config = yaml.safe_load(out)
    assert config["model"]["network"]["init_args"]["alpha"] == 0.5
    assert config["model"]["network"]["init_args"]["width"] == 8
    assert config["model"]["lr"] == 0.25


@pytest.mark.slow
def test_a_config_keeps_module_classes_whole(octvideo: Cli, workplace: Path) -> None:
    """A network with code that cannot be traced: its class is named in the YAML, and the checkpoint remembers."""
    network = {
        "class_path": "octvideo.models.frame_network",
        "init_args": {
            "network": "timm:mobilevit_xxs",
            "num_classes": 3,
            "alpha": 0.25,
            "octave": {"leaf_modules": ["timm.models.mobilevit.MobileVitBlock"]},
        },
    }
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    config["model"]["network"] = network
    Path("whole.yaml").write_text(yaml.safe_dump(config))
    octvideo("fit", "-c", "whole", "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    out, _ = octvideo("test", "-c", "runs/whole/config.yaml")
    assert "5 videos, 3 classes" in out


@pytest.mark.usefixtures("trained")
def test_the_same_seed_gives_the_same_weights_whatever_the_workers(octvideo: Cli) -> None:
    octvideo(*FIT, "--name", "two", "--data.num_workers", 2)
    octvideo(*FIT, "--name", "other", "--seed_everything", 1)
    assert different(last("tiny"), last("two")) == []
    assert different(last("tiny"), last("other")) != []


def test_predict_takes_a_folder_without_labels_and_leaves_the_tests_scores(
    octvideo: Cli, trained: Path, tiny_data: Path
) -> None:
    octvideo("test", "--name", "tiny")
    before = Path("runs/tiny/scores.npz").read_bytes()
    folder = trained / "to name"
    folder.mkdir()
    for number, source in enumerate(sorted(tiny_data.glob("test/*/*.mp4"))[:3]):
        (folder / f"{number}.mp4").write_bytes(source.read_bytes())
    out, _ = octvideo("predict", "--name", "tiny", "--data.predict", folder)
    assert "written: runs/tiny/predict/scores.npz, predictions.csv" in out
    scores = VideoScores.load("runs/tiny/predict/scores.npz")
    assert scores.paths == [str(folder / f"{number}.mp4") for number in range(3)]
    assert scores.labels.tolist() == [-1, -1, -1]
    with Path("runs/tiny/predict/predictions.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["", "", ""]
    assert Path("runs/tiny/scores.npz").read_bytes() == before


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_with_a_folder_a_space_and_dots(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    """By its name and by what the fit said; all ways: the next test."""
    name = "a b/c_a0.25.yaml"
    out, _ = octvideo(*FIT, "--name", name, "--trainer.max_epochs", 1)
    assert Path("runs", name, "checkpoints/last.ckpt").exists()
    octvideo(*shlex.split(out[out.index("octvideo test") :])[1:4])
    assert Path("runs", name, "scores.npz").exists()
    _, err = octvideo("infer", next(tiny_data.glob("test/*/*.mp4")), "--ckpt", name)
    assert f"weights: {Path('runs', name)}/checkpoints/last.ckpt" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b/c_a0.25.yaml", "exp/one", "{}/elsewhere/007"])
def test_a_run_is_found_by_the_name_that_was_typed(name: str, octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    name = name.format(workplace)
    folder = workplace / "runs" / name
    out, _ = octvideo(*FIT, "--name", name, "--trainer.max_epochs", 1)
    assert sorted(file.relative_to(workplace) for file in workplace.rglob("last.ckpt")) == [
        (folder / "checkpoints/last.ckpt").relative_to(workplace)
    ]
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == (name if "elsewhere" not in name else "007")
    as_said = shlex.split(out[out.index("octvideo test") :])
    by_checkpoint = ("test", "--ckpt", name if "elsewhere" in name else "last")
    for words in (("test", "--name", name), as_said[1:4], by_checkpoint):
        (folder / "scores.npz").unlink(missing_ok=True)
        octvideo(*words)
        assert (folder / "scores.npz").exists(), words
    octvideo("predict", "--name", name, "--data.predict", tiny_data / "test")
    assert (folder / "predict/scores.npz").exists()
    octvideo("fit", "--name", name, "--resume", "--trainer.max_epochs", 2)
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    _, err = octvideo("infer", next(tiny_data.glob("test/*/*.mp4")), "--ckpt", name)
    assert f"weights: {Path('runs', name)}/checkpoints/last.ckpt" in err


def test_configs_with_dots_in_their_names(octvideo: Cli, workplace: Path) -> None:
    Path("tiny.yaml").rename("tiny_a0.25.yaml")
    Path("more_0.5.yaml").write_text("base: tiny_a0.25\nmodel:\n  lr: 0.5\n")
    octvideo("fit", "-c", "tiny_a0.25", "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    assert last("tiny_a0.25").exists()
    out, _ = octvideo("fit", "-c", "more_0.5", "--print_config=skip_default")
    config = yaml.safe_load(out)
    assert config["model"] == {
        "network": {"class_path": "octvideo.models.i3d_small", "init_args": {"alpha": 0.25, "width": 8}},
        "lr": 0.5,
    }


def test_a_callback_whose_default_is_an_enum_is_in_the_config(octvideo: Cli, workplace: Path) -> None:
    out, _ = octvideo("fit", "-c", "tiny", "--trainer.callbacks", "Timer", "--print_config")
    assert yaml.safe_load(out)["trainer"]["callbacks"]["init_args"]["interval"] == "step"


def test_a_run_whose_folder_was_moved_is_where_it_is(octvideo: Cli, trained: Path) -> None:
    Path("runs/tiny").rename("runs/moved")
    octvideo("test", "-c", "runs/moved/config.yaml")
    assert Path("runs/moved/scores.npz").exists() and not Path("runs/tiny").exists()


@pytest.mark.parametrize("name", ["last", "best", "", ".", "a/../b", "x/checkpoints/y", " a", "a\nb"])
def test_what_can_be_no_name_of_a_run_is_refused(name: str, octvideo: Cli, workplace: Path) -> None:
    _, err = octvideo(*FIT, "--name", name, code=2)
    assert err.splitlines()[-1].startswith(f"error: a run can't be called {name!r}: expected a name other than 'last'")
    assert not Path("runs").exists()


def test_paths_are_read_as_a_shell_reads_them(
    octvideo: Cli, workplace: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workplace / "home"))
    monkeypatch.setenv("TINY_DATA", str(tiny_data))
    Path("home/lists").mkdir(parents=True)
    Path("home/lists/train.txt").write_bytes((tiny_data / "train.txt").read_bytes())
    Path("home/tiny.yaml").write_text(Path("tiny.yaml").read_text().replace(str(tiny_data), "${TINY_DATA}"))
    Path("mine.yaml").write_text("base: ~/tiny.yaml\nruns_dir: $HOME/runs\ndata: {train: ~/lists/train.txt}\n")
    octvideo("fit", "-c", "mine", "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    checkpoint = workplace / "home/runs/mine/checkpoints/last.ckpt"
    assert checkpoint.exists() and not Path("~").exists() and not Path("runs").exists()
    octvideo(
        "fit", "-c", "~/tiny", "--init=~/runs/mine/checkpoints/last.ckpt", "--name", "b", "--trainer.max_epochs", 1
    )
    for words in (["--ckpt=~/runs/mine/checkpoints/last.ckpt"], ["--runs_dir=~/runs", "--ckpt=last"]):
        out, _ = octvideo("test", *words)
        assert f"checkpoint: {checkpoint}" in out
    _, err = octvideo("infer", next(tiny_data.glob("test/*/*.mp4")), "--runs_dir=$HOME/runs", "--ckpt", "mine")
    assert f"weights: {checkpoint}" in err


# ── data as data/README.md lays it out ──────────────────────────────────────────────────────────────────────


def test_a_folder_of_class_folders(
    octvideo: Cli, workplace: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        (workplace / "mine" / split / "empty").mkdir(parents=True)
        for name in ("down", "left", "right"):
            (workplace / "mine" / split / name).symlink_to(tiny_data / split / name)
    mine = ("--data.train", "train", "--data.val", "null", "--data.test", "test", "--data.classes", "null")
    octvideo(*FIT, "--name", "mine", "--data.root", "mine", *mine)
    assert caplog.messages.count("mine/train: folders without videos of their own are no classes: 'empty'") == 1
    out, _ = octvideo("test", "--name", "mine")
    assert "checkpoint: runs/mine/checkpoints/last.ckpt" in out and "5 videos, 3 classes" in out
    assert VideoScores.load("runs/mine/scores.npz").class_names == ["down", "left", "right"]


@pytest.mark.parametrize("layout", [pytest.param("train/{file}", marks=pytest.mark.slow), "train/{label}/{file}"])
def test_the_kinetics_download(layout: str, octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    names = {"down": "abseiling", "left": "air drumming", "right": "zumba"}
    rows = ["label,youtube_id,time_start,time_end,split", "zumba,-__________-,0,10,train"]  # one that is gone
    for number, source in enumerate(sorted(tiny_data.glob("train/*/*.mp4"))):
        label, start = names[source.parent.name], 100 * number
        file = f"-_{number:09d}_{start:06d}_{start + 10:06d}.mp4"
        path = workplace / "k400" / layout.format(file=file, label=label.replace(" ", "_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)
        rows.append(f'"{label}",-_{number:09d},{start},{start + 10},train')
    (workplace / "k400" / "annotations").mkdir()
    (workplace / "k400" / "annotations" / "train.csv").write_text("\n".join(rows))
    kinetics = ("--data.train", "annotations/train.csv", "--data.val", "null", "--data.classes", "kinetics400")
    octvideo(*FIT, "--data.root", "k400", *kinetics)
    block = torch.load(last("tiny"), weights_only=True)["octvideo"]
    assert block["network"]["init_args"]["num_classes"] == 400 and block["class_names"][399] == "zumba"
    out, _ = octvideo("test", "--name", "tiny", "--data.test", "annotations/train.csv")
    assert "9 videos, 400 classes" in out
    assert sorted(set(VideoScores.load("runs/tiny/scores.npz").labels)) == [0, 1, 399]


# ── other weights, other classes ────────────────────────────────────────────────────────────────────────────


def test_init_swaps_the_head_and_a_frozen_backbone_stays(octvideo: Cli, trained: Path, tiny_data: Path) -> None:
    Path("two.txt").write_text("down\nleft\n")
    for split in ("train", "test"):
        lines = [line for line in (tiny_data / f"{split}.txt").read_text().splitlines() if not line.endswith("2")]
        Path(f"{split}.txt").write_text("\n".join(lines))
    two = ["--data.train", trained / "train.txt", "--data.val", trained / "test.txt"]
    two += ["--data.classes", trained / "two.txt", "--name", "two"]
    out, _ = octvideo(*FIT, *two, "--init", last("tiny"), "--model.freeze", "backbone")
    assert "new head (3 -> 2 classes)" in out
    before, after = weights(last("tiny")), weights(last("two"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".proj." in key}
    assert {after[key].shape[0] for key in changed} == {2}

    # The run's config names the weights that it started from; a test of the run takes what it learnt.
    out, _ = octvideo("test", "--name", "two")
    assert "checkpoint: runs/two/checkpoints/best.ckpt" in out and "2 classes" in out
    # A resumed run does not start from them again.
    octvideo("fit", "--name", "two", "--resume", "--trainer.max_epochs", 3)
    assert torch.load(last("two"), weights_only=True)["epoch"] == 2


@pytest.mark.usefixtures("trained")
def test_weights_without_a_run_are_tested_with_init(octvideo: Cli) -> None:
    octvideo("test", "-c", "tiny", "--ckpt", "last")
    out, _ = octvideo("test", "-c", "tiny", "--init", last("tiny"), "--name", "other")
    assert "checkpoint:" not in out
    one, other = (VideoScores.load(f"runs/{name}/scores.npz") for name in ("tiny", "other"))
    assert np.array_equal(one.scores, other.scores)


def test_what_a_checkpoint_scores_lies_in_its_own_run(
    octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    octvideo(*FIT, "--name", "other")
    octvideo("test", "-c", "tiny", "--ckpt", last("other"))
    assert Path("runs/other/scores.npz").exists() and not Path("runs/tiny").exists()
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    octvideo("predict", "--ckpt", workplace / last("other"))
    assert (workplace / "runs/other/predict/scores.npz").exists() and not Path("runs").exists()


def test_a_checkpoint_of_other_classes_is_refused(octvideo: Cli, trained: Path) -> None:
    Path("four.txt").write_text("down\nleft\nright\nup\n")
    # The run's own config has its number of classes too: that is not what to change.
    for command in (("test", "-c", "tiny"), ("test", "--name", "tiny"), ("fit", "--name", "tiny", "--resume")):
        _, err = octvideo(*command, "--data.classes", trained / "four.txt", code=2)
        assert err.splitlines()[-1] == (
            "error: the checkpoint was trained on other classes than the data (without 'up'): give its classes in "
            "data.classes, or start a new head from its weights with --init"
        )


# ── interrupted runs ────────────────────────────────────────────────────────────────────────────────────────


def stopped_by(how: str, step: int) -> tuple[object, ...]:
    """Options of a run that ends so before its next batch."""
    return ("--trainer.callbacks", "stop_run.StopRun", "--trainer.callbacks.step", step, "--trainer.callbacks.how", how)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """StopRun and KeepRuns can be given to `octvideo`; a process of its own would import all libraries again."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells' background jobs ignore
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def killed(octvideo: Cli, workplace: Path, in_this_process: None) -> Path:
    """A folder to work in: runs/tiny was killed at step 5 of 6, in its second epoch, with a checkpoint of that step."""
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5)
    octvideo(*FIT, "--checkpoint_minutes", 0, *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    return workplace


@pytest.mark.parametrize(
    ("how", "code", "own_process"),
    [
        ("SIGINT", 130, False),
        pytest.param("SIGINT", 130, True, marks=pytest.mark.slow),
        pytest.param("SIGKILL", -signal.SIGKILL, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("in_this_process", "trained")
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    how: str, code: int, own_process: bool, octvideo: Cli, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 batches an epoch: step 4 is in the second epoch, and last.ckpt is of the end of the first.
    words = (*FIT, "--name", "stopped", *stopped_by(how, 4))
    if own_process:
        ended = start(*words)
        assert ended.returncode == code, ended.stderr
        err = ended.stderr
    else:
        monkeypatch.setattr(sys, "argv", ["octvideo", *map(str, words)])  # what the command says to go on with
        _, err = octvideo(*words, code=code)
    assert torch.load(last("stopped"), weights_only=True)["global_step"] == 3
    if how == "SIGINT":
        assert "Stopped in epoch 2/2. runs/stopped/checkpoints/last.ckpt is kept. Go on with:" in err
        assert "--name stopped" in err and "--resume" in err
        assert "Traceback" not in err
    octvideo(*FIT, "--name", "stopped", "--resume")
    assert_same_runs("stopped", "tiny")
    # The averages of a half epoch are of its half.
    rows = [Path("runs", name, "metrics.csv").read_text() for name in ("stopped", "tiny")]
    assert rows[0] == rows[1]


def assert_same_runs(one: str, other: str) -> None:
    """The same weights in the end, and the same best score."""
    assert different(last(one), last(other)) == []
    best = [torch.load(last(name), weights_only=True)["callbacks"] for name in (one, other)]
    scores = [[s["best_model_score"] for key, s in state.items() if "val/top1" in key] for state in best]
    assert scores[0] == scores[1] and len(scores[0]) == 1


@pytest.mark.usefixtures("killed")
def test_a_run_that_was_killed_within_an_epoch_goes_on_within_it(octvideo: Cli, trained_once: Path) -> None:
    assert torch.load(last("tiny"), weights_only=True)["global_step"] == 5
    octvideo(*FIT, "--resume", "--data.num_workers", 2)
    shutil.copytree(trained_once / "runs" / "tiny", "runs/whole")
    assert_same_runs("tiny", "whole")


@pytest.mark.slow
def test_a_run_that_stopped_within_an_epoch_goes_on_with_smaller_batches_or_says_why_not(
    octvideo: Cli, killed: Path, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = last("tiny").read_bytes()
    # 6 of the second epoch's 9 videos are seen.
    out, _ = octvideo(*FIT, "--resume", "--data.batch_size", 1)
    assert re.search(r"^epoch 2/2  \(resumed: the last 3 of 9 batches alone\)  train/loss [\d.]+ ", out, re.MULTILINE)
    assert torch.load(last("tiny"), weights_only=True)["global_step"] == 5 + 3 and "anew" not in caplog.text

    last("tiny").write_bytes(left)
    (killed / "quarantine.txt").write_text(f"{next(tiny_data.glob('train/*/*.mp4'))}\n")
    octvideo(*FIT, "--resume", "--data.batch_size", 4, "--data.quarantine", killed / "quarantine.txt")
    reason = "its checkpoint was trained on another list of videos, or with another quarantine list"
    assert f"epoch 2 starts anew: {reason}" in caplog.messages
    assert torch.load(last("tiny"), weights_only=True)["global_step"] == 5 + 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_sigterm_says_so(workers: int, start: Callable[..., object], workplace: Path) -> None:
    """With loading processes, which the end of a job sends it to as well."""
    ended = start(*FIT, *stopped_by("SIGTERM", 4), "--data.num_workers", workers)
    assert ended.returncode == 143, ended.stderr
    assert last("tiny").exists() and "Traceback" not in ended.stderr and "error:" not in ended.stderr
    assert "Stopped in epoch 2/2. runs/tiny/checkpoints/last.ckpt is kept. Go on with:" in ended.stderr


class Terminated(Dataset[int]):
    """Its loading process is sent SIGTERM, and no item ever comes."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        while True:
            os.kill(os.getpid(), signal.SIGTERM)


def computing() -> None:
    """What torch says where its loading process ends meanwhile."""
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")


def waiting() -> None:
    list(DataLoader(Terminated(), batch_size=None, num_workers=1))


@pytest.mark.parametrize("busy", [computing, waiting])
def test_a_loading_process_that_sigterm_ended_is_no_error(
    busy: Callable[[], None], octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the run computes or waits for a batch."""
    # Another test's run may have put its handler in the place of torch's, which is set once a process.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    monkeypatch.setattr(ProgressBar, "on_train_start", lambda *_: busy())
    _, err = octvideo("fit", "-c", "tiny", code=143)
    assert "Stopped in epoch 1/2. No checkpoint yet, the first epoch was not over: start again." in err
    assert "error" not in err


def test_a_config_without_the_runs_data_names_the_runs_own(octvideo: Cli, trained: Path) -> None:
    Path("runs/tiny").rename("runs/mine")
    Path("bare.yaml").write_text("model:\n  network: octvideo.models.i3d_small\n")
    _, err = octvideo("test", "-c", "bare", "--name", "mine", code=2)
    assert "data.root not given" in err and "the run's own config has them: octvideo test --name mine" in err
    _, err = octvideo("test", "-c", "bare", "--name", "other", "--data.num_clips", 1, code=2)
    assert "own config" not in err
    # One that has other data, as those that octvideo brings where the run's were given on the command line.
    Path("four.txt").write_text("down\nleft\nright\nup\n")
    for data in (("--data.classes", "four.txt"), ("--data.root", "nowhere")):
        _, err = octvideo("test", "-c", "tiny", "--name", "mine", *data, code=2)
        assert err.endswith("; the run's own config has its data: octvideo test --name mine\n")
        _, err = octvideo("test", "-c", "runs/mine/config.yaml", "--name", "mine", *data, code=2)
        assert "own config" not in err
    octvideo("test", "--name", "mine")  # as it says


@pytest.mark.usefixtures("trained")
def test_a_finished_run_is_not_trained_again(octvideo: Cli) -> None:
    before = weights(last("tiny"))
    out, _ = octvideo(*FIT, "--resume")
    assert "epoch 3" not in out
    assert all(torch.equal(value, before[key]) for key, value in weights(last("tiny")).items())


# ── a run that is there already ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("trained")
def test_a_run_is_not_replaced_unasked(octvideo: Cli) -> None:
    before = last("tiny").read_bytes()
    _, err = octvideo(*FIT, code=2)
    assert "runs/tiny already holds a run: add --resume to continue it" in err
    # Asked, but with a mistake in the data or the weights: the old run is still there.
    octvideo(*FIT, "--overwrite", "--data.train", "none.txt", code=2)
    octvideo(*FIT, "--overwrite", "--init", "none.ckpt", code=2)
    # Nor does a fit from another run's checkpoint mix with it.
    octvideo(*FIT, "--ckpt", "runs/tiny/checkpoints/last.ckpt", "--name", "other", "--trainer.max_epochs", 3)
    _, err = octvideo(*FIT, "--ckpt", "runs/other/checkpoints/last.ckpt", code=2)
    assert "runs/tiny already holds a run" in err
    assert last("tiny").read_bytes() == before
    octvideo(*FIT, "--overwrite", "--trainer.max_epochs", 1)
    assert torch.load(last("tiny"), weights_only=True)["epoch"] == 0
    assert len(list(Path("runs/tiny").glob("events.out.tfevents.*"))) == 1


def test_one_command_starts_a_run_and_goes_on_with_it(octvideo: Cli, workplace: Path) -> None:
    words = (*FIT, "--resume", "auto", "--trainer.max_epochs")
    # A first start that was killed before its first checkpoint has left this.
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/metrics.csv").write_text("epoch,step,train/loss_step\n0,0,9.75\n")
    Path("runs/tiny/config.yaml").write_text("{}")
    out, _ = octvideo(*words, 1)
    assert "checkpoint:" not in out and "9.75" not in Path("runs/tiny/metrics.csv").read_text()
    out, _ = octvideo(*words, 2)
    assert "checkpoint: runs/tiny/checkpoints/last.ckpt" in out and "epoch 1/2" not in out and "epoch 2/2" in out
    # As many steps as in a run of two epochs; the schedule of a run of one ends there, so that weights differ.
    assert torch.load(last("tiny"), weights_only=True)["global_step"] == 6


# ── loggers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "files"),
    [
        pytest.param(["TensorBoardLogger"], ["lightning_logs/version_0/events.out"], marks=pytest.mark.slow),
        pytest.param(["CSVLogger"], ["lightning_logs/version_0/metrics.csv"], marks=pytest.mark.slow),
        (["[{class_path: CSVLogger, init_args: {save_dir: logs}}, TensorBoardLogger]"], ["../../logs/lightning_logs"]),
        pytest.param(["MLFlowLogger"], ["mlruns/*/*/metrics/val/top1"], marks=pytest.mark.slow),  # not everywhere
    ],
    ids=["TensorBoard", "CSV", "two", "MLflow"],
)
def test_loggers_are_added_to_the_runs_own(
    words: list[str], files: list[str], octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == ["MLFlowLogger"]:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants a word for files
    octvideo(*FIT, "--trainer.max_epochs", 1, "--trainer.logger", *words)
    run = Path("runs/tiny")
    for pattern in ("metrics.csv", "events.out.tfevents.*", "config.yaml", "checkpoints/last.ckpt"):
        assert len(list(run.glob(pattern))) == 1, pattern
    for file in files:
        assert list(run.glob(f"{file}*")), file
    # A test writes its config there too, and with the run's config another run has its own place.
    octvideo("test", "--name", "tiny")
    assert (run / "config_test.yaml").exists() and not Path("config_test.yaml").exists()
    before = sorted(run.rglob("*"))
    octvideo("fit", "-c", "runs/tiny/config.yaml", "--name", "b", "--trainer.enable_progress_bar", "false")
    assert sorted(run.rglob("*")) == before
    assert {path.name for path in workplace.iterdir()} - {"logs"} == {"runs", "tiny.yaml"}


# ── videos that can't be read ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken(workplace: Path, tiny_data: Path) -> Path:
    """A folder with train.txt and test.txt, each with one broken video in the middle."""
    (workplace / "broken.mp4").write_bytes(b"no video")
    for split in ("train", "test"):
        lines = [str(tiny_data / line) for line in (tiny_data / f"{split}.txt").read_text().splitlines()]
        lines.insert(3, f"{workplace / 'broken.mp4'} 1")
        (workplace / f"{split}.txt").write_text("\n".join(lines))
    return workplace


def test_training_skips_and_counts_a_broken_video_up_to_a_bound(
    octvideo: Cli, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*FIT, "--data.train", broken / "train.txt", "--data.batch_size", 5)
    _, err = octvideo(*words, code=2)
    assert "1 of 10 videos of this epoch could not be read, more than the 1.0% that" in err
    assert f"the first: '{broken / 'broken.mp4'}'" in err
    out, _ = octvideo(*words, "--model.max_unreadable_fraction", 0.1)
    assert f"1 videos could not be read in training:\n  {broken / 'broken.mp4'}: " in out
    assert f"skipped in training: cannot read video '{broken / 'broken.mp4'}'" in caplog.text
    with Path("runs/tiny/metrics.csv").open() as file:
        assert [row["train/unreadable"] for row in csv.DictReader(file) if row["train/loss"]] == ["1.0", "1.0"]


def test_a_fifth_of_a_data_set_is_broken(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    """It trains to the end and tests, lists every broken video, and counts only what was read."""
    broken: dict[str, list[str]] = {"train": [], "test": []}
    for split, kinds in (("train", (b"", b"no video", None)), ("test", (b"no video",))):
        lines = [str(tiny_data / line) for line in (tiny_data / f"{split}.txt").read_text().splitlines()]
        for number, content in enumerate(kinds):
            file = workplace / f"broken {split} {number}.mp4"
            if content is not None:
                file.write_bytes(content)
            lines.insert(3 * number, f"{file} {number}")
            broken[split].append(str(file))
        (workplace / f"{split}.txt").write_text("\n".join(lines))
    data = ("--data.train", workplace / "train.txt", "--data.val", workplace / "test.txt")
    words = ("--model.max_unreadable_fraction", 0.25, "--model.on_unreadable", "count", "--data.batch_size", 4)
    out, _ = octvideo(*FIT, *data, *words, "--trainer.max_epochs", 1)
    _, named = read_quarantine(Path("runs/tiny/unreadable.txt"))
    assert sorted(path for path, _ in named) == sorted(broken["train"] + broken["test"])
    assert {reason for _, reason in named} >= {"the file is empty", "no such file"}
    assert all(f"  {path}: {reason}\n" in out for path, reason in named)
    assert "3 videos could not be read in training:" in out and "1 videos could not be read in validation:" in out
    with Path("runs/tiny/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val/unreadable"] for row in rows if row["val/top1"]] == ["1.0"]
    octvideo("test", "--name", "tiny", "--data.test", workplace / "test.txt", "--model.on_unreadable", "count")
    assert [path for path, _ in read_quarantine(Path("runs/tiny/unreadable_test.txt"))[1]] == broken["test"]
    scores = VideoScores.load(Path("runs/tiny/scores.npz"))
    metrics = json.loads(Path("runs/tiny/metrics_test.json").read_text())
    assert (metrics["videos"], metrics["unreadable"]) == (len(scores), 1) == (5, 1)
    assert metrics["top1"] == pytest.approx((scores.scores.argmax(1) == scores.labels).mean())
    # What a run lists, the next one leaves out: it finds nothing broken.
    quarantined = ("--data.quarantine", workplace / "runs/tiny/unreadable.txt")
    out, _ = octvideo(*FIT, *data, "--name", "clean", *quarantined, "--trainer.max_epochs", 1)
    assert "could not be read" not in out and not Path("runs/clean/unreadable.txt").exists()
    octvideo("test", "--name", "tiny", "--data.test", tiny_data / "test.txt")  # nothing broken: no list of an old test
    assert not Path("runs/tiny/unreadable_test.txt").exists()


@pytest.mark.usefixtures("trained")
def test_a_test_stops_at_a_broken_video_unless_told_to_count_it(octvideo: Cli, broken: Path) -> None:
    words = ("test", "--name", "tiny", "--data.test", broken / "test.txt")
    _, err = octvideo(*words, code=2)
    assert f"error: cannot read video '{broken / 'broken.mp4'}': " in err and "--model.on_unreadable count" in err
    assert not Path("runs/tiny/scores.npz").exists()
    out, _ = octvideo(*words, "--model.on_unreadable", "count")
    assert "1 videos could not be read and are in none of these figures" in out
    metrics = json.loads(Path("runs/tiny/metrics_test.json").read_text())
    assert (metrics["videos"], metrics["unreadable"]) == (5, 1)


# ── mistakes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit -c nope", "no config 'nope': looked for nope.yaml"),
        ("fit", "model.network, data.root not given: start from a config, octvideo fit -c "),
        ("", "no command given"),
        ("train -c tiny", "no command 'train': there are fit, validate, test, predict, configs, infer"),
        ("fit -c tiny --model.lrr 3", "no option --model.lrr (did you mean --model.lr?)"),
        pytest.param(
            "fit -c tiny --model.learning_rate 3",
            "no option --model.learning_rate (did you mean --model.lr?)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fit -c tiny --num_workers 2",
            "no option --num_workers (did you mean --data.num_workers?)",
            marks=pytest.mark.slow,
        ),
        ("fit -c tiny --max_epoch 2", "no option --max_epoch (did you mean --trainer.max_epochs?)"),
        ("fit -c tiny stray", "'stray' belongs to no option"),
        ("fit -c tiny --model.lr high", "model.lr: expected float, got high"),
        pytest.param(
            "fit -c tiny --trainer.max_epochs x",
            "trainer.max_epochs: expected int or null, got x",
            marks=pytest.mark.slow,
        ),
        ("fit -c tiny --trainer.precision x", "expected 64, 32, 16, transformer-engine, transformer-"),
        ("fit -c tiny --trainer.devices x", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("fit -c tiny --resume x", "resume: expected bool or auto, got x"),
        ("fit -c tiny --model.schedule line", "model.schedule: expected cosine, step or constant, got line"),
        ("fit -c tiny --model.network.init_args.alpah 1", "has no argument 'alpah' (did you mean alpha?)"),
        (
            "fit -c tiny --model.network.init_args.alpha x",
            "alpha of octvideo.models.i3d_small: expected float or dict[str, float], got x",
        ),
        ("fit -c tiny --model.network.init_args.alpha 3", "alpha: got 3.0, expected the share of low-frequency"),
        ("fit -c tiny --model.network octvideo.models.i3d", "octvideo.models has no 'i3d': there are c2d_r50, "),
        ("fit -c tiny --model.network nowhere.net", "can't import nowhere.net (No module named 'nowhere')"),
        ("fit -c tiny --model.network.init_args.num_classes 7", "num_classes is 7, but the data has 3 classes"),
        ("fit -c tiny --data.root nowhere", "no data for data.train 'train.txt': looked for "),
        pytest.param(
            "fit -c tiny --data.train no.txt", "no data for data.train 'no.txt': looked for ", marks=pytest.mark.slow
        ),
        ("fit -c tiny --data.augment.crop_px 99", "augment.short_side_px: got [32, 40], expected crop_px (99)"),
        ("fit -c tiny --trainer.accelerator abacus", "trainer: You selected an invalid accelerator name"),
        ("fit -c tiny --init no.ckpt", "no weights at no.ckpt: got no such file"),
        ("fit -c tiny --resume", "no last checkpoint: looked for runs/tiny/checkpoints/last.ckpt"),
        ("fit -c tiny --runs_dir tiny.yaml", "Not a directory: tiny.yaml/tiny"),
        ("fit -c key", "no key model.learning_rates"),
        ("fit -c value", "model.lr: expected float, got high"),
        ("fit -c text", "text.yaml: got a str, expected keys such as `model:` and `data:`"),
        ("fit -c torn", "torn.yaml:2: not YAML"),
        ("test -c tiny", "no last checkpoint: looked for runs/tiny/checkpoints/last.ckpt; train first"),
        pytest.param("test -c tiny --ckpt no.ckpt", "no checkpoint at no.ckpt", marks=pytest.mark.slow),
        ("test --ckpt no.ckpt", "no checkpoint at no.ckpt"),
        ("test --ckpt tiny.yaml", "tiny.yaml can't be read as a checkpoint"),
        pytest.param(
            "test -c tiny --ckpt tiny.yaml", "tiny.yaml can't be read as a checkpoint", marks=pytest.mark.slow
        ),
        ("test --name nope", "no run 'nope': there are none in runs. Give another --name, or a config with -c"),
        ("predict -c tiny --data.predict nope --init x.ckpt", "no data for data.predict 'nope': looked for "),
        ("infer nope.mp4", "no file or folder nope.mp4"),
        ("fit -c tiny --model.lr -1", "model.lr: got -1.0, expected 0 or more"),
        pytest.param(
            "fit -c tiny --model.weight_decay -0.1",
            "model.weight_decay: got -0.1, expected 0 or more",
            marks=pytest.mark.slow,
        ),
        ("fit -c tiny --resume --overwrite", "--resume goes on with the run, --overwrite replaces it: leave one of"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, octvideo: Cli, workplace: Path) -> None:
    Path("key.yaml").write_text("base: tiny.yaml\nmodel: {learning_rates: 1}\n")
    Path("value.yaml").write_text("base: tiny.yaml\nmodel: {lr: high}\n")
    Path("text.yaml").write_text("just words\n")
    Path("torn.yaml").write_text("model: {lr: 0.1\n")
    _, err = octvideo(*words.split(), code=2)
    lines = [line for line in err.splitlines() if not re.match(r"Seed set|GPU available|TPU available", line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert message in lines[0]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "EarlyStopping --trainer.callbacks.monitor val/no",
            "Early stopping conditioned on metric `val/no` which is not",
        ),
        (
            "ModelCheckpoint --trainer.callbacks.monitor val/no",
            "`ModelCheckpoint(monitor='val/no')` could not find the",
        ),
        (
            "LearningRateMonitor --trainer.logger false",
            "Cannot use `LearningRateMonitor` callback with `Trainer` that has",
        ),
        ("EarlyStopping", "trainer.callbacks: lightning.pytorch.callbacks.EarlyStopping needs monitor"),
    ],
)
def test_what_lightnings_callbacks_refuse_is_one_line(words: str, message: str, octvideo: Cli, workplace: Path) -> None:
    _, err = octvideo(*FIT, "--trainer.max_epochs", 1, "--trainer.callbacks", *words.split(), code=2)
    assert err.splitlines()[-1].startswith(f"error: {message}") and "Traceback" not in err
    assert err.count("error: ") == 1


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="it is installed")
@pytest.mark.parametrize("given", ["WandbLogger", "[WandbLogger, CSVLogger]"])
def test_a_logger_that_cannot_be_built_is_one_line(given: str, octvideo: Cli, workplace: Path) -> None:
    _, err = octvideo(*FIT, "--trainer.logger", given, code=2)
    assert re.fullmatch(
        r"error: .*Requirement 'wandb>=.*' not met. HINT: .*`pip install -U 'wandb>=.*'`", err.splitlines()[-1]
    )


def test_a_bug_is_one_line_with_its_type_and_place_and_debug_shows_the_rest(
    octvideo: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # stop_run is there
    _, err = octvideo(*FIT, "--trainer.callbacks", "stop_run.Unbuildable", code=1)
    assert err.splitlines()[-1].startswith("error: KeyError: 'a bug' (tests/cli/stop_run.py:")
    words = (*FIT, "--trainer.callbacks", "stop_run.Bug")
    _, err = octvideo(*words, code=1)
    assert re.fullmatch(
        r"error: KeyError: 'a bug' \(tests/cli/stop_run.py:\d+; --debug shows the traceback\)", err.splitlines()[-1]
    )
    assert "Traceback" not in err
    _, err = octvideo(*words, "--debug", code=1)
    assert "Traceback (most recent call last):" in err and "stop_run.py" in err
    assert re.fullmatch(r"error: KeyError: 'a bug' \(tests/cli/stop_run.py:\d+\)", err.splitlines()[-1])
    for words in (("fit", "-c", "nope"), ("infer", "nope.mp4")):
        _, err = octvideo(*words, "--debug", code=2)
        assert "Traceback (most recent call last):" in err and "octvideo.errors.UserError: no " in err
        assert err.splitlines()[-1].startswith("error: no ")


def test_the_help_is_a_page(octvideo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out, _ = octvideo("fit", "--help")
    lines = out.splitlines()
    assert len(lines) < 260 and max(map(len, lines)) <= 120 and "torch.nn." not in out
    ours, lightnings = out.split("Lightning's Trainer, a line each")
    assert "--trainer." not in ours
    for key in ("--name", "--resume", "--model.lr", "--data.augment.flip"):
        assert f"\n  {key} " in ours
    assert "--model.lr                          at the top of the schedule, for the whole batch (float; 0.01)" in ours
    assert "(Module; required)" in ours
    page, more = lightnings.split("\nMore:\n")
    assert all(re.match(r"  --trainer\.\w+|   ", line) for line in page.splitlines()[1:] if line)
    assert "--trainer.max_epochs                Stop training once this number of epochs is reached (null)\n" in page
    for word in ("--print_config=skip_default", "--model.network.help", "--trainer.callbacks.help", "--debug"):
        assert word in more


def test_the_help_of_a_builder(octvideo: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for words in (["octvideo.models.i3d_small"], ["i3d_small"]):
        out, _ = octvideo("fit", "--model.network.help", *words)
        assert out.startswith("octvideo.models.i3d_small: I3D with a quarter of the channels")
        assert "--model.network.init_args.width     channels of the stem, a quarter of res2's; the full" in out
        assert re.search(r"--model.network.init_args.downsample\n(?s:.*) \(stride,\s+pool\s+or\s+null; null\)", out)
    out, _ = octvideo("fit", "-c", "demo", "--model.network.help")
    assert "\n  octvideo.models.i3d_r50             I3D ResNet-50: 3x1x1 convolutions" in out
    out, _ = octvideo("fit", "--model.network.help=torch.nn.Linear")
    assert "--model.network.init_args.in_features" in out
    _, err = octvideo("fit", "--model.network.help", "i3d", code=2)
    assert err.startswith("error: octvideo.models has no 'i3d': there are c2d_r50")
    out, _ = octvideo("fit", "--trainer.callbacks.help", "EarlyStopping")
    assert "--trainer.callbacks.monitor         quantity to be monitored (str; required)" in out


def test_help_and_version(octvideo: Cli) -> None:
    out, _ = octvideo("--help")
    assert "octvideo infer" in out and "train a network" in out
    assert re.fullmatch(r"octvideo \d+\.\d+\.\d+\S*\n", octvideo("--version")[0])
    out, _ = octvideo("fit", "--help")
    assert out.startswith("usage: octvideo fit -c CONFIG [--KEY VALUE ...]") and "--model.lr" in out


def test_resuming_by_name_takes_the_runs_own_config(workplace: Path) -> None:
    Path("runs/demo").mkdir(parents=True)
    Path("runs/demo/config.yaml").write_text("{}")
    args, _ = prepare_argv(["fit", "--name", "demo", "--resume"])
    assert args == ["fit", "--config", "runs/demo/config.yaml", "--name", "demo", "--resume"]
