"""Who may import whom, held against every import statement of the package."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "octvideo"

# octvideo/<part> (a folder or a file) -> the parts it may import. `FREE` ones are free for all.
FREE = {"errors", "files", "class_names", "_version"}
PARTS: dict[str, set[str]] = {
    "": set(),  # octvideo/__init__.py
    "errors": set(),
    "files": set(),
    "_version": set(),
    "class_names": set(),
    "timing": set(),
    "allocator": set(),
    "program": {"mistakes"},
    "json_lines": set(),
    "download": set(),
    "progress": set(),
    "seeds": set(),
    "octave": set(),
    "models": {"octave", "download", "progress"},
    "video": set(),
    "data": {"video", "download", "json_lines", "program", "progress", "seeds"},
    "evaluation": set(),
    "training": {"models", "evaluation", "octave", "timing", "seeds"},
    "inference": {"video", "models", "evaluation", "octave", "json_lines", "program", "progress"},
    "benchmark": {
        "models",
        "octave",
        "inference",
        "training",
        "timing",
        "video",
        "data",
        "allocator",
        "program",
        "progress",
    },
    "config_files": {"inference"},
    "mistakes": set(),
    "help_page": {"models", "mistakes", "program"},
    "class_count": {"data"},
    "cli": {
        "data",
        "training",
        "inference",
        "config_files",
        "help_page",
        "class_count",
        "mistakes",
        "models",
        "allocator",
        "program",
    },
}
# Parts that must stay light -> the libraries they may use, beside Python's own.
LIBRARIES: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "class_names": set(),
    "files": set(),
    "allocator": set(),
    "program": set(),
    "json_lines": set(),
    "_version": set(),
    "timing": set(),
    "download": set(),
    "progress": {"rich"},
    "seeds": set(),
    "octave": {"torch"},
    "models": {"torch", "pytorchvideo", "torchvision", "timm", "safetensors", "filelock"},
    "evaluation": {"torch", "numpy", "torchmetrics", "rich", "matplotlib"},
}
# The others may use any library but these.
DECODERS = {"av", "decord", "torchcodec", "cv2"}
NOT_FOR: dict[str, set[str]] = {
    "video": {"lightning", "pytorch_lightning"},
    "training": DECODERS,
    "inference": DECODERS | {"lightning", "pytorch_lightning"},
}


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Absolute names of everything that the source of `module` imports, inside functions too."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from octvideo import cli` imports octvideo.cli.
            yield from (f"{base}.{alias.name}" if base == "octvideo" else base for alias in node.names)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports and may not, in words."""
    part = [*module.split("."), ""][1]
    if part not in PARTS:
        return [f"{module}: octvideo.{part} is in no row of the table: add it to PARTS"]
    found = []
    for name in imported(source, module, is_package=is_package):
        top, *rest = name.split(".")
        if top == "octvideo":
            other = rest[0] if rest else ""
            if other in PARTS and other not in {part, ""} | FREE | PARTS[part]:
                found.append(f"{module} imports {name}: {part or 'octvideo'} may not use {other}")
        elif top == "tools":
            found.append(f"{module} imports {name}: nothing may use tools")
        elif top not in sys.stdlib_module_names | (LIBRARIES.get(part, {top}) - NOT_FOR.get(part, set())):
            found.append(f"{module} imports {name}: {part or 'octvideo'} may not use that library")
    return found


# Programs that are copied beside an exported model, and there use nothing of ours.
STANDALONE = PACKAGE / "inference" / "standalone"


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != STANDALONE)


@pytest.mark.parametrize("path", STANDALONE.glob("*.py"), ids=lambda path: path.name)
def test_programs_beside_exported_models_import_engines_and_a_decoder_alone(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), path.stem)}
    assert tops - sys.stdlib_module_names == {"numpy", "av", "onnxruntime", "openvino", "torch"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_to_the_table(path: Path) -> None:
    parts = ["octvideo", *path.relative_to(PACKAGE).with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert violations(path.read_text(encoding="utf-8"), module, is_package=is_package) == []


def test_every_row_of_the_table_exists() -> None:
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in files()} | {""}
    assert set(PARTS) <= there


@pytest.mark.parametrize(
    ("module", "source", "what"),
    [
        ("octvideo.octave.conv", "import numpy", "octvideo.octave.conv imports numpy: octave may not use that"),
        ("octvideo.octave.conv", "import octvideo.models.video", "octave may not use models"),
        ("octvideo.models.video", "import lightning as L", "models may not use that library"),
        ("octvideo.models.video", "def f():\n    import decord", "models may not use that library"),
        ("octvideo.video.reader", "from octvideo.data import manifest", "video may not use data"),
        ("octvideo.video.reader", "from ..octave import Octave", "video may not use octave"),
        ("octvideo.data.dataset", "from octvideo import models, video", "data may not use models"),
        ("octvideo.evaluation.report", "from octvideo.training import module", "evaluation may not use training"),
        ("octvideo.evaluation.report", "import lightning", "evaluation may not use that library"),
        ("octvideo.training.module", "from octvideo.data.dataset import X", "training may not use data"),
        ("octvideo.training.module", "import octvideo.video", "training may not use video"),
        ("octvideo.training.module", "import av", "training may not use that library"),
        ("octvideo.inference.predictor", "from octvideo.cli import main", "inference may not use cli"),
        ("octvideo.inference.predictor", "from .. import cli", "inference may not use cli"),
        ("octvideo.cli", "import tools.score", "nothing may use tools"),
        ("octvideo.errors", "import torch", "errors may not use that library"),
        ("octvideo.extras.zoo", "", "is in no row of the table: add it to PARTS"),
    ],
)
def test_a_violation_is_found(module: str, source: str, what: str) -> None:
    found = violations(source, module)
    assert len(found) == 1 and what in found[0], found


def test_what_is_allowed_is_not_found() -> None:
    source = "import math\nimport torch.nn\nfrom octvideo.octave import Octave\nfrom octvideo.errors import UserError"
    assert violations(source, "octvideo.models.video") == []
    assert violations("from . import video\nfrom .video import i3d_r50", "octvideo.models", is_package=True) == []
    assert violations("from octvideo._version import __version__", "octvideo", is_package=True) == []
