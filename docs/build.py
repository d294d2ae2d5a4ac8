"""What building the site does beside the usual: help pages of the commands, and examples in docstrings."""

import contextlib
import io
import os
import re

import griffe

from octvideo.cli import COMMANDS, main


class Examples(griffe.Extension):
    """Google's style knows `Examples:` only, and would show the code after `Example:` as quoted text."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs' hook: `{help: COMMAND}` becomes what `octvideo COMMAND --help` prints."""
    return re.sub(r"\{help:(.*?)\}", lambda found: help_of(*found[1].split()), markdown)


def help_of(*words: str) -> str:
    """The help page of a command, as a block of text."""
    if words and words[0] not in COMMANDS:
        raise ValueError(f"no command {words[0]}: there are {', '.join(COMMANDS)}")
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return f"```text\n{printed.getvalue().strip()}\n```"
