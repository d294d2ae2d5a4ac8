"""Configs by name, configs that start from others, and the short flags: from what was typed to what the
parser reads."""

from __future__ import annotations

import argparse
import itertools
import locale
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from octvideo.cli.arguments import asked_views, views
from octvideo.errors import UserError
from octvideo.files import read_text
from octvideo.inference.checkpoint import expanded, find_checkpoint, find_runs, run_folder

CONFIG_FLAGS = ("-c", "--config", "--cfg")
_PACKAGE = Path(__file__).resolve().parents[1]
# Installed with the package as octvideo.configs; of a checkout, beside it.
SHIPPED = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")), _PACKAGE / "configs")
FOLDERS = (Path("configs"), SHIPPED)
_SUFFIXES = (".yaml", ".yml")  # no other: what follows the last dot of `demo_a0.25` is part of its name
_SHORT_NAMES = {"--init": "--model.init_weights", "--ckpt": "--ckpt_path"}


def find_config(name: str, *, beside: Path | None = None) -> Path:
    """The file meant by `--config name`: as given, then in ./configs, then among those that octvideo brings.

    Args:
        name: a path or a bare name, with or without .yaml.
        beside: a folder to look in first (of the config that names this one as its base).

    Raises:
        UserError: there is none, with the places looked in.
    """
    places = [Path(), *FOLDERS]
    if beside is not None:
        places.insert(0, beside)
    given = expanded(name)
    names = [given] if given.endswith(_SUFFIXES) else [*(given + suffix for suffix in _SUFFIXES), given]
    tried: list[Path] = []
    for place in places:
        for file in [place / spelt for spelt in names]:
            if file.is_file():
                return file
            tried.append(file)
    looked = ", ".join(dict.fromkeys(map(str, tried)))
    raise UserError(f"no config '{name}': looked for {looked}; there are {', '.join(known_configs()) or 'none'}")


def config_name(file: Path) -> str:
    """What a config is called: its file's name without .yaml."""
    return file.stem if file.suffix in _SUFFIXES else file.name


def known_configs() -> list[str]:
    """Names of the configs that are found by name."""
    return sorted({config_name(file) for place in FOLDERS for file in place.glob("*.yaml")})


def with_bases(config: Path) -> list[Path]:
    """The config after those that it starts from (its `base:`, and theirs), in the order to read them."""
    chain = [config]
    while True:
        base = _read(chain[0]).get("base")
        if base is None:
            return chain
        found = find_config(str(base), beside=chain[0].parent)
        if found.resolve() in [file.resolve() for file in chain]:
            raise UserError(f"{chain[0]}: its base {found} starts from it again")
        chain.insert(0, found)


def _read(config: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(config))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = config if mark is None else f"{config}:{mark.line + 1}"
        raise UserError(f"{where}: not YAML, {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{config}: got {got}, expected keys such as `model:` and `data:`")
    return content


def prepare_argv(argv: Sequence[str]) -> tuple[list[str], str | Path | None]:
    """What Lightning's parser is given for what the user typed.

    Args:
        argv: as typed, from the command on.

    Returns:
        The arguments, and the name for a run that is given none: that of its last config; or the run's folder where
        that is its own config.yaml.

    Raises:
        UserError: a config or a run can't be found.
    """
    # `--flag=value` as two words, so that below there is one form; but the one flag that takes no other.
    split = [arg.startswith("-") and "=" in arg and not arg.startswith("--print_config=") for arg in argv]
    words = [word for arg, two in zip(argv, split, strict=True) for word in (arg.split("=", 1) if two else [arg])]
    words = _with_view_keys(words)
    out: list[str] = []
    name: str | Path | None = None
    previous = ""
    for word in words:
        if previous in CONFIG_FLAGS:
            config = find_config(word)
            of_run = config.name == "config.yaml" and (config.parent / "checkpoints").is_dir()
            name = config.parent if of_run and "--runs_dir" not in words else config_name(config)
            out.pop()
            for file in with_bases(config):
                out += ["--config", _for_parser(file)]
        else:
            out.append(_SHORT_NAMES.get(word, word))
        previous = word
    # A run that is there already has its own config.
    if name is None and out and (out[0] in ("validate", "test", "predict") or "--resume" in out):
        run = _named_run(out)
        if run is not None and (run / "config.yaml").is_file():
            out[1:1] = ["--config", _for_parser(run / "config.yaml")]
            name = run
    return out, name


def _with_view_keys(words: list[str]) -> list[str]:
    """Words with `--views 3x1` as the two keys of a config that it stands for.

    Raises:
        UserError: it names no views, or the keys are there, too.
    """
    if "--views" not in words:
        return words
    place = words.index("--views")
    name = words[place + 1] if place + 1 < len(words) else "nothing"
    values = dict(itertools.pairwise(words))
    try:
        given = values.get("--data.num_clips"), values.get("--data.num_crops")
        asked = asked_views(views(name), *given, prefix="data.")
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--views: {error}") from error
    keys = [word for key, value in asked.items() for word in (f"--data.{key}", str(value))]
    return words[:place] + keys + words[place + 2 :]


def _for_parser(file: Path) -> str:
    """The path; or the content in ASCII, where jsonargparse, which reads by the locale, would read another one."""
    try:
        if file.read_text(encoding=locale.getpreferredencoding(False)) == read_text(file):
            return str(file)
    except UnicodeDecodeError:
        pass
    return yaml.safe_dump(_read(file), sort_keys=False)


def _named_run(args: list[str]) -> Path | None:
    """The folder of the run, or of the checkpoint's run, that the arguments name.

    Raises:
        UserError: they name a run that there is not, and no data either.
    """
    values = dict(itertools.pairwise(args))
    ckpt, name = values.get("--ckpt_path"), values.get("--name")
    runs = Path(expanded(values.get("--runs_dir", "runs")))
    if name is not None:
        run = run_folder(name, runs)
        if not (run / "config.yaml").is_file() and "--data.root" not in values:
            known = [str(there.relative_to(runs)) for there in find_runs(runs) if there != runs]
            there = f"in {runs} there are {', '.join(known)}" if known else f"there are none in {runs}"
            raise UserError(f"no run '{name}': {there}. Give another --name, or a config with -c")
        return run
    if ckpt is None:
        return None
    checkpoint = find_checkpoint("last" if ckpt == "best" else ckpt, runs)
    run = checkpoint.parent.parent
    if not (run / "config.yaml").is_file():
        from octvideo.models.checkpoint import read_checkpoint  # here: it imports libraries of networks

        read_checkpoint(checkpoint)  # what is wrong with it comes before what no config gives
    return run
