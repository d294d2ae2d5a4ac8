"""tools/convert_evidence.py: data in folds, the judge, the plan, lines that are kept, and what is made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lab.probes.arms import ARMS, Arm, convert, draw_clips
from lab.probes.classifier import train_classifier
from lab.probes.clips import Clips, load_frames, read_clips
from lab.probes.command import main
from lab.probes.networks import NETWORKS, ImageNetwork, features_of, load_network
from lab.probes.summary import Outcome, difference, kept, read_outcomes, read_trained
from lab.probes.training import FramesClassifier, Recipe, TrainedArm, Trainings, augmented
from lab.probes.work import Probe, Settings, plan
from octvideo.errors import UserError
from octvideo.octave import octavize

PX = 16
SETTINGS = Settings(num_frames=2, px=PX, num_clips=3)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the network "tiny", which is known while a test runs."""
    like = ImageNetwork(tiny, ("3",), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(NETWORKS, "tiny", like)  # type: ignore[arg-type]
    torch.manual_seed(0)
    file = tmp_path / "tiny.pt"
    # Named otherwise, and with a classifier: as other people's files are.
    state = {f"module.{key}": value for key, value in tiny().state_dict().items()}
    torch.save({**state, "module.fc.weight": torch.zeros(5, 8)}, file)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 clips of 2 classes, 6 sources, 3 folds; no videos: their frames are in the cache."""
    data = tmp_path / "made_up"
    data.mkdir()
    with (data / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "fold5", "source"])
        for n in range(12):
            writer.writerow([f"{n}.mp4", ["wave", "clap"][n % 2], n // 4, f"video{n // 2}"])
    return data


@pytest.fixture
def output(tmp_path: Path) -> Path:
    cache = tmp_path / "out" / "cache"
    cache.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (12, 2, 3, PX, PX), generator=generator, dtype=torch.uint8)
    frames[::2] //= 2  # one class is darker
    torch.save(frames, cache / f"made_up_frames2_{PX}.pt")
    return tmp_path / "out"


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clips_are_read_with_either_name_of_a_column(folder: Path) -> None:
    clips = read_clips(folder)
    assert clips.name == "made_up" and clips.classes == ["clap", "wave"]
    assert clips.labels.tolist() == [1, 0] * 6
    assert clips.test(1).tolist() == [4, 5, 6, 7]
    assert clips.train(1).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert clips.sources[2:4] == ["video1", "video1"]


def test_a_source_in_two_folds_is_refused(folder: Path) -> None:
    file = folder / "clips.csv"
    file.write_text(file.read_text().replace("4.mp4,wave,1,video2", "4.mp4,wave,0,video2"))
    with pytest.raises(UserError, match="video2 are in two folds"):
        read_clips(folder)


def test_a_missing_column_is_named(folder: Path) -> None:
    file = folder / "clips.csv"
    file.write_text(file.read_text().replace("source", "origin"))
    with pytest.raises(UserError, match="no column source_video or source"):
        read_clips(folder)


def test_frames_are_centre_squares_at_even_distances_and_are_decoded_once(
    tmp_path: Path, moving: Callable[..., Tensor], encode: Callable[..., Path]
) -> None:
    whole = moving(8, 32, 48)  # (T,H,W,C)
    path = encode(tmp_path / "a.mkv", whole, codec="ffv1", pix_fmt="bgr0")
    clips = Clips(tmp_path, [path.name], torch.tensor([0]), ["a"], torch.tensor([0]), ["s"])
    frames = load_frames(clips, tmp_path / "cache", num_frames=4, px=32)
    assert frames.shape == (1, 4, 3, 32, 32)
    assert torch.equal(frames[0], whole[1::2, :, 8:40].permute(0, 3, 1, 2))
    path.unlink()
    assert torch.equal(load_frames(clips, tmp_path / "cache", num_frames=4, px=32), frames)


# ── networks and judge ──────────────────────────────────────────────────────────────────────────────────────────────


def test_weights_are_taken_in_their_order(weights: Path) -> None:
    torch.manual_seed(0)
    expected = tiny().eval()
    loaded = load_network("tiny", weights)
    x = torch.randn(2, 3, PX, PX)
    assert torch.equal(loaded(x), expected(x))


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(8, 3, 5, 5)}, other)
    with pytest.raises(UserError, match=r"for 0\.weight got \(8, 3, 5, 5\), expected \(8, 3, 3, 3\)"):
        load_network("tiny", other)
    torch.save({"weight": torch.zeros(8, 3, 3, 3)}, other)
    with pytest.raises(UserError, match=r"for 0\.bias got nothing"):
        load_network("tiny", other)


def test_features_are_means_over_frames(weights: Path) -> None:
    network, like = load_network("tiny", weights), NETWORKS["tiny"]
    frames = torch.randint(0, 256, (3, 2, 3, PX, PX), dtype=torch.uint8)
    expected = torch.stack([network((clip / 255 - 0.5) / 0.5).mean(0) for clip in frames])
    torch.testing.assert_close(features_of(network, like, frames), expected)


def test_the_judge_minimises_its_loss() -> None:
    x, labels = torch.randn(40, 6), torch.arange(40) % 3
    x[:, 0] += 3 * labels
    judge = train_classifier(x, labels, 3)
    z = ((x.double() - judge.mean) / judge.std).requires_grad_(False)
    weight, bias = judge.weight.clone().requires_grad_(), judge.bias.clone().requires_grad_()
    loss = 0.003 * torch.nn.functional.cross_entropy(z @ weight + bias, labels, reduction="sum")
    gradients = torch.autograd.grad(loss + weight.square().sum() / 2, [weight, bias])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5
    assert (judge.predict(x) == labels).float().mean() > 0.6


# ── arms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_choice_is_measured_with_and_without_what_is_fitted() -> None:
    assert {(arm.choose, arm.refit) for arm in ARMS["choices"]} == {
        (choose, refit)
        for choose in ("output", "detail", "last", "first", "random", "worst")
        for refit in ("none", "weights")
    }
    assert {arm.alpha for arm in ARMS["choices"]} == {0.25}


def test_clips_to_calibrate_on_are_drawn_from_those_that_may_be_seen() -> None:
    frames = torch.arange(10, dtype=torch.uint8)[:, None, None, None, None].expand(10, 8, 3, 2, 2).clone()
    frames += 10 * torch.arange(8, dtype=torch.uint8)[:, None, None, None]
    like = ImageNetwork(tiny, (), (0.0,) * 3, (1 / 255,) * 3)  # type: ignore[arg-type]
    drawn = torch.stack(draw_clips(frames, torch.tensor([1, 3, 5, 7]), 3, like, seed=0)).round()
    assert drawn.shape == (3, 1, 3, 2, 2)
    assert set((drawn[:, 0] % 10).flatten().tolist()) < {1, 3, 5, 7}
    assert set((drawn // 10).flatten().tolist()) == {4}


@pytest.mark.parametrize("start", ["ordinary", "pool", "converted"])
def test_an_inflated_network_is_the_mean_over_frames_and_can_be_octave(start: str) -> None:
    images, clips = NETWORKS["mobilenet_v2"], NETWORKS["mobilenet_v2_3d"]
    torch.manual_seed(0)
    network = images.build().eval()
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    expected = features_of(network, images, frames)
    assert clips.inflate is not None
    inflated = clips.inflate(network)
    assert [tuple(m.kernel_size) for m in inflated.modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1]
    if start == "converted":
        octave = convert(inflated, clips, Arm(0.5, "last", "none"), [clips.clip(frames[0])], seed=0)
        assert octave.octave_report.layers and features_of(octave, clips, frames).shape == expected.shape
    else:
        same = octavize(inflated, 0.0, downsample="pool" if start == "pool" else "stride")
        found = features_of(same, clips, frames)
        if start == "ordinary":
            torch.testing.assert_close(found, expected)
        else:
            assert found.shape == expected.shape


def test_a_spectrum_measured_before_gives_the_same_network(weights: Path) -> None:
    network, like = load_network("tiny", weights), NETWORKS["tiny"]
    clips, arm, kept_state = list(torch.randn(3, 2, 3, PX, PX)), Arm(0.25, refit="norms"), {}
    first = convert(network, like, arm, clips, seed=1, keep=kept_state.update)
    again = convert(network, like, arm, clips, seed=1, spectrum=kept_state["spectrum"])
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


# ── from nothing to the report ──────────────────────────────────────────────────────────────────────────────────────


def test_results_are_lines_that_a_second_call_keeps(weights: Path, folder: Path, output: Path) -> None:
    arms = [Arm(0.25), Arm(0.5, refit="none")]
    probe = Probe("tiny", weights, read_clips(folder), SETTINGS, output)
    jobs = list(plan([probe], arms))
    assert [(arm, fold) for _, arm, fold in jobs] == [(arm, fold) for arm in arms for fold in range(3)]
    assert probe.seconds(arms[0]) > 0
    for _, arm, fold in jobs[:4]:
        probe.prepare(lambda items, text: items)
        probe.measure(arm, fold)
    probe.close()
    again = Probe("tiny", weights, read_clips(folder), SETTINGS, output)
    assert [(arm, fold) for _, arm, fold in plan([again], arms)] == [(arms[1], 1), (arms[1], 2)]
    again.close()
    entry = json.loads((output / "tiny_made_up.jsonl").read_text().splitlines()[-1])
    assert (entry["arm"], entry["fold"], entry["alpha"], len(entry["predictions"])) == (arms[1].key, 0, 0.5, 4)
    with pytest.raises(UserError, match="num_clips"):
        Probe("tiny", weights, read_clips(folder), Settings(num_frames=2, px=PX, num_clips=4), output)


def test_the_command_measures_what_is_missing_and_reports(
    weights: Path, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-o", str(output), "--data", str(folder), "--num_clips", "2", "--num_frames", "2", "--px", str(PX)]
    words += ["--weights", f"tiny={weights}", "--parts", "alphas"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("9 results to measure") and "| made_up | 0.125 | output | even | weights | 3 |" in told
    assert (output / "kept.png").is_file() and (output / "report.md").read_text() in told
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("0 results to measure")
    assert main(["-o", str(output)]) == 2
    assert main(["-o", str(output), "--data", str(folder), "--weights", "resnet=x"]) == 2


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(hits: list[int], ordinary: list[int], sources: list[str]) -> Outcome:
    ours, theirs = np.array(hits, bool), np.array(ordinary, bool)
    return Outcome(ours, theirs, ours == theirs, np.array(sources), 1, 0.8, 0.1)


def test_intervals_resample_sources_and_not_clips() -> None:
    hits, ordinary = [1] * 40 + [0] * 40, [1] * 80
    alone = kept(outcome(hits, ordinary, [f"s{n}" for n in range(80)]))
    together = kept(outcome(hits, ordinary, [f"s{n // 20}" for n in range(80)]))
    assert alone.value == together.value == 0.5
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 80), rel=0.1)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_differences_are_paired() -> None:
    sources = [f"s{n}" for n in range(50)]
    one, other = [n % 2 for n in range(50)], [int(n % 2 and n > 4) for n in range(50)]
    paired = difference(np.array(sources), np.array(one, bool), np.array(other, bool))
    assert paired.value == pytest.approx(2 / 50)
    assert 0 <= paired.low < paired.high < 0.12  # of unpaired ones: -.15 to .23


def test_data_sets_are_put_together_where_all_folds_are_there(output: Path) -> None:
    def write(data: str, folds: int) -> None:
        arm = vars(Arm(0.25))
        lines = [{"probe": 1, "network": "net", "data": data}]
        for fold in range(2):
            truth = {"labels": [0, 1], "sources": ["a", "b"], "predictions": [0, 1], "multiply_adds": 100}
            lines.append({"arm": "ordinary", "fold": fold, **truth})
        for fold in range(folds):
            found = {"predictions": [0, 0], "error": 1.0, "feature_spread": 4.0, "multiply_adds": 80}
            lines.append({"arm": Arm(0.25).key, "fold": fold, **arm, **found})
        (output / f"net_{data}.jsonl").write_text("\n".join(map(json.dumps, lines)))

    write("one", 2)
    write("two", 1)
    found = read_outcomes(output)
    assert {data for _, data, _ in found} == {"one", "two"}
    write("two", 2)
    both = read_outcomes(output)["net", "both", Arm(0.25)]
    assert (len(both.hits), both.folds, both.multiply_adds, both.error) == (8, 4, 0.8, 0.25)
    assert both.hits.mean() == 0.5 and len(set(both.sources)) == 4


# ── trainings ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def probe(weights: Path, folder: Path, output: Path) -> Iterator[Probe]:
    made = Probe("tiny", weights, read_clips(folder), SETTINGS, output)
    made.prepare(lambda items, text: items)
    yield made
    made.close()


def trained(probe: Probe, arm: TrainedArm, output: Path, **recipe: Any) -> dict[str, Any]:
    own = Trainings(probe, Recipe(tuned_epochs=2, taught_epochs=2, batch_clips=4, **recipe), output)
    try:
        own.measure(arm, 1, 0, lambda items, text: items)
        return list(own.lines.entries())[-1]
    finally:
        own.close()


def test_a_classifier_of_frames_scores_as_the_judge(probe: Probe) -> None:
    network = FramesClassifier(probe.network, probe.like, probe.judge(0), fresh=False).eval()
    test = probe.clips.test(0)
    features = features_of(probe.network, probe.like, probe.frames[test])
    assert network.predict(probe.frames[test]) == probe.judge(0).predict(features).tolist()


def test_an_ordinary_network_that_teaches_itself_has_no_loss(probe: Probe, output: Path) -> None:
    entry = trained(probe, TrainedArm("taught", "ordinary"), output, weight_decay=0.0)
    ordinary = probe.done["ordinary", 1]
    assert entry["predictions"] == ordinary["predictions"] and entry["labels"] == ordinary["labels"]
    (log,) = output.glob("logs/*.log")
    assert log.read_text().count("0.0000") == 2


def test_an_interrupted_training_ends_as_an_uninterrupted_one(probe: Probe, output: Path, tmp_path: Path) -> None:
    arm = TrainedArm("tuned", "converted", 0.5)
    seen: list[str] = []

    def stop(items: Any, text: str) -> Any:
        seen.append(text)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return items

    recipe = Recipe(tuned_epochs=2, batch_clips=4, tuned_lr=0.01)
    own = Trainings(probe, recipe, output)
    with pytest.raises(KeyboardInterrupt):
        own.measure(arm, 0, 3, stop)
    own.measure(arm, 0, 3, stop)
    own.close()
    assert [text[-6:] for text in seen] == ["1 of 2", "2 of 2", "2 of 2"]
    other = tmp_path / "whole"
    other.mkdir()
    (other / "cache").symlink_to(output / "cache")
    whole = Trainings(probe, recipe, other)
    whole.measure(arm, 0, 3, lambda items, text: items)
    whole.close()
    logs = [next(each.glob("logs/*.log")).read_text() for each in (output, other)]
    assert logs[0] == logs[1] and logs[0].count("epoch") == 2


def test_validation_tests_on_the_next_fold_and_does_not_train_on_it(probe: Probe, output: Path) -> None:
    entry = trained(probe, TrainedArm("tuned", "pool"), output, validates=True)
    assert entry["sources"] == [probe.clips.sources[n] for n in probe.clips.test(2).tolist()]
    assert not read_trained(output)


def test_trained_arms_are_compared_with_the_ordinary_network_treated_alike(output: Path) -> None:
    settings = {"trained": 1, "network": "tiny", "data": "made_up", "validates": False}

    def run(start: str, fold: int, predictions: list[int]) -> dict[str, Any]:
        arm = {"learning": "tuned", "start": start, "alpha": 0.0 if start == "ordinary" else 0.25}
        return {**arm, "fold": fold, "seed": 0, "predictions": predictions, "labels": [0, 1], "sources": ["a", "b"]}

    lines = [settings, run("ordinary", 0, [0, 0]), run("prefix", 0, [0, 1]), run("prefix", 1, [0, 1])]
    (output / "tiny_made_up_trained.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (outcome,) = read_trained(output).values()
    assert outcome.runs == 1 and outcome.hits.tolist() == [True, True] and outcome.ordinary.tolist() == [True, False]


def test_augmented_frames_are_of_each_part_and_repeat_by_their_seed() -> None:
    clips = (torch.arange(8, dtype=torch.uint8) * 30)[None, :, None, None, None].expand(2, 8, 3, PX, PX)
    one, again, other = (augmented(clips, 2, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (2, 2, 3, PX, PX)
    places = one.float().mean((2, 3, 4)) / 30
    assert (places[:, 0] <= 3).all() and (places[:, 1] >= 4).all()
