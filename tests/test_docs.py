"""The pages: their examples run, their commands, options, names and links exist, the site builds, the README is short.

A code block after `<!-- run -->` runs here, one after `<!-- run slow -->` in the slow tests; blocks of one page share a
folder, in order. Commands that do not run are read by the command's own parser.
"""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from octvideo.cli import COMMANDS, main
from octvideo.cli.arguments import Parser
from octvideo.cli.config_files import known_configs

REPO = Path(__file__).resolve().parents[1]
README = REPO / "README.md"
DOCS = sorted((REPO / "docs").rglob("*.md"))
PAGES = [README, REPO / "configs" / "README.md", REPO / "data" / "README.md", *DOCS]
# Mostly what programs print.
PRINTED = {"docs/costs.md", "docs/speed.md"}
# Classes of Lightning and builders have options of their own.
FREE = ("--model.network.", "--trainer.callbacks.", "--trainer.logger.")
PROGRAMS = ("train", "test", "infer")  # of tools/: the command's, under another name
# Configs that a reader of a page has written.
OWN_CONFIGS = {"my", "mine", "stop"}


def name_of(page: Path) -> str:
    return str(page.relative_to(REPO))


class Block(NamedTuple):
    """A block of code in a page."""

    mark: str | None  # "run", "run slow", or none
    language: str
    code: str
    place: str  # file and line


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(?:^<!-- (run(?: slow)?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(match[1], match[2], match[3], f"{name_of(page)}:{text.count(chr(10), 0, match.start(3)) + 1}")
        for match in found
    ]


def examples() -> Iterator[object]:
    """Pages with something to run: once with what is quick, once, slowly, with all of it."""
    for page in PAGES:
        marks = {block.mark for block in blocks(page)}
        if "run" in marks:
            yield pytest.param(page, ("run",), id=name_of(page))
        if "run slow" in marks:
            yield pytest.param(page, ("run", "run slow"), id=f"{name_of(page)} slow", marks=pytest.mark.slow)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("page", "marks"), examples())
