"""Configs by name, configs that start from others, and the short flags: from what was typed to what the
parser reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from octvideo.errors import UserError
from octvideo.files import read_text
from octvideo.inference.checkpoint import newest_checkpoint

Subcommand = Literal["fit", "validate", "test", "predict"]
SUBCOMMANDS = ("fit", "validate", "test", "predict")
CONFIG_FLAGS = ("-c", "--config", "--cfg")
_FOLDERS = (Path("configs"), Path(__file__).resolve().parents[1] / "configs")
_SHORT_NAMES = {"--init": "--model.init_weights", "--ckpt": "--ckpt_path"}


def find_config(name: str, *, beside: Path | None = None) -> Path:
    """The file meant by `--config name`: as given, then in ./configs, then in the repository's configs.

    Args:
        name: a path or a bare name, with or without .yaml.
        beside: a folder to look in first (of the config that names this one as its base).

    Raises:
        UserError: there is none, with the places looked in.
    """
    places = [Path(), *_FOLDERS]
    if beside is not None:
        places.insert(0, beside)
    tried: list[Path] = []
    for place in places:
        for file in [place / name] if Path(name).suffix else [place / f"{name}.yaml", place / name]:
            if file.is_file():
                return file
            tried.append(file)
    looked = ", ".join(dict.fromkeys(map(str, tried)))
    raise UserError(f"no config '{name}': looked for {looked}; there are {', '.join(known_configs()) or 'none'}")


def known_configs() -> list[str]:
    """Names of the configs that are found by name."""
    return sorted({file.stem for place in _FOLDERS for file in place.glob("*.yaml")})


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


def prepare_argv(argv: Sequence[str], *, default: Subcommand | None = None) -> tuple[list[str], str | None]:
    """What Lightning's parser is given for what the user typed.

    Args:
        argv: as typed.
        default: subcommand to put in front where there is none.

    Returns:
        The arguments, and the name for a run that is given none: that of its last config.

    Raises:
        UserError: a config or a run can't be found.
    """
    argv = list(argv)
    if default is not None and (not argv or argv[0] not in SUBCOMMANDS):
        argv.insert(0, default)
    # `--flag=value` as two words, so that below there is one form.
    words = [word for arg in argv for word in (arg.split("=", 1) if arg.startswith("-") and "=" in arg else [arg])]
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
    # A run that is there already has its own config.
    if stem is None and out and (out[0] in ("validate", "test", "predict") or "--resume" in out):
        own = _config_of_run(out)
        if own is not None:
            out[1:1] = ["--config", str(own)]
    return out, stem


def _config_of_run(args: list[str]) -> Path | None:
    """The config.yaml saved with the checkpoint or the run that the arguments name, where they name no config.

    Raises:
        UserError: they name a run that there is not, and no data either.
    """
    values = dict(itertools.pairwise(args))
    ckpt, name = values.get("--ckpt_path"), values.get("--name")
    runs = Path(values.get("--runs_dir", "runs"))
    if name is not None:
        run = runs / name
        if not (run / "config.yaml").is_file() and "--data.root" not in values:
            known = sorted(file.parent.name for file in runs.glob("*/config.yaml"))
            there = f"in {runs} there are {', '.join(known)}" if known else f"there are none in {runs}"
            raise UserError(f"no run '{name}': {there}. Give another --name, or a config with -c")
    elif ckpt in ("last", "best"):
        run = newest_checkpoint(runs).parent.parent
    elif ckpt is not None:
        run = Path(ckpt).absolute().parent.parent
    else:
        return None
    return run / "config.yaml" if (run / "config.yaml").is_file() else None
