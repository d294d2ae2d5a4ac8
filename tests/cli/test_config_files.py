"""From what is typed to what Lightning's parser reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from octvideo.cli.config_files import find_config, known_configs, prepare_argv, with_bases
from octvideo.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "near.yaml").write_text("base: far.yaml\n")
    (tmp_path / "configs" / "far.yaml").write_text("model: {lr: 0.1}\n")
    return tmp_path


def test_a_config_is_looked_up_as_given_then_in_configs(here: Path) -> None:
    assert find_config("near.yaml") == Path("configs/near.yaml")
    assert find_config("near") == Path("configs/near.yaml")
    (here / "near.yaml").write_text("{}")
    assert find_config("near.yaml") == Path("near.yaml")
    (here / "configs" / "v1.0 b.yml").write_text("{}")
    assert find_config("v1.0 b") == Path("configs/v1.0 b.yml")


def test_the_configs_that_ship_are_found_from_anywhere(here: Path, repo: Path) -> None:
    assert find_config("i3d_oct.yaml") == repo / "configs" / "i3d_oct.yaml"


def test_a_missing_config_says_where_it_looked_and_what_there_is(here: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_config("nope.yaml")
    assert str(caught.value).startswith("no config 'nope.yaml': looked for nope.yaml, configs/nope.yaml, ")
    assert "there are " in str(caught.value) and ", near" in str(caught.value)


def test_what_follows_a_dot_is_no_suffix(here: Path) -> None:
    (here / "configs" / "demo_a0.25.yaml").write_text("base: i3d v1.0\n")
    (here / "i3d v1.0.yaml").write_text("{}")
    assert find_config("demo_a0.25") == find_config("demo_a0.25.yaml") == Path("configs/demo_a0.25.yaml")
    args, name = prepare_argv(["fit", "-c", "demo_a0.25"])
    assert args[1:] == ["--config", "i3d v1.0.yaml", "--config", "configs/demo_a0.25.yaml"]
    assert name == "demo_a0.25" and name in known_configs()


def test_bases_are_read_first(here: Path) -> None:
    assert with_bases(Path("configs/near.yaml")) == [Path("configs/far.yaml"), Path("configs/near.yaml")]


def test_configs_that_start_from_each_other_are_refused(here: Path) -> None:
    (here / "configs" / "far.yaml").write_text("base: near.yaml\n")
    with pytest.raises(UserError, match="starts from it again"):
        with_bases(Path("configs/near.yaml"))


@pytest.mark.parametrize("flag", [["--cfg", "near"], ["-c", "near"], ["--config=near"]])
def test_all_spellings_of_a_config_are_one(here: Path, flag: list[str]) -> None:
    args, name = prepare_argv(["fit", *flag, "--model.lr", "3"])
    assert args == ["fit", "--config", "configs/far.yaml", "--config", "configs/near.yaml", "--model.lr", "3"]
    assert name == "near"


def test_short_flags_and_a_given_subcommand(here: Path) -> None:
    args, _ = prepare_argv(["test", "-c", "far", "--ckpt=a=b.ckpt", "--init", "x"])
    assert args == [
        "test",
        "--config",
        "configs/far.yaml",
        "--ckpt_path",
        "a=b.ckpt",
        "--model.init_weights",
        "x",
    ]


def test_views_by_name_are_two_keys() -> None:
    keys = ["--data.num_clips", "3", "--data.num_crops", "1"]
    for words in (["--views", "3x1"], ["--views=3x1"]):
        args, _ = prepare_argv(["test", *words, "--model.lr", "3"])
        assert args == ["test", *keys, "--model.lr", "3"]
    for words, message in (
        ("--views 3", "--views: got 3, expected clips x crops"),
        ("--views", "--views: got nothing, expected clips x crops"),
        ("--views 3x1 --data.num_crops 3", "--views 3x1 with --data.num_crops 3: both say how many views"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_argv(["test", *words.split()])


def test_a_test_without_config_takes_the_runs_own(here: Path) -> None:
    run = here / "runs" / "demo"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").write_text("{}")
    for words in (["--name", "demo"], ["--ckpt", "last"], ["--ckpt", "runs/demo/checkpoints/last.ckpt"]):
        args, _ = prepare_argv(["test", *words])
        assert Path(args[2]).resolve() == run / "config.yaml", words
