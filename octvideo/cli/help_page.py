"""Help as a page: our keys first, those of Lightning's Trainer in a line each; and the arguments of a builder."""

from __future__ import annotations

import inspect
import itertools
import pkgutil
import shutil
import textwrap
from argparse import Action, HelpFormatter
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

import octvideo.models as models
from octvideo.cli.arguments import DEBUG_HELP
from octvideo.cli.mistakes import types_in_words, wrong_builder
from octvideo.errors import UserError

BUILDER_HELP = "--model.network.help"
_INDENT = 38
_GROUPS = {"": "The run", "model": "Network and training", "data": "Data"}
_TRAINER = "Lightning's Trainer, a line each (in full: https://lightning.ai/docs/pytorch/stable/common/trainer.html)"
_MORE = {
    "--init WEIGHTS, --ckpt RUN|FILE": "short for --model.init_weights and --ckpt_path",
    "--views CLIPSxCROPS": "short for --data.num_clips and --data.num_crops, as 10x3",
    "--print_config": "print the config that all other words give; --print_config=skip_default leaves defaults out",
    f"{BUILDER_HELP} [BUILDER]": "the arguments of a network's builder, or which builders there are",
    "--trainer.callbacks.help CLASS": "the arguments of a callback, as EarlyStopping; --trainer.logger.help likewise",
    "--debug": DEBUG_HELP,
}
# In place of Lightning's.
_TEXTS = {
    "seed_everything": "of all that is drawn at random; true draws it",
    "ckpt_path": "last or best of this run, another run, or a file; fit goes on with it, others take best, or last",
    "weights_only": "see torch.load",
    "trainer.logger": "Loggers beside the run's own, which write metrics.csv and TensorBoard's events; false: none",
    "trainer.callbacks": "Callbacks beside the run's own, such as EarlyStopping",
    "trainer.default_root_dir": "The run's folder: set by runs_dir and name",
    "trainer.use_distributed_sampler": "Leave it: the data is shared out among processes already",
}


class HelpParser(LightningArgumentParser):
    """Lightning's, whose subcommands' help is a page."""

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        if self._subcommands_action is not None:
            return super().format_help()
        page = [] if self.usage is None else [f"usage: {self.usage}", ""]
        page += [self.description or "", ""]
        groups: dict[str, list[Action]] = {}
        for action in self._actions:
            if action.dest == "config" or (hasattr(action, "_typehint") and not action.dest.endswith(".help")):
                groups.setdefault(action.dest.rpartition(".")[0].partition(".")[0], []).append(action)
        if self.usage is None:  # of a class or a function
            return "\n".join([*page, *self._entries(itertools.chain(*groups.values())), ""])
        for name, title in _GROUPS.items():
            page += [f"{title}:", *self._entries(groups[name]), ""]
        page += [f"{_TRAINER}:", *self._entries(groups["trainer"], in_short=True), ""]
        page += ["More:", *(line for option, text in _MORE.items() for line in _entry(option, text))]
        return "\n".join([*page, ""])

    def _entries(self, actions: Iterable[Action], *, in_short: bool = False) -> list[str]:
        """Each option with what it is, its types and its default; in short, in a line without types."""
        lines = []
        for action in actions:
            option = ", ".join(word for word in action.option_strings if not word.endswith("+"))
            text = _TEXTS.get(action.dest, " ".join((action.help or "").replace("``", "").split())).removesuffix(".")
            if action.dest == "config":
                lines += _entry(option, text)
                continue
            kind = types_in_words(action._typehint)  # type: ignore[attr-defined]
            default = "required" if action.default is None and "null" not in kind else _value(action.default)
            if in_short:
                room = _width() - _INDENT - len(default) - 3
                text, kind = textwrap.shorten(text.partition(". ")[0], room, placeholder=" ..."), ""
            lines += _entry(option, f"{text} ({kind}{'; ' if kind else ''}{default})")
        return lines


def builder_help(words: Sequence[str]) -> str:
    """What `--model.network.help [BUILDER]` prints.

    Args:
        words: of the command line.

    Raises:
        UserError: there is no such builder.
    """
    name = next(iter(words[words.index(BUILDER_HELP) + 1 :]), "-")
    if name.startswith("-"):
        known = {f"octvideo.models.{name}": getattr(models, name) for name in models.__all__}
        lines = [line for path, builder in known.items() for line in _entry(path, _first_line(builder))]
        return "\n".join(["--model.network takes the path of a class or a function, such as", *lines])
    path = name if "." in name else f"octvideo.models.{name}"
    try:
        builder: Any = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(wrong_builder(path)) from error
    parser = HelpParser(description=f"{path}: {_first_line(builder)}")
    add = parser.add_class_arguments if inspect.isclass(builder) else parser.add_function_arguments
    add(builder, "model.network.init_args", fail_untyped=False)
    return parser.format_help()


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def _width() -> int:
    return min(max(shutil.get_terminal_size((120, 0)).columns, 80), 120)


def _entry(option: str, text: str) -> list[str]:
    """The option, and beside it, or below a long one, the text."""
    lines = textwrap.wrap(text, _width() - _INDENT) or [""]
    head = f"  {option:<{_INDENT - 4}}  "
    first = [head.rstrip()] if len(head) > _INDENT else [(head + lines.pop(0)).rstrip()]
    return [*first, *(" " * _INDENT + line for line in lines)]


def _value(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
