"""Comparing a recipe's parts: which commands run, what is kept, and what the table says."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml

from lab import recipes
from lab.recipes import PARTS, RecipeRun, RecipeSettings, commands, main, table, train
from octvideo.data.augment import Augmentation
from octvideo.data.datamodule import VideoDataModule
from octvideo.evaluation.scores import VideoScores
from octvideo.progress import Progress
from octvideo.training.module import VideoClassifier

VIDEOS = 40


@pytest.fixture
def settings(tmp_path: Path) -> RecipeSettings:
    return RecipeSettings("demo", tmp_path / "runs", 4, ("--init", "start.pth"))


def leave_tested(run: RecipeRun, settings: RecipeSettings, *, right: int, epochs: int = 4) -> None:
    """What a training and a test leave: the first `right` videos have their class named."""
    folder = settings.runs_dir / run.name
    folder.mkdir(parents=True)
    config = {"model": {"network": {"class_path": "x"}}, "data": {"root": "data"}, "trainer": {"max_epochs": epochs}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    labels = torch.zeros(VIDEOS, dtype=torch.long)
    scores = torch.tensor([[0.9, 0.1] if n < right else [0.1, 0.9] for n in range(VIDEOS)])
    VideoScores([f"{n}.mp4" for n in range(VIDEOS)], labels, scores, ["a", "b"]).save(folder / "scores.npz")


def test_every_part_is_a_key_that_fit_has(settings: RecipeSettings) -> None:
    has = {"model.": VideoClassifier, "data.augment.": Augmentation, "data.": VideoDataModule}
    for part in (*PARTS, "all"):
        words = commands(RecipeRun(part, 1), settings)[0][4:]
        epochs = "2" if part == "repeats" else "4"
        assert words[:2] == ["-c", "demo"] and words[words.index("--trainer.max_epochs") + 1] == epochs
        for key in RecipeRun(part, 1).options[::2]:
            room = next(room for room in has if key.startswith(f"--{room}"))
            assert key.removeprefix(f"--{room}") in inspect.signature(has[room]).parameters, key


def test_parts_differ_from_plain_on_the_same_videos(
    settings: RecipeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RecipeRun(part, seed) for part in ("plain", "mixup") for seed in (0, 1)]
    for run in runs[:3]:
        leave_tested(run, settings, right=20 if run.part == "plain" else 30)
    rows = table(runs, settings)
    assert [row[:2] for row in rows] == [("plain", "0 1"), ("mixup", "0")]
    assert rows[0][2].startswith("50.0 (") and rows[0][3] == "" and rows[1][3].startswith("+25.0 (")


def test_finished_runs_are_kept_and_failed_ones_are_named(
    settings: RecipeSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done, broken, other = RecipeRun("plain", 0), RecipeRun("erase", 0), RecipeRun("ema", 0)
    leave_tested(done, settings, right=20)
    called: list[str] = []

    def runner(words: list[str], log: Path) -> int:
        called.append(words[words.index("--name") + 1] + " " + words[3])
        log.write_text("the reason")
        return int("recipe_erase_s0" in words)

    monkeypatch.setattr(recipes, "run_in_process", runner)
    with Progress("test") as progress:
        assert train([done, broken, other], settings, progress) == [broken.name]
    assert called == ["recipe_erase_s0 fit", "recipe_ema_s0 fit", "recipe_ema_s0 test"]


def test_runs_of_another_length_are_refused(settings: RecipeSettings, capsys: pytest.CaptureFixture[str]) -> None:
    leave_tested(RecipeRun("plain", 0), settings, right=20)
    leave_tested(RecipeRun("mixup", 0), settings, right=20, epochs=8)
    words = ["--cfg", "demo", "--epochs", "4", "--seeds", "0", "--parts", "mixup", "--only_table"]
    assert main([*words, "--runs_dir", str(settings.runs_dir)]) == 2
    err = capsys.readouterr().err
    assert "recipe_mixup_s0 was trained with (8," in err and "remove it, or give another --runs_dir" in err
