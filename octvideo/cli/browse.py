"""Shows what a network gets in training: `octvideo browse -c CONFIG [-o FILE]`, with any key of `octvideo fit`.

Some videos, each as the first epochs have it: cut, flipped, augmented, with the label. And, where the config mixes
batches, clips of the first batches before and after, with their soft labels. These are the very clips and mixtures of
the first process of a run on a CPU: what is drawn depends on the seed, the epoch and the video alone.

A .html is a page, a .png a contact sheet.

  octvideo browse -c jhmdb_i3d -o clips.png
  octvideo browse -c demo --num_videos 6 --draws 3 -o clips.html
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.browse_sheet import Block, Strip, contact_sheet, png_of, strip_image
from octvideo.cli.config_files import CONFIG_FLAGS
from octvideo.cli.lightning import OctvideoCLI
from octvideo.cli.lightning import run as run_lightning
from octvideo.data import Augmentation, Failure
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.dataset import Item
from octvideo.errors import UserError
from octvideo.evaluation.several import several_hot
from octvideo.files import whole_file, whole_text
from octvideo.pages.browse import Picture, Section, browse_page
from octvideo.seeds import seed_of
from octvideo.training.mixing import STEP, Mixing

SUFFIXES = (".html", ".png")


def add_arguments(parser: Parser) -> None:
    parser.takes_keys = True
    parser.add_argument(*CONFIG_FLAGS, required=True, metavar="CONFIG", help="by path or name; --data.KEY follow")
    parser.shared("output", default=Path("browse.html"), metavar="FILE", help="a page or a .png (browse.html)")
    parser.add_argument("--num_videos", type=positive, default=4, metavar="N", help="and mixed clips (4)")
    parser.add_argument("--draws", type=positive, default=4, metavar="N", help="epochs, and batches that are mixed (4)")
    parser.add_argument("--frames", type=positive, default=4, metavar="N", help="of a clip that are shown, evenly (4)")


def run(args: argparse.Namespace) -> int:
    """Writes the page or the sheet; returns 0, or 2 for a mistake in the config."""
    if args.output.suffix.lower() not in SUFFIXES:
        got = args.output.suffix or "no suffix"
        raise UserError(f"-o {args.output}: got {got}, expected {' or '.join(SUFFIXES)}")
    return run_lightning(["fit", "-c", args.config, *args.keys], functools.partial(_Browse, asked=args))


class _Browse(OctvideoCLI):
    """Reads a config as `octvideo fit` does, builds the data alone, and trains nothing."""

    def __init__(self, args: list[str], default_run: str | Path | None, *, asked: argparse.Namespace) -> None:
        self._asked = asked
        super().__init__(args, default_run)

    def before_instantiate_classes(self) -> None:
        """No run and no checkpoint belong to it."""

    def _set_seed(self) -> None:
        """Nothing is drawn from the global generator."""

    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        parser = ArgumentParser()
        parser.add_class_arguments(VideoDataModule, "data")
        config.data.num_workers = 0
        self.videos: VideoDataModule = parser.instantiate_classes(Namespace(data=config.data)).data
        model = config.model
        self.mixing = Mixing(model.mixup_alpha, model.cutmix_alpha, model.mix_prob, model.mix_switch_prob)
        self.seed = int(model.seed)

    def _run_subcommand(self, subcommand: str) -> None:
        clips = _Clips(self.videos, self.mixing, seed=self.seed, frames=self._asked.frames)
        videos = clips.of_videos(self._asked.num_videos, self._asked.draws)
        mixed = clips.mixed(self._asked.num_videos, self._asked.draws)
        output: Path = self._asked.output
        if output.suffix.lower() == ".png":
            with whole_file(output) as part:
                part.write_bytes(png_of(contact_sheet([videos, mixed])))
        else:
            sections = [Section("Videos, as the first epochs have them", _pictures(videos))]
            if mixed:
                sections.append(Section("Batches, before and after mixing", _pictures(mixed)))
            settings = _settings(self.videos, self.mixing)
            name = Path(self._asked.config).stem
            with whole_text(output) as file:
                file.write(browse_page(f"What a network gets: {name}", sections, settings))
        print(f"{len(videos)} videos and {len(mixed)} mixed clips: {output}", file=sys.stderr)


def _pictures(blocks: list[Block]) -> list[Picture]:
    return [
        Picture(block.title, [(strip.caption, png_of(strip_image(strip))) for strip in block.strips])
        for block in blocks
    ]


def _settings(videos: VideoDataModule, mixing: Mixing) -> list[tuple[str, str]]:
    """Keys that say what is done to clips, those of the default left out, and their values."""
    plain, augment = Augmentation(), videos.augment
    kept = [field.name for field in fields(augment) if getattr(augment, field.name) != getattr(plain, field.name)]
    found = [(f"data.augment.{name}", str(getattr(augment, name))) for name in kept]
    found += [("data.repeats", str(videos.repeats))] if videos.repeats > 1 else []
    found += [("data.flip_labels", str(videos.flip_labels))] if videos.flip_labels else []
    mixed = {
        "mixup_alpha": mixing.mixup_alpha,
        "cutmix_alpha": mixing.cutmix_alpha,
        "mix_prob": mixing.prob,
        "mix_switch_prob": mixing.switch_prob,
    }
    return found + [(f"model.{name}", str(value)) for name, value in mixed.items()]


class _Clips:
    """Clips and batches of a run, as strips of frames."""

    def __init__(self, videos: VideoDataModule, mixing: Mixing, *, seed: int, frames: int) -> None:
        self.mixing, self.seed, self.frames = mixing, seed, frames
        self.loader: Any = videos.train_dataloader()
        self.names = videos.class_names if videos.train_labels else []

    def of_videos(self, count: int, draws: int) -> list[Block]:
        """The first videos of the first epoch, in each of the first epochs."""
        self.loader.batch_sampler.set_epoch(0)
        order = list(dict.fromkeys(key[1] for batch in self.loader.batch_sampler for key in batch))[:count]
        blocks = []
        for index in order:
            strips: list[Strip] = []
            for epoch in range(draws):
                found = self.loader.dataset[epoch, index]
                if isinstance(found, Failure):
                    raise UserError(f"cannot read video '{found.path}': {found.reason}")
                items: list[Item] = found if isinstance(found, list) else [found]
                for repeat, item in enumerate(items):
                    assert isinstance(item.video, Tensor)  # a training clip
                    place = f"epoch {epoch + 1}" + (f", repeat {repeat + 1}" if len(items) > 1 else "")
                    strips.append(self._strip(f"{place}: {self._name(item.label, *item.others)}", item.video))
            blocks.append(Block(Path(self.loader.dataset.records[index].path).name, strips))
        return blocks

    def mixed(self, count: int, draws: int) -> list[Block]:
        """Clips of the first batches, their partners, and what becomes of them; none where nothing is mixed."""
        blocks = []
        for number, batch in enumerate(self._batches(draws)):
            video, labels, others = batch["video"], batch["label"], batch["others"]
            if not len(labels):
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, 0, number, STEP, 0))
                mix = self.mixing.draw(video)
            if mix is None:
                continue
            after = mix.clips(video[:]).round().to(torch.uint8)
            how = "mixup" if mix.box is None else "CutMix"
            targets = mix.targets(several_hot(labels, others, max(len(self.names), 1)).float())
            names = [self._name(*each) for each in torch.cat([labels[:, None], others], 1).tolist()]
            for n in range(min(max(count // draws, 1), len(labels))):
                other = int(mix.other[n])
                strips = [
                    self._strip(f"clip {n + 1}: {names[n]}", video[n]),
                    self._strip(f"clip {other + 1}: {names[other]}", video[other]),
                    self._strip(self._soft(targets[n], mix.share), after[n]),
                ]
                blocks.append(Block(f"batch {number + 1}, {how}", strips))
        return blocks

    def _batches(self, count: int) -> Iterator[Any]:
        if self.mixing.mixup_alpha or self.mixing.cutmix_alpha:
            self.loader.batch_sampler.set_epoch(0)
            yield from itertools.islice(self.loader, count)

    def _strip(self, caption: str, clip: Tensor) -> Strip:
        """Of a clip (C, T, S, S)."""
        places = torch.linspace(0, clip.shape[1] - 1, min(self.frames, clip.shape[1])).round().long()
        return Strip(caption, clip[:, places].permute(1, 2, 3, 0).numpy())

    def _name(self, *labels: int) -> str:
        return ", ".join(self.names[label] for label in labels if self.names and label >= 0) or "no label"

    def _soft(self, targets: Tensor, share: float) -> str:
        if not self.names:
            return f"mixed, {share:.2f} of its own"
        best = targets.argsort(descending=True)[: max(2, int(targets.gt(0).sum()))].tolist()
        return " + ".join(f"{targets[k]:.2f} {self.names[k]}" for k in best if targets[k] > 0)
