"""The table of commands: each has its parts and is on the page of help; one option is spelt one way in all."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octvideo.cli import COMMANDS
from octvideo.cli.arguments import Parser, output_folder, output_path, with_underscores

Cli = Callable[..., tuple[str, str]]
OWN = {name: command for name, command in COMMANDS.items() if command.module != "lightning"}
# What a new command might call what others have: the word of the others.
OTHER_WORDS = {
    "workers": "num_workers", "jobs": "num_workers", "num_threads": "threads", "out": "output", "out_dir": "output",
    "clips": "num_clips", "crops": "num_crops", "force": "overwrite",
    "checkpoint": "ckpt", "runs": "runs_dir", "reader": "decoder", "random_seed": "seed", "top_k": "topk",
}  # fmt: skip


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Its options and those of its subcommands, by their long names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options(inner)
        for option in action.option_strings:
            if option.startswith("--"):
                yield option.removeprefix("--"), action


def parser_of(name: str) -> Parser:
    parser = Parser(prog=f"octvideo {name}")
    importlib.import_module(f"octvideo.cli.{COMMANDS[name].module}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_parts_and_is_on_the_page(name: str, octvideo: Cli) -> None:
    module = importlib.import_module(f"octvideo.cli.{COMMANDS[name].module}")
    assert callable(module.add_arguments) and callable(module.run) and (module.__doc__ or "").strip()
    page, _ = octvideo("--help")
    assert re.search(rf"^  {name} +{re.escape(COMMANDS[name].help)}$", page, re.MULTILINE)


def test_the_page_of_help_has_no_other_commands_and_fits(octvideo: Cli) -> None:
    page, _ = octvideo("--help")
    assert re.findall(r"^  ([\w-]+)  +\w", page, re.MULTILINE) == list(COMMANDS)
    assert max(map(len, page.splitlines())) <= 120 and len(page.splitlines()) < 45
    for line in re.findall(r"^  octvideo (.*)", page, re.MULTILINE):
        assert all(part.split()[0] in COMMANDS for part in line.split("&& octvideo "))


@pytest.mark.parametrize("name", OWN)
def test_options_are_spelt_one_way(name: str) -> None:
    found = dict(options(parser_of(name)))
    assert [option for option in found if "-" in option] == []
    assert {option: OTHER_WORDS[option] for option in found if option in OTHER_WORDS} == {}


def test_an_option_is_the_same_in_all_commands() -> None:
    everywhere: dict[str, set[tuple[object, ...]]] = {}
    for name in OWN:
        for option, action in options(parser_of(name)):
            everywhere.setdefault(option, set()).add((*action.option_strings, action.type, type(action)))
    # A file that grows, or a folder of whole files.
    assert everywhere.pop("output") == {
        ("-o", "--output", kind, argparse._StoreAction) for kind in (output_path, output_folder)
    }
    assert {option for option, kinds in everywhere.items() if len(kinds) > 1} == set()


@pytest.mark.parametrize("name", OWN)
def test_its_help_is_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of(name).parse_args(["--help"])
    assert ended.value.code == 0
    assert f"usage: octvideo {name} " in capsys.readouterr().out


def test_hyphens_of_habit_are_underscores() -> None:
    words = ["a-b", "--num-workers", "2", "--data.num-clips=x-y", "-o", "c-d", "--", "--e-f"]
    assert with_underscores(words[:-2]) == ["a-b", "--num_workers", "2", "--data.num_clips=x-y", "-o", "c-d"]


def test_hyphens_are_read_by_every_command(octvideo: Cli, workplace: Path, tiny_data: Path) -> None:
    octvideo("demo-data", "--videos-per-class", 1, "--test-videos-per-class=1", "-o", "demo", "--num-workers", 1)
    out, _ = octvideo("fit", "-c", "tiny", "--data.num-clips", 7, "--print_config")
    assert "num_clips: 7" in out
    octvideo("prepare", "reencode", tiny_data, "small", "--short-side", 32, "--dry-run", code=2)  # of another command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no command given: octvideo fit|validate|test|"),
        ("-c demo fit", "no command given"),
        ("chek videos", "no command 'chek' (did you mean check?): there are fit, "),
        (
            "check x --workers 3",
            "no option --workers (did you mean --num_workers?); all options: octvideo check --help",
        ),
        ("report x --out y.png", "no option --out (did you mean --output?)"),
        (
            "prepare list folder x --vall 1",
            "no option --vall (did you mean --val?); all options: octvideo prepare list",
        ),
        ("score x --pair a,b", "no option --pair (did you mean --pairs?)"),  # no abbreviations: they would change
        ("cost i3d_r50", "no argument i3d_r50"),
        ("check", "FOLDER|VIDEO|LIST|CSV not given; all options: octvideo check --help"),
        ("check x --num_workers 0", "--num_workers: got 0, expected 1 or more"),
        ("check x --timeout nan", "--timeout: got nan, expected more than 0"),
        ("check x --min_readable 2", "--min_readable: got 2, expected 0 to 1"),
        ("infer x --threads two", "--threads: got two, expected 1 or more"),
        ("infer x --json -o y", "-o/--output: not allowed with argument --json"),
        ("timeline x --views 1x1 --num_clips 2", "--views 1x1 with --num_clips 2: both say how many views"),
        ("features x --views 1x1 --num_crops 1", "--views 1x1 with --num_crops 1: both say how many views"),
        ("prepare frobnicate", "COMMAND: invalid choice: 'frobnicate'"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, octvideo: Cli, tmp_path: Path) -> None:
    out, err = octvideo(*words.split(), code=2)
    assert not out and err.count("\n") == 1 and err.startswith(f"error: {message}"), err


# ── configs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_configs_are_listed_with_what_they_train(octvideo: Cli, workplace: Path, repo: Path) -> None:
    (workplace / "configs").mkdir()
    (workplace / "configs" / "mine.yaml").write_text("# My network. More of it.\nbase: demo\n")
    out, _ = octvideo("configs")
    assert octvideo("configs", "list")[0] == out
    assert f"In {workplace / 'configs'}:\n  mine  My network\n" in out
    assert re.search(r"^  i3d_oct +Oct-I3D ResNet-50, alpha .1, on Kinetics-400 from scratch$", out, re.MULTILINE)
    assert {file.stem for file in repo.glob("configs/*.yaml")} <= set(re.findall(r"^  (\w+) ", out, re.MULTILINE))


def test_a_config_is_copied_with_bases_that_are_found(octvideo: Cli, workplace: Path, repo: Path) -> None:
    out, _ = octvideo("configs", "copy", "i3d_oct", "mine/my_i3d")
    assert out.startswith(f"mine/my_i3d.yaml: a copy of {repo / 'configs' / 'i3d_oct.yaml'}; train with octvideo fit")
    text = Path("mine/my_i3d.yaml").read_text()
    assert "# Copied from octvideo's i3d_oct.yaml, which starts from kinetics400.yaml: found by name" in text
    original = (repo / "configs" / "i3d_oct.yaml").read_text()
    assert [line for line in text.splitlines() if not line.startswith("# Copied")] == original.splitlines()
    same = ("--name", "a", "--print_config")
    assert octvideo("fit", "-c", "mine/my_i3d", *same) == octvideo("fit", "-c", "i3d_oct", *same)
    octvideo("configs", "copy", "demo")
    Path("demo.yaml").write_text("# changed\n")
    _, err = octvideo("configs", "copy", "demo", code=2)
    assert err.startswith("error: demo.yaml is there already: give another name") and "--overwrite" in err
    assert Path("demo.yaml").read_text() == "# changed\n"
    octvideo("configs", "copy", repo / "configs" / "demo.yaml", ".", "--overwrite")
    assert "i3d_small" in Path("demo.yaml").read_text()
    _, err = octvideo("configs", "copy", "demoo", code=2)
    assert "no config 'demoo'" in err
