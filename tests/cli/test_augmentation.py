"""The full modern recipe, through the command: by keys and by a config, stopped within an epoch and resumed."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

Cli = Callable[..., tuple[str, str]]
FIT = ("fit", "--trainer.enable_progress_bar", "false", "--checkpoint_minutes", 0)
RECIPE = """\
base: tiny.yaml
model:
  mixup_alpha: 0.8
  cutmix_alpha: 1.0
  mix_prob: 0.9
  mix_switch_prob: 0.5
  label_smoothing: 0.1
data:
  batch_size: 6       # of 3 videos
  repeats: 2
  flip_labels: swaps.yaml
  augment:
    flip: 0.5
    area: [0.3, 1.0]
    colour: 0.3
    hue: 0.1
    grey: 0.2
    blur: 0.3
    blur_sigma: [0.1, 1.0]
    policy: rand
    policy_ops: 2
    policy_magnitude: 12
    erase: 0.5
    erase_area: [0.05, 0.3]
    erase_aspect: [0.5, 2.0]
    erase_frames: [0.5, 1.0]
    erase_with: noise
"""


@pytest.fixture
def modern(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with modern.yaml; KeepRuns can be given to `octvideo`."""
    (workplace / "modern.yaml").write_text(RECIPE)
    (workplace / "swaps.yaml").write_text("left: right\n")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield workplace
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_resumed_run_with_everything_on_ends_with_the_same_weights(octvideo: Cli, modern: Path) -> None:
    last = modern / "runs/modern/checkpoints/last.ckpt"
    out, _ = octvideo(*FIT, "-c", "modern")
    whole = torch.load(last, weights_only=True)
    assert whole["global_step"] == 6 and "epoch 2/2" in out  # 9 videos in batches of 3, twice
    shutil.rmtree("runs")
    keeps = ("--trainer.callbacks", "stop_run.KeepRuns", "--trainer.callbacks.step", 5)
    octvideo(*FIT, "-c", "modern", *keeps, code=130)
    shutil.rmtree("runs")
    Path("as it was left").rename("runs")
    assert torch.load(last, weights_only=True)["global_step"] == 5
    out, _ = octvideo(*FIT, "-c", "modern", "--resume")
    assert "(resumed: the last 1 of 3 batches alone)" in out
    resumed = torch.load(last, weights_only=True)
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    assert resumed["global_step"] == 6


def test_keys_say_what_a_config_says(octvideo: Cli, modern: Path) -> None:
    octvideo(*FIT, "-c", "modern", "--trainer.limit_train_batches", 0, "--trainer.max_epochs", 1)
    recipe, keys = yaml.safe_load(RECIPE), []
    for place in ("model", "data"):
        for key, value in recipe[place].items():
            inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            keys += [word for k, v in inner.items() for word in (f"--{place}.{k}", str(v))]
    limits = ("--trainer.limit_train_batches", 0, "--trainer.max_epochs", 1)
    octvideo(*FIT, "-c", "tiny", "--name", "keys", *keys, *limits)
    by_config, by_keys = (yaml.safe_load(Path(f"runs/{name}/config.yaml").read_text()) for name in ("modern", "keys"))
    assert by_config["data"] == by_keys["data"] and by_config["model"] == by_keys["model"]
    assert by_keys["data"]["augment"]["erase_frames"] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.repeats", 4), "data.repeats: got 4 with a batch_size of 6, expected a divisor of it"),
        (("--data.augment.policy", "random"), "data.augment.policy"),
        (("--data.flip_labels", "{left: rihgt}"), "'rihgt' is no known class, did you mean 'right'?"),
        (("--model.cutmix_alpha", -1), "model.cutmix_alpha: got -1.0, expected 0 or more"),
    ],
)
def test_mistakes_are_one_line(octvideo: Cli, modern: Path, words: tuple[object, ...], message: str) -> None:
    _, err = octvideo(*FIT, "-c", "modern", *words, code=2)
    assert message in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err