def test_examples_run(page: Path, marks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    for name, words in (("octvideo", f"{sys.executable} -m octvideo"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.mark not in marks:
            continue
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
            continue
        assert block.language == "bash", f"{block.place}: can't run {block.language}"
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, f"{block.place}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands in the blocks of a page: where, and their words."""
    for block in blocks(page):
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                for part in line.split(" && "):
                    words = shlex.split(part, comments=True)
                    if words:
                        yield f"{block.place}: {part.strip()}", words


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def options(command: str) -> frozenset[str]:
    """All that the help of a command names."""
    pages = [[command], *([command, sub] for sub in ("download", "list", "reencode") if command == "prepare")]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(map(str, words)))
        patch.setattr("sys.stdout", Printed(printed))
        for words in pages:
            try:
                main([*words, "--help"])
            except SystemExit:
                continue
    return frozenset({"--help", *re.findall(r"--?\w[\w.]*", " ".join(printed))})


class Printed:
    """A standard output that keeps what is written."""

    def __init__(self, into: list[str]) -> None:
        self.into = into

    def write(self, text: str) -> int:
        self.into.append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def check_options(place: str, command: str, words: list[str]) -> None:
    """Each option is the command's; a config that is named is there."""
    assert command in COMMANDS, f"{place}: no command {command}"
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and not option.startswith(FREE):
            assert option in options(command), f"{place}: {command} has no option {option}"
    for flag in {"-c", "--config", "--cfg"} & set(words):
        config = words[words.index(flag) + 1].removesuffix(".yaml")
        assert config in {*known_configs(), *OWN_CONFIGS, "CONFIG", "NAME", "X"}, f"{place}: no config {config}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_what_their_parsers_take(page: Path) -> None:
    for place, words in commands(page):
        if words[0] == "octvideo":
            command, rest = words[1], words[2:]
            if command.startswith("--"):
                continue
            check_options(place, command, rest)
            module = import_module(f"octvideo.cli.{COMMANDS[command].module}")
            if COMMANDS[command].module != "lightning":
                parser = Parser(prog=place)
                module.add_arguments(parser)
                parser.parse_args(rest)
        elif words[0] == "python" and words[1].startswith("tools/"):
            program = REPO / words[1]
            assert program.is_file(), f"{place}: no program {words[1]}"
            if program.stem in PROGRAMS:
                check_options(place, "fit" if program.stem == "train" else program.stem, words[2:])
                continue
            source = "".join(file.read_text(encoding="utf-8") for file in (REPO / "tools").rglob("*.py"))
            source += (REPO / "octvideo" / "cli" / "arguments.py").read_text(encoding="utf-8")
            for option in (word for word in words[2:] if word.startswith("--") and word != "--"):
                assert f'"{option}"' in source or f'"{option[2:]}"' in source, f"{place}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_prose_names_is_there(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if code.startswith("octvideo ") and code.split()[1] not in ("COMMAND", "--help"):
            for command in code.split()[1].split("|"):
                check_options(f"{name_of(page)}: `{code}`", command, code.split()[2:])
        if re.fullmatch(r"octvideo(\.\w+)+(\(\))?", code) and code not in ("octvideo.json", "octvideo.configs"):
            pkgutil.resolve_name(code.removesuffix("()"))
        if re.fullmatch(r"(octvideo|tools|tests|docs|configs)/[\w./]*", code):
            assert (REPO / code).exists(), f"{name_of(page)}: no file {code}"


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower())).strip("-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_have_rows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    empty = re.findall(r"^(\|.*\|)\n\|[-:| ]+\|\n(?!\|)", text, re.MULTILINE)
    assert not empty, f"{name_of(page)}: no row under {empty}"
    assert not re.search(r"^(TABLE|FUSED|TODO|FIXME)\b", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), f"{name_of(page)}: no {target}"
        if anchor:
            assert anchor in slugs(found), f"{name_of(page)}: {file} has no heading {anchor}, but {slugs(found)}"


def sentences(page: Path) -> list[str]:
    """The sentences of a page's prose: of paragraphs and list items, not of tables."""
    parts, text = [], prose(page)
    text = re.sub(r"^(\||!\[|<!--|#).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", text):
        parts += re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))
    return [part for part in parts if part]


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in PRINTED], ids=name_of)
def test_sentences_are_short(page: Path) -> None:
    lengths = sorted((len(sentence.split()), sentence) for sentence in sentences(page)) or [(0, "")]
    words, sentence = lengths[int(0.9 * (len(lengths) - 1))]
    assert words <= 25, f"the 90th percentile is {words} words: {sentence}"


def test_the_readme_is_short() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_the_reference_has_every_command() -> None:
    text = (REPO / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"{{help:{command}" in text or f"`octvideo {command}`" in text, command


@pytest.mark.slow  # a part of `make docs`
def test_the_site_builds(tmp_path: Path) -> None:
    for module in ("mkdocs", "mkdocstrings", "material"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    env = {**os.environ, "PYTHONPATH": str(REPO), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, env=env, text=True, capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*.html")}
    assert {name_of(page)[5:-3] + ".html" for page in DOCS} <= pages
    # Nothing is loaded from elsewhere: links lead out, pictures, styles and programs do not.
    for file in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*?(?:src|href)=\"?(https?://[^\" >]+)", file.read_text("utf-8"))
        assert loaded == [], file


@pytest.mark.parametrize(
    "package", ["octave", "models", "video", "data", "evaluation", "training", "inference", "explain"]
)
def test_the_reference_has_every_public_name(package: str) -> None:
    text = (REPO / "docs" / "reference" / f"{package}.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: (octvideo\.{package}\.[\w.]+)$", text, re.MULTILINE)
    assert listed
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name
    public = getattr(import_module(f"octvideo.{package}"), "__all__", [])  # some packages are used by their modules
    assert {f"octvideo.{package}.{name}" for name in public} <= set(listed)
