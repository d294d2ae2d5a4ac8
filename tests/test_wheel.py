"""What a user installs: a wheel and an sdist, in a folder without a checkout, on a machine without a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from octvideo.octave.kernel import library
from octvideo.octave.kernel.variants import MACHINE, VARIANTS, find_compiler

ALL = [variant for variant in VARIANTS if variant.machine == MACHINE]
HERE = (library.runnable_variants() or ALL)[-1:]  # that compiles soonest: without the formats of newer processors
pytestmark = [
    pytest.mark.skipif(not ALL or find_compiler() is None, reason="no kernel can be compiled here"),
    pytest.mark.timeout(900),
]
# In one process, since each would import all libraries again. Its first line says which kernel there is.
RUNS_COMMANDS = """
import json, sys
from octvideo.cli import main
from octvideo.octave.kernel.library import kernel_file, load_library
print(kernel_file(), load_library().num_registers(), flush=True)
commands = json.loads(sys.argv[1])
for command in commands:
    print("the last one" if command is commands[-1] else command, flush=True)
    if code := main(command):
        sys.exit(f"{command} ended with {code}")
"""


def run(command: list[str | Path], folder: Path, **variables: str) -> str:
    """Runs it, and gives what it printed. Nothing in its environment leads to this checkout."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CXX")}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


def build(repo: Path, folder: Path, *options: str, **variables: str) -> str:
    """`python -m build`, with the setuptools that is installed here, so that no network is needed."""
    python: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, *options, repo]
    return run(python, repo, **variables)


@pytest.fixture(scope="module")
def dist(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built of it, with the variant for this processor."""
    folder = tmp_path_factory.mktemp("dist")
    build(repo_root, folder, OCTVIDEO_BUILD_KERNEL=HERE[0].name)
    return folder


@pytest.fixture(scope="module")
def repo_root() -> Path:
    return Path(__file__).resolve().parents[1]


def test_contents(repo_root: Path, tmp_path: Path) -> None:
    """Of what a compiler makes the name alone counts, so that one which makes empty files is soon ready."""
    compiler, dist = tmp_path / "g++", tmp_path / "dist"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')
    compiler.chmod(0o755)
    build(repo_root, dist, OCTVIDEO_BUILD_KERNEL=HERE[0].name, CXX=str(compiler))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("any.whl")
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = set(opened.namelist())
    with tarfile.open(sdist) as packed:
        in_sdist = {name.partition("/")[2] for name in packed.getnames()}
    configs = {file.name for file in (repo_root / "configs").glob("*.yaml")}
    sources = {str(file.relative_to(repo_root)) for file in (repo_root / "octvideo").rglob("*") if file.is_file()}
    sources = {name for name in sources if "__pycache__" not in name}
    assert configs and {f"octvideo/configs/{name}" for name in configs} <= in_wheel
    assert {f"configs/{name}" for name in configs} <= in_sdist
    assert sources <= in_wheel and sources <= in_sdist
    assert {HERE[0].file.name} == {Path(name).name for name in in_wheel if "prebuilt" in name}
    assert all(name.startswith(("octvideo/", "octvideo-")) for name in in_wheel)
    assert not any(name.startswith(("tests", "tools")) or name.endswith(".so") for name in in_sdist)


@pytest.mark.slow
def test_all_variants(repo_root: Path, tmp_path: Path) -> None:
    build(repo_root, tmp_path, "--wheel", OCTVIDEO_BUILD_KERNEL="1")
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as opened:
        names = {Path(name).name for name in opened.namelist() if "prebuilt" in name}
    assert names == {variant.file.name for variant in ALL}


def test_no_compiler_no_kernel(repo_root: Path, tmp_path: Path) -> None:
    said = build(repo_root, tmp_path, "--wheel", CXX="no-such-compiler")
    (wheel,) = tmp_path.iterdir()
    assert "no C++ compiler" in said and wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert not any(name.endswith(".so") for name in opened.namelist())


def test_kernel_of_other_sources_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prebuilt one is known by its sources: an edited checkout compiles its own."""
    before = VARIANTS[0].file.name
    monkeypatch.setattr("octvideo.octave.kernel.variants.FOLDER", tmp_path)
    for source in Path(library.__file__).parent.glob("*.[ch]*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    assert VARIANTS[0].file.name == before
    (tmp_path / "vectors.h").write_text("// another\n")
    assert VARIANTS[0].file.name != before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_all_commands_run_where_it_is_installed(kind: str, dist: Path, tmp_path: Path) -> None:
    python = virtual_environment(tmp_path / "venv")
    (file,) = dist.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run([*pip, "--ignore-installed", "--no-build-isolation", file], tmp_path)

    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    machine = {"PATH": str(python.parent), "OCTVIDEO_CACHE": str(cache), "HOME": str(tmp_path)}
    if VARIANTS[-1].machine != MACHINE and not library.runnable_variants():
        pytest.skip("this processor is older than all that wheels have")
    assert run([python.parent / "octvideo", "--version"], work, **machine).startswith("octvideo ")
    video = "data/demo/test/rotate_clockwise/000.mp4"
    commands = f"""
        demo-data --videos_per_class 2 --test_videos_per_class 1
        fit -c demo --trainer.max_epochs 1 --trainer.limit_train_batches 2 --data.batch_size 4
        test -c demo --data.num_clips 1 --data.num_crops 1
        export --ckpt demo --engine onnx --output model
        report runs/demo
        check data/demo/test
        prepare list folder data/demo/train --output lists
        infer {video} --ckpt demo
    """
    words = json.dumps([line.split() for line in commands.strip().splitlines()])
    said = run([python, "-c", RUNS_COMMANDS, words], work, **machine)
    kernel, registers = said.partition("\n")[0].rsplit(" ", 1)
    assert Path(kernel).is_relative_to(tmp_path / "venv") and int(registers) >= 16
    assert Path(video).name in said.rpartition("the last one")[2]
    for made in ("runs/demo/scores.npz", "model/octvideo.json", "runs/demo/report.png", "lists/train.txt"):
        assert (work / made).is_file(), made
    assert not cache.exists()


def virtual_environment(folder: Path) -> Path:
    """An empty one that sees the libraries installed here, but not this checkout; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=100)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file adds that folder alone: the .pth files in it, an editable octvideo's too, are not read.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder / "bin" / "python"
