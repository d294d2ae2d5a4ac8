"""Configs by name, configs that start from others, and the short flags: from what was typed to what the
parser reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml

from octvideo.errors import UserError
from octvideo.inference.checkpoint import newest_checkpoint

Subcommand = Literal["fit", "validate", "test", "predict"]
SUBCOMMANDS = ("fit", "validate", "test", "predict")
CONFIG_FLAGS = ("-c", "--config", "--cfg")
_SHORT_NAMES = {"--init": "--model.init_weights", "--ckpt": "--ckpt_path"}


def find_config(name: str, *, beside: Path | None = None) -> Path:
    """The file meant by `--config name`: as given, then in ./configs, then in the repository's configs.

    Args:
        name: a path or a bare name, with or without .yaml.
        beside: a folder to look in first (of the config that names this one as its base).

    Raises:
        UserError: there is none, with the places looked in.
    """
    places = [Path(), Path("configs"), Path(__file__).resolve().parents[1] / "configs"]
    if beside is not None:
        places.insert(0, beside)
    tried: list[Path] = []
    for place in places:
        for file in [place / name] if Path(name).suffix else [place / f"{name}.yaml", place / name]:
            if file.is_file():
                return file
            tried.append(file)
    looked = ", ".join(dict.fromkeys(map(str, tried)))
    known = sorted({file.name for place in places[-2:] for file in place.glob("*.yaml")})
    raise UserError(f"no config '{name}': looked for {looked}; there are {', '.join(known) or 'none'}")


def with_bases(config: Path) -> list[Path]:
    """The config after those that it starts from (its `base:`, and theirs), in the order to read them."""
    chain = [config]
    while True:
        try:
            content = yaml.safe_load(chain[0].read_text())
        except yaml.YAMLError as error:
            raise UserError(f"{chain[0]} is not YAML: {error}") from error
        base = content.get("base") if isinstance(content, dict) else None
        if base is None:
            return chain
        found = find_config(str(base), beside=chain[0].parent)
        if found.resolve() in [file.resolve() for file in chain]:
            raise UserError(f"{chain[0]}: its base {found} starts from it again")
        chain.insert(0, found)


def prepare_argv(argv: Sequence[str], *, default: Subcommand | None = None) -> tuple[list[str], str | None]:
    """What Lightning's parser is given for what the user typed.

    Args:
        argv: as typed.
        default: subcommand to put in front where there is none.

    Returns:
        The arguments, and the name for a run that is given none: that of its last config.

    Raises:
        UserError: a config can't be found.
    """
    argv = list(argv)
    if default is not None and (not argv or argv[0] not in SUBCOMMANDS):
        argv.insert(0, default)
    # `--flag=value` as two words, so that below there is one form.
    words = [
        word for arg in argv for word in (arg.split("=", 1) if arg.startswith("-") and "=" in arg else [arg])
    ]
    out: list[str] = []
    stem = None
    previous = ""
    for word in words:
        if previous in CONFIG_FLAGS:
            config = find_config(word)
            stem = config.stem
            out.pop()
            for file in with_bases(config):
                out += ["--config", str(file)]
        else:
            out.append(_SHORT_NAMES.get(word, word))
        previous = word
    if out and out[0] in ("validate", "test", "predict") and stem is None:
        config = _config_of_run(out)
        if config is not None:
            out[1:1] = ["--config", str(config)]
    return out, stem


def _config_of_run(args: list[str]) -> Path | None:
    """The config.yaml saved with the checkpoint or the run that the arguments name, where they name no
    config.
    """
    values = dict(itertools.pairwise(args))
    ckpt, name = values.get("--ckpt_path"), values.get("--name")
    runs = Path(values.get("--runs_dir", "runs"))
    if name is not None:
        run = runs / name
    elif ckpt in ("last", "best"):
        run = newest_checkpoint(runs).parents[1]
    elif ckpt is not None:
        run = Path(ckpt).absolute().parents[1]
    else:
        return None
    return run / "config.yaml" if (run / "config.yaml").is_file() else None
