"""`octvideo card`: what it says is so, what it does not know it says, and what it writes is a network to share."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from octvideo.cli import main
from octvideo.cli.card_facts import Facts, count_listed, own_name
from octvideo.cli.card_sections import make_card
from octvideo.evaluation.report import figures
from octvideo.evaluation.scores import VideoScores
from octvideo.inference import engine_times
from octvideo.inference.checkpoint import network_of_checkpoint
from octvideo.inference.choice import Way
from octvideo.octave import count_cost
from octvideo.pages.card import Card, Section
from octvideo.video import ViewSettings

from .conftest import Cli, one_thread


def front_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The YAML at the top of README.md, and the rest."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def row(text: str, name: str) -> str:
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", text, re.MULTILINE)
    assert found is not None, f"no row {name} in\n{text}"
    return found[1]


@pytest.fixture(scope="module")
def tested_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tested")
    shutil.copytree(trained_once, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(folder)
        assert main(["test", "--name", "tiny", "--trainer.enable_progress_bar", "false"]) == 0
    return folder


@pytest.fixture
def tested(tested_once: Path, workplace: Path) -> Path:
    """The folder of a run that has been trained and tested."""
    return Path(shutil.copytree(tested_once / "runs" / "tiny", workplace / "runs" / "tiny"))


def test_a_card_of_a_tested_run(octvideo: Cli, tested: Path, tiny_data: Path) -> None:
    out, err = octvideo("card", "tiny", "--no_time", "--license", "apache-2.0")
    assert "card: runs/tiny/card/README.md, index.html" in out and err == ""
    front, text = front_of(tested / "card")
    scores = VideoScores.load(tested / "scores.npz")
    top1, top5, _ = figures(scores)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "octvideo")
    assert front["pipeline_tag"] == "video-classification" and "octave-convolution" in front["tags"]
    (model,) = front["model-index"]
    assert model["name"] == "tiny" and model["results"][0]["dataset"]["name"] == tiny_data.name
    values = {metric["name"]: metric["value"] for metric in model["results"][0]["metrics"]}
    assert values["top-1"] == pytest.approx(top1.value, abs=1e-6) and values["top-5"] == top5.value
    network, _ = network_of_checkpoint(tested / "checkpoints" / "best.ckpt")
    cost = count_cost(network, (1, 3, 4, 32, 32))
    assert row(text, "parameters") == f"{cost.parameters:,}"
    assert row(text, "multiply-adds of a view").startswith(f"{cost.multiply_adds / 1e9:.3g} G, ")
    assert row(text, "data").endswith("train.txt (videos: 9, as the list has them now)")
    assert re.fullmatch(r"best.ckpt, saved in epoch [12], after [36] steps", row(text, "weights"))
    assert row(text, "lr") == "0.01" and row(text, "started from") == "random weights"
    assert row(text, "views") == "6 a video: 2 clips over its length x 3 crops"
    assert row(text, "decoder") == "PyAV (FFmpeg)" and row(text, "precision") == "32-true"
    assert row(text, "hardware and duration").startswith("unknown")
    counts = [int((scores.labels == k).sum()) for k in range(3)]
    assert [int(row(text, name).split(" | ")[0]) for name in scores.class_names] == counts
    assert "Expected calibration error:" in text and "Not measured for this card." in text
    # Both lists are test.txt, and the best epoch was taken.
    assert "chosen by their accuracy on the videos of the test" in text and "The test is small" in text
    assert "3 classes had fewer than 20 test videos: down, left, right." in text
    assert "What octave layers change in accuracy was not measured here" in text
    # Where somebody works is nobody's business.
    for file in (tested / "card").iterdir():
        assert str(tiny_data.parent) not in file.read_text() and str(tested.parent) not in file.read_text()
    html = (tested / "card" / "index.html").read_text(encoding="utf-8")
    assert "apache-2.0" in html and html.count('class="share-right"') >= 1
    _, err = octvideo("card", "tiny", "--no_time", code=2)
    assert "runs/tiny/card holds README.md, index.html already: add --overwrite, or give another -o" in err


def test_a_folder_to_share_has_the_scores_of_the_run(octvideo: Cli, tested: Path, tiny_data: Path) -> None:
    out, err = octvideo("card", "tiny", "--hub", "-o", "shared", "--no_time")
    assert "upload: hf upload USER/NAME shared; use: --ckpt shared" in out
    assert "license: not stated; --license ID states one" in err
    assert {file.name for file in Path("shared").iterdir()} == {
        *("README.md", "index.html", "config.json", "model.safetensors")
    }
    front, text = front_of(Path("shared"))
    assert "license" not in front and "**License: not stated.**" in text
    assert Path("shared/README.md").read_text().startswith("---\n# license: state one before you publish")
    video = next((tiny_data / "test").rglob("*.mp4"))
    found = []
    for name in ("runs/tiny/checkpoints/best.ckpt", "shared"):
        words = ("infer", video, "--ckpt", name, "--engine", "eager", "--precision", "f32", "--json")
        found.append(json.loads(octvideo(*words)[0])["videos"][0]["top"])
    assert found[0] == found[1]
    _, err = octvideo("test", "--name", "tiny", "--ckpt", "shared", code=2)
    assert "shared is a network to share, no checkpoint of a run" in err
    _, err = octvideo("card", "shared", code=2)
    assert "is a network to share and has its card" in err


@pytest.mark.slow  # it trains
def test_a_folder_to_share_starts_another_run(octvideo: Cli, trained: Path) -> None:
    octvideo("card", "tiny", "--hub", "-o", "shared", "--no_time")
    octvideo("fit", "-c", "tiny", "--init", "shared", "--name", "b", "--trainer.max_epochs", 1)
    octvideo("card", "b", "--no_time")
    text = front_of(Path("runs/b/card"))[1]
    assert row(text, "started from") == "shared" and "nothing is known of its accuracy" in text


@pytest.mark.parametrize(
    "ways", [[Way("eager", "f32")], pytest.param(None, marks=pytest.mark.slow)], ids=["eager", "all"]
)
def test_times_are_measured_by_engine_beside_the_ordinary_network(
    octvideo: Cli, trained: Path, ways: list[Way] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ways is not None:
        monkeypatch.setattr(engine_times, "quick_ways", lambda device: ways)
    octvideo("card", "tiny", "--threads", 1)
    text = front_of(trained / "runs" / "tiny" / "card")[1]
    assert "1 thread; " in text and f"torch {torch.__version__}" in text.replace("\\", "")
    own, ordinary, video, share = row(text, "eager f32").split(" | ")
    assert float(own) > 0 and float(ordinary) > 0 and float(video) == pytest.approx(6 * float(own), rel=0.02)
    assert float(share.removesuffix(" %")) == pytest.approx(100 * float(own) / float(ordinary), abs=1.5)
    assert "It was not tested" in text


def test_results_of_other_weights_are_not_this_networks(octvideo: Cli, tested: Path) -> None:
    octvideo("card", tested / "checkpoints" / "last.ckpt", "--no_time")
    front, text = front_of(tested / "card")
    assert "model-index" not in front and "The test of the run was of other weights (best.ckpt)" in text
    file = tested / "checkpoints" / "best.ckpt"
    later = (tested / "scores.npz").stat().st_mtime + 5
    os.utime(file, (later, later))
    _, err = octvideo("card", "tiny", "--no_time", "--overwrite")
    assert "warning: The weights' file is newer than that of the test's scores" in err
    (tested / "metrics_test.json").unlink()  # as of a test by another program
    _, err = octvideo("card", "tiny", "--no_time", "--overwrite")
    text = front_of(tested / "card")[1]
    assert "warning: It is not known which checkpoint was tested." in err
    assert "The test did not record its views" in text and row(text, "decoder") == "unknown"


def test_hostile_names_are_text(octvideo: Cli, tested: Path) -> None:
    names = ["a|b](javascript:x) <script>alert(1)</script>", "**bold**\n# head", "`code` ---"]
    old = VideoScores.load(tested / "scores.npz")
    VideoScores(old.paths, np.zeros(len(old), int), old.scores, names).save(tested / "scores.npz")
    octvideo("card", "tiny", "--no_time")
    front, text = front_of(tested / "card")
    assert "model-index" in front and "<script>" not in re.sub(r"\\.", "", text)
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    html = markdown.render(text)
    assert "<script" not in html and "href" not in html and "<strong>bold" not in html and html.count("<h1>") == 1
    assert "<script>alert" not in (tested / "card" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow  # ten seconds of exporting
def test_an_exported_model_has_less_to_say(octvideo: Cli, trained: Path) -> None:
    pytest.importorskip("openvino")
    octvideo("export", "--ckpt", "tiny", "--engine", "openvino", "-o", "served")
    _, err = octvideo("card", "served")
    assert "an exported model has no results of a test" in err and "octvideo test writes them" not in err
    front, text = front_of(Path("served/card"))
    assert "model-index" not in front and row(text, "made of") == "tiny/last.ckpt"
    assert "does not say how its network was built or trained" in text and "it measures no accuracy" in text
    seconds = json.loads(Path("served/octvideo.json").read_text(encoding="utf-8"))["check"]["seconds_per_view"]
    assert f"When it was exported, {1000 * seconds:.1f} ms a view" in text
    assert "Unknown: there is no config.yaml" in text and "Its accuracy is unknown" in text
    _, err = octvideo("card", "served", "--hub", code=2)
    assert "served is an exported model, and --hub shares a network" in err
    _, err = octvideo("card", "nothing", code=2)
    assert "no checkpoint at nothing" in err


def test_names_leave_out_where_somebody_works() -> None:
    assert own_name("/home/me/runs/demo/checkpoints/best.ckpt") == "demo/best.ckpt"
    assert own_name("/data/kinetics/") == "kinetics" and own_name("timm:resnet50") == "timm:resnet50"
    assert own_name("https://host/a.pth?key=secret") == "https://host/a.pth"
    assert own_name("https://me:pw@host/data") == "https://***@host/data"  # a card is for others


@pytest.mark.slow  # it trains and converts
def test_a_converted_run_says_what_was_measured_and_shares_the_same_network(
    octvideo: Cli, workplace: Path, tiny_data: Path
) -> None:
    fit = ("fit", "-c", "tiny", "--trainer.enable_progress_bar", "false", "--trainer.max_epochs", 1)
    octvideo(*fit, "--model.network.init_args.alpha", 0, "--name", "own")
    octvideo("convert", "own", "--data", tiny_data / "train", "-o", "runs/oct", "--num_clips", 10)
    octvideo("card", "oct", "--hub", "--no_time")
    front, text = front_of(Path("runs/oct/card"))
    assert "octave-convolution" in front["tags"] and "## How it was made" in text and "How it was trained" not in text
    assert re.search(r"Measured on \d clips without labels, compared on \d clips of \d other videos", text)
    assert "| octave, before fitting |" in text
    assert "How that network was trained is unknown" in text and str(workplace) not in text
    assert "of its own for each of" in row(text, "share of low channels (alpha)")
    clips = torch.randn(2, 3, 4, 32, 32)
    networks = [network_of_checkpoint(f"runs/oct/{name}")[0] for name in ("checkpoints/converted.ckpt", "card")]
    with torch.inference_mode():
        assert torch.equal(networks[0](clips), networks[1](clips))


def test_many_classes_fold_in_markdown_and_scroll_on_the_page(octvideo: Cli, tested: Path) -> None:
    names = [f"class {n}" for n in range(400)]
    scores = np.eye(400, dtype=np.float32)
    labels = np.arange(400) % 399  # of the last class there is none
    VideoScores([f"{n}.mp4" for n in range(400)], labels, scores, names).save(tested / "scores.npz")
    octvideo("card", "tiny", "--no_time")
    _, text = front_of(tested / "card")
    assert "<summary>400 rows</summary>" in text and "399 classes had fewer than 20 test videos: class 0, " in text
    assert "1 class had no test video: class 399." in text and "| class 399 | 0 | not tested |" in text
    assert "and 389 more" in text and len((tested / "card" / "index.html").read_bytes()) < 300_000


def card_of(**facts: Any) -> tuple[Card, dict[str, Section]]:
    """A card, and its sections by title, of a network with three classes."""
    known = Facts("net", ["sit", "stand", "drink"], ViewSettings(), (0.5,) * 3, (0.5,) * 3, **facts)
    nothing = {"costs": None, "times": (), "machine": "", "license": None, "dataset": None, "has_weights": False}
    card = make_card(known, **nothing)  # type: ignore[arg-type]
    return card, {section.title: section for section in card.sections}


def cells(section: Section) -> dict[str, tuple[str, ...]]:
    assert section.table is not None
    return {row[0]: row[1:] for row in section.table.rows}


def test_a_card_of_several_labels_counts_all_of_them() -> None:
    truth = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]], dtype=bool)
    values = np.array([[0.9, 0.1, 0.4], [0.2, 0.8, 0.3], [0.3, 0.1, 0.6], [0.7, 0.6, 0.1]])
    thresholds = np.array([0.5, 0.5, 0.35])
    scores = VideoScores(list("abcd"), truth.argmax(1), values, ["sit", "stand", "drink"], truth, thresholds)
    scoring = {"function": "sigmoid", "thresholds": thresholds.tolist(), "temperature": 1.0}
    averaged = {"decay": 0.9, "warmup": True, "updates": 12}
    config = {
        "model": {"loss": "bce", "layer_decay": 1.0, "mix_prob": 1.0, "mix_switch_prob": 0.5, "cutmix_alpha": 1.0},
        "data": {"sampler": "balanced", "repeats": 1, "flip_labels": {"sit": "stand"}},
    }
    saved = "best.ckpt, saved in epoch 2, after 12 steps"
    card, by_title = card_of(
        block={"scoring": scoring, "averaged": averaged}, scores=scores, config=config, saved=saved
    )
    assert card.said == "A network that names the actions in a video: any number of 3 classes."
    labels = cells(by_title["The network"])["labels"]
    assert labels == ("a threshold for each class, 0.35 to 0.50, fitted in validation",)
    trained = cells(by_title["How it was trained"])
    assert trained["weights"] == (f"{saved}, a moving average (EMA) with decay 0.9 over 12 steps",)
    assert trained["sampler"] == ("balanced",) and "stand" in trained["flip_labels"][0]
    assert trained["mix_prob"] == ("1",) and not {"repeats", "layer_decay", "mix_switch_prob"} & trained.keys()
    # drink: named in a and c, true in a and b.
    assert cells(by_title["Classes"])["drink"][:4] == ("2", "50.0 %", "50.0 %", "50.0 %")
    assert not {"Confusions", "Calibration"} & by_title.keys()
    limits = " ".join(by_title["Limits"].items)
    assert "0.0 – 100.0 %" not in limits and "names one of its classes" not in limits
    metrics = {one["name"]: one["type"] for one in card.metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"mAP": "mean_average_precision", "mAP micro": "mean_average_precision", "top-1": "accuracy"}


def test_a_card_says_what_scores_are_cooled_by() -> None:
    _, by_title = card_of(block={"scoring": {"function": "softmax", "thresholds": None, "temperature": 1.4}})
    assert cells(by_title["The network"])["temperature"] == ("1.4, that scores are cooled by",)


def test_a_card_counts_a_list_as_the_run_read_it(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a 20,sit;drink\nb 30,stand\nc 9 2\n")
    data = {"root": str(tmp_path), "train": "train.txt", "frame_names": "img_{:05d}.jpg", "first_frame": 1}
    facts = Facts(
        "net", ["sit", "stand", "drink"], ViewSettings(), (0.5,) * 3, (0.5,) * 3, config={"data": data},
        block={"scoring": {"function": "sigmoid"}},
    )  # fmt: skip
    assert count_listed(facts, "train") == 3
