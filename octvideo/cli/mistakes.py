"""Mistakes on the command line and in configs as one line: what was got, what was expected, what was probably meant.

jsonargparse's own messages take several lines of Python types. A message that is not known here is only put on one
line, so that another version of it is still readable.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

_TYPED = re.compile(r"Expected an? (?P<expected>.+?)\.? Got value: (?P<got>.*)", re.DOTALL)
_UNION = re.compile(r"Subtypes: \[(?P<expected>.*?)\]\s+Errors:.*Given value: (?P<got>.*)", re.DOTALL)
_KEYED = re.compile(r"Parser key \"(?P<key>[^\"]+)\":\s*(?P<rest>.*)", re.DOTALL)
_BUILDER = re.compile(r"Problem with given class_path '(?P<path>[^']+)':\s*(?P<rest>.*?)(?=\n {2,4}- |\Z)", re.DOTALL)
# What a constructor raised, among what values of other types are expected to be.
_CONSTRUCTOR = re.compile(r"^  - (?!Expected |Not a )(?P<said>.+?)(?=\n  - |\nGiven value)", re.DOTALL | re.MULTILINE)


def joined_lines(text: object) -> str:
    """A message of several lines on one."""
    return re.sub(r"\s*\n\s*", " ", str(text).strip())


def explain(message: str, *, subcommand: str, keys: Iterable[str]) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: of the parser.
        subcommand: that was asked for.
        keys: that the subcommand knows.
    """
    if match := re.search(r"unrecognized arguments: (.*)", message, re.DOTALL):
        option = match[1].split()[0]
        if not option.startswith("-"):
            return f"{option!r} belongs to no option: options are --KEY VALUE, and a config is -c CONFIG"
        return f"no option {option}{meant(option, [f'--{key}' for key in keys])}"
    if match := re.search(r"does not accept option '([^']+)'", message):
        return f"no key {match[1]}{meant(match[1], keys)} (all keys: octvideo {subcommand} --help)"
    if match := re.match(r"the following arguments are required: (.*)", message):
        missing = ", ".join(key.removeprefix(f"{subcommand}.") for key in match[1].split(", "))
        return f"{missing} not given: start from a config, octvideo {subcommand} -c CONFIG (listed by octvideo configs)"
    if match := _KEYED.match(message):
        return f"{match['key']}: {wrong_value(match['rest'])}"
    return joined_lines(message)


def wrong_value(problem: str) -> str:
    """One line for what jsonargparse says of the value of a key."""
    if match := _BUILDER.search(problem):
        return wrong_builder(match["path"], match["rest"])
    of_constructor = _CONSTRUCTOR.search(problem)
    if of_constructor and "Namespace(class_path=" in problem:
        return joined_lines(of_constructor["said"])
    if match := _UNION.search(problem) or _TYPED.search(problem):
        return f"expected {types_in_words(match['expected'])}, got {joined_lines(match['got'])}"
    return joined_lines(problem)


def wrong_builder(path: str, problem: str = "") -> str:
    """One line for the path of a class or a function that is not there, or that the parser has a problem with."""
    module, _, name = path.rpartition(".")
    try:
        there = importlib.import_module(module)
    except ImportError as error:
        return f"can't import {path} ({error})"
    if not hasattr(there, name):
        known = [other for other in dir(there) if not other.startswith("_")]
        listed = f": there are {', '.join(there.__all__)}" if hasattr(there, "__all__") else ""
        return f"{module} has no {name!r}{meant(name, known)}{listed}"
    if match := re.search(r"[Oo]ption '([^']+)' is not accepted", problem):
        arguments = list(inspect.signature(getattr(there, name)).parameters)
        return f"{path} has no argument {match[1]!r}{meant(match[1], arguments)}: there are {', '.join(arguments)}"
    if match := _KEYED.match(problem):
        return f"{match['key']} of {path}: {wrong_value(match['rest'])}"
    return f"{path}: {joined_lines(problem)}".replace(": the following arguments are required:", " needs")


def types_in_words(kind: object) -> str:
    """Types, or Python's spelling of them, as words: <class 'int'>, <class 'NoneType'> -> int or null."""
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", re.sub(r"<class '([^']+)'>", r"\1", str(kind)))
    text = re.sub(r"^Optional\[(.*)\]$", r"\1, None", re.sub(r"^Union\[(.*)\]$", r"\1", text))
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace("'", ""), text)
    names = list(dict.fromkeys(re.findall(r"[\w-]+(?:\[.*?\]+)?", text)))
    names = ["null" if name in ("None", "NoneType") else name for name in names] or [joined_lines(text)]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def meant(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` of the known word that is most like it; nothing where none is.

    Example:
        >>> meant("--model.learning_rate", ["--model.lr", "--model.lock"])
        ' (did you mean --model.lr?)'
    """

    # Of two keys of one group only the last part tells: the rest is alike however different they are.
    def likeness(other: str) -> float:
        (place, _, name), (other_place, _, other_name) = word.rpartition("."), other.rpartition(".")
        if place == other_place:
            if other_name == "".join(part[:1] for part in name.split("_")) != name[:1]:
                return 1.0  # learning_rate: lr
            return difflib.SequenceMatcher(None, name, other_name).ratio()
        if not place and difflib.SequenceMatcher(None, name.lstrip("-"), other_name).ratio() > 0.85:
            return 0.9  # --num_workers: --data.num_workers
        return difflib.SequenceMatcher(None, word, other).ratio() - 0.2

    best = max(known, key=likeness, default="")
    return f" (did you mean {best}?)" if best and likeness(best) > 0.65 else ""
