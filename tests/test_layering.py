"""Who may import whom, held against every import statement of the package."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "octvideo"

# octvideo/<part> (a folder or a file; inside octave/ its rooms) -> the parts that it may import, beside `FREE` ones.
FREE = {"errors", "files", "stores", "class_names", "batches", "_version"}
PARTS: dict[str, set[str]] = {
    "": {"inference"},  # octvideo/__init__.py: from_pretrained, when it is asked for
    "errors": set(),
    "files": set(),
    "stores": set(),
    "_version": set(),
    "class_names": set(),
    "batches": set(),
    "compiling": set(),
    "json_lines": set(),
    "json_joining": {"json_lines"},
    "parts": set(),
    "lettering": set(),
    "download": set(),
    "progress": set(),
    "seeds": set(),
    "octave.kernel": set(),
    "octave.gpu": {"octave.kernel"},
    "octave": {"octave.kernel", "octave.gpu"},
    "octave.conversion": {"octave", "octave.kernel"},
    "octave.fused": {"octave", "octave.kernel", "octave.gpu", "octave.conversion"},
    "models": {"octave", "octave.kernel", "download", "progress"},
    "video": set(),
    "data": {"video", "download", "json_lines", "parts", "progress", "seeds"},
    "evaluation": {"lettering"},
    "training": {"models", "evaluation", "octave", "octave.kernel", "seeds", "compiling"},
    "inference": {"video", "models", "evaluation", "octave", "octave.kernel", "octave.fused", "compiling", "lettering"},
    "pages": {"evaluation"},
    "serving": {"inference", "video", "evaluation", "pages"},
    "explain": {"video", "models", "evaluation", "inference", "octave", "octave.conversion", "lettering"},
    "cluster": set(),
    "cli": {
        "cluster",
        *("video", "data", "models", "evaluation", "training", "inference", "pages", "serving", "explain"),
        *("progress", "json_lines", "json_joining", "lettering", "parts", "seeds"),
    },
    "__main__": {"cli"},
}
# Parts that must stay light -> the libraries they may use, beside Python's own.
LIBRARIES: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "class_names": set(),
    "batches": {"torch"},
    "compiling": {"torch"},
    "files": set(),
    "stores": {"fsspec", "aiohttp", "filelock"},
    "json_lines": set(),
    "json_joining": set(),
    "parts": set(),
    "lettering": {"matplotlib", "numpy", "PIL"},
    "_version": set(),
    "download": set(),
    "progress": {"rich"},
    "seeds": set(),
    "octave": {"torch"},
    "octave.kernel": {"torch", "filelock"},
    "octave.gpu": {"torch", "triton"},
    "octave.conversion": {"torch"},
    "octave.fused": {"torch"},
    "models": {"torch", "pytorchvideo", "torchvision", "timm", "safetensors", "filelock", "huggingface_hub"},
    "evaluation": {"torch", "numpy", "torchmetrics", "rich", "matplotlib"},
    "explain": {"torch", "numpy", "matplotlib"},
    "cluster": {"ray"},
    "pages": {"numpy", "jinja2", "markupsafe", "yaml"},
}
# The others may use any library but these.
DECODERS = {"av", "decord", "torchcodec", "cv2"}
NOT_FOR: dict[str, set[str]] = {
    "video": {"lightning", "pytorch_lightning"},
    "training": DECODERS,
    "inference": DECODERS | {"lightning", "pytorch_lightning"},
    "serving": DECODERS | {"lightning", "pytorch_lightning"},
}


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    """All nodes of a module."""
    return list(ast.walk(ast.parse(source)))


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """A million nodes would slow down every search for garbage in the tests that follow."""
    yield
    nodes_of.cache_clear()


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Absolute names of everything that the source of `module` imports, inside functions too."""
    package = module if is_package else module.rpartition(".")[0]
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from octvideo import cli` imports octvideo.cli.
            yield from (f"{base}.{alias.name}" if base == "octvideo" else base for alias in node.names)


def part_of(module: str) -> str:
    """The row of the table: `octave.kernel` for octvideo.octave.kernel.layout, `models` for octvideo.models.video."""
    _, *rest = module.split(".")
    room = ".".join(rest[:2])
    return room if room in PARTS else (rest or [""])[0]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports and may not, in words."""
    part = part_of(module)
    if part not in PARTS:
        return [f"{module}: octvideo.{part} is in no row of the table: add it to PARTS"]
    found = []
    for name in imported(source, module, is_package=is_package):
        top, *rest = name.split(".")
        if top == "octvideo":
            other = part_of(name) if rest else ""
            if module == "octvideo.octave":  # shows what its rooms have
                other = other.partition(".")[0]
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
def test_programs_beside_exported_models_import_a_decoder_alone(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), path.stem)}
    assert tops - sys.stdlib_module_names == {"numpy", "av"}


def test_imports_keep_to_the_table() -> None:
    found = [
        violation
        for path in files()
        for violation in violations(
            path.read_text(encoding="utf-8"), module_of(path), is_package=path.stem == "__init__"
        )
    ]
    assert found == []


def test_every_row_of_the_table_exists() -> None:
    there = {module for path in files() for module in (module_of(path), module_of(path).rpartition(".")[0])}
    assert {".".join(filter(None, ["octvideo", part])) for part in PARTS} <= there


def module_of(path: Path) -> str:
    parts = ["octvideo", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Each module of the package to those that it imports."""
    known = {module_of(path): path for path in files()}
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        found: set[str] = set()
        for node in nodes_of(path.read_text(encoding="utf-8")):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= names & known.keys() or {node.module}
        graph[module] = found & known.keys() - {module}
    return graph


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, as many as there are.

    Raises:
        ValueError: modules import each other in a circle.
    """
    chains: dict[str, list[str]] = {}

    def chain_from(module: str, above: tuple[str, ...]) -> list[str]:
        if module in above:
            raise ValueError(" -> ".join([*above[above.index(module) :], module]))
        if module not in chains:
            below = [chain_from(other, (*above, module)) for other in sorted(graph[module])]
            chains[module] = [module, *max(below, key=len, default=[])]
        return chains[module]

    return max((chain_from(module, ()) for module in graph), key=len)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert longest_chain(import_graph())
    with pytest.raises(ValueError, match="a -> b -> a"):
        longest_chain({"a": {"b"}, "b": {"a"}})


def test_octave_is_read_in_at_most_eight_steps() -> None:
    inside = {name: others for name, others in import_graph().items() if name.startswith("octvideo.octave")}
    chain = longest_chain({name: {other for other in others if other in inside} for name, others in inside.items()})
    assert len(chain) <= 8, chain


def private_names_of_others(source: str) -> list[str]:
    """Underscored names of octvideo that a module imports, or attributes that it reads and does not define itself."""
    nodes = nodes_of(source)
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found = [
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("octvideo")
        for alias in node.names
        if is_private(alias.name) and alias.name != "_version"
    ]
    own = private_names()
    for node in nodes:
        if not isinstance(node, ast.Attribute) or (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            continue  # a subclass may use what its base has
        if is_private(node.attr) and node.attr in own - defined:
            found.append(f"{ast.unparse(node.value)}.{node.attr}")
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def private_names() -> frozenset[str]:
    """All underscored attributes and methods that octvideo's classes define (torch has such attributes as well)."""
    found = set()
    for path in files():
        for node in nodes_of(path.read_text(encoding="utf-8")):
            if isinstance(node, ast.ClassDef):
                found |= {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)}
                found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and own_store(n)}
                found |= {
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                }
    return frozenset(name for name in found if is_private(name))


def own_store(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def test_no_module_uses_what_is_private_to_another() -> None:
    used = {module_of(path): private_names_of_others(path.read_text(encoding="utf-8")) for path in files()}
    assert {module: names for module, names in used.items() if names} == {}


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
