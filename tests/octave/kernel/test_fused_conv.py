"""Fused layers in every number format against torch in float64 (cases.py), in every way through fused_conv.cpp."""

from __future__ import annotations

import copy
import ctypes
import logging
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import fuse_convolutions, octavize, prepare_inference
from octvideo.octave.fused.conv import PreparedLayer, PreparedOctConv
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel import library
from octvideo.octave.kernel.formats import Format
from octvideo.octave.kernel.fused_conv import Form, Layer, Maps, MaxPool
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.sequence import Place, Step
from octvideo.octave.kernel.training import Weight
from tests.octave.kernel.cases import BOTH, POINT, SPACE, TIME, Case, every_format, formats, needs_library, random, run


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_structs_are_the_same_on_both_sides(tmp_path: Path) -> None:
    """Size, order and place of every field, as the compiler has them."""
    lines = ['#include "layer.h"', "#include <cstddef>"]
    for struct in (Layer, Maps, Weight, Place, Step):
        name = struct.__name__
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        for field, _ in struct._fields_:
            place: Any = getattr(struct, field)
            checks = f"offsetof({name}, {field}) == {place.offset} && sizeof({name}::{field}) == {place.size}"
            lines.append(f'static_assert({checks}, "{name}.{field}");')
    source, folder = tmp_path / "same.cpp", Path(library.__file__).parent
    for wanted, text in ((0, lines), (1, [line.replace(" == 8", " == 9", 1) for line in lines])):
        source.write_text("\n".join(text))
        command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{folder}", str(source)]
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == wanted, made.stderr


ORDINARY = {
    "1x1x1": POINT,
    "3x1x1": TIME,
    "1x3x3": SPACE,
    "5x1x1 every second frame": Form((5, 1, 1), (2, 1, 1), (2, 0, 0)),
    "3x1x1 dilated, shorter": Form((3, 1, 1), padding=(1, 0, 0), dilation=(2, 1, 1)),
    "1x1x1 every second pixel": Form((1, 1, 1), (1, 2, 2)),
    "1x3x3 strided": Form((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "1x3x3 dilated": Form((1, 3, 3), (1, 1, 1), (0, 2, 2), (1, 2, 2)),
    "1x3x3 without padding": Form((1, 3, 3)),
    "3x3x3": Form((3, 3, 3), padding=(1, 1, 1)),
    "5x7x7 of a stem": Form((5, 7, 7), (1, 2, 2), (2, 3, 3)),
    "2x3x2 strided, dilated": Form((2, 3, 2), (2, 1, 2), (0, 2, 1), (1, 2, 1)),
    "1x5x3 lopsided": Form((1, 5, 3), (1, 2, 1), (0, 2, 0), (1, 1, 2)),
}


@every_format
@pytest.mark.parametrize("channels", [(3, 5), (16, 64), (33, 48), (64, 130)])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_convolutions(name: str, channels: tuple[int, int], format: Format) -> None:
    for residual in (False, True):
        Case(ORDINARY[name], (channels[0], 0, channels[1], 0), (5, 9, 11), residual=residual, format=format).check()


@every_format
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 1), (4, 8, 6), (3, 7, 9), (1, 28, 5)], ids=str)
@pytest.mark.parametrize("channels", [(6, 2, 5, 3), (24, 8, 48, 16), (58, 6, 58, 6), (16, 16, 80, 48)], ids=str)
@pytest.mark.parametrize("form", [POINT, TIME, SPACE], ids=["1x1x1", "3x1x1", "1x3x3"])
def test_octave_convolutions(
    form: Form, channels: tuple[int, int, int, int], size: tuple[int, ...], format: Format
) -> None:
    Case(replace(form, **BOTH), channels, size, residual=size[0] > 2, format=format).check()


@every_format
@pytest.mark.parametrize("form", [POINT, TIME, SPACE], ids=["1x1x1", "3x1x1", "1x3x3"])
@pytest.mark.parametrize(
    ("given", "channels", "upsampled"),
    [
        ({"low_reads_high": True}, (16, 0, 24, 8), False),  # the first octave layer
        ({}, (16, 8, 24, 0), True),  # the last one
        ({"low_reads_low": True}, (16, 8, 24, 8), False),  # no exchange
        ({"low_reads_low": True}, (16, 8, 24, 8), True),  # one way
        (BOTH, (16, 8, 24, 8), False),  # the other way
        ({**BOTH, "pool_first": True, "high_reads_low": True}, (16, 8, 24, 8), False),  # strided
        ({"pool_first": True, "high_reads_low": True}, (16, 8, 24, 0), False),  # strided and the last one
        ({"pool_first": True, "low_reads_high": True}, (16, 0, 24, 8), False),  # strided and the first one
        ({"pool_first": True}, (16, 0, 24, 0), False),  # ordinary, pooled
    ],
)
def test_every_kind_of_layer(form: Form, given: dict[str, Any], channels: Any, upsampled: bool, format: Format) -> None:
    for size in ((4, 8, 12), (3, 7, 9)):
        for residual in (False, True):
            case = Case(
                replace(form, **given),
                channels,
                size,
                upsampled=upsampled,
                residual=residual,
                bias=residual,
                relu=not residual,
                format=format,
            )
            case.check()


@every_format
@pytest.mark.parametrize(
    ("given", "channels", "upsampled"),
    [
        ({}, (5, 0, 3, 0), False),
        (BOTH, (3, 1, 3, 1), True),
        (BOTH, (24, 8, 12, 4), True),
        ({"low_reads_high": True}, (3, 0, 2, 1), False),
        ({}, (3, 1, 4, 0), True),
        ({"low_reads_low": True}, (2, 3, 1, 2), False),
        ({**BOTH, "pool_first": True, "high_reads_low": True}, (3, 1, 5, 2), False),
        ({"pool_first": True, "low_reads_high": True}, (1, 0, 2, 1), False),
    ],
)
def test_groups(given: dict[str, Any], channels: Any, upsampled: bool, format: Format) -> None:
    """Thin ones, of which several are computed as one, and wide ones; channels are a group's."""
    for groups, form, size in ((32, SPACE, (6, 9)), (6, TIME, (3, 7, 5)), (2, POINT, (3, 6, 5))):
        case = Case(
            replace(form, groups=groups, **given),
            tuple(groups * n for n in channels),
            size,
            upsampled=upsampled,
            residual=groups == 6,
            format=format,
        )
        case.check()


WIDE_TIME = Form((3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1))


@every_format
@pytest.mark.parametrize(
    "form",
    [POINT, pytest.param(TIME, marks=pytest.mark.slow), SPACE, WIDE_TIME],
    ids=["1x1x1", "3x1x1", "1x3x3", "3x1x1 dilated"],
)
@pytest.mark.parametrize(
    ("channels", "size"),
    [
        ((48, 16, 48, 16), (4, 44, 30)),
        ((48, 16, 48, 16), (7, 56, 28)),
        ((300, 80, 300, 80), (3, 44, 16)),
        ((4500, 16, 48, 48), (3, 7, 5)),
    ],
    ids=["strips", "strips of many frames", "blocks of weights", "parts of blocks"],
)
def test_maps_and_weights_in_pieces_on_several_threads(
    form: Form, channels: Any, size: tuple[int, ...], format: Format
) -> None:
    case = Case(replace(form, **BOTH), channels, size, clips=1, residual=True, format=format)
    results = []
    threads = torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        with torch.no_grad():
            results.append(run(case.layer(), *case.maps()))
    torch.set_num_threads(threads)
    case.check_results(results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True) if a is not None)  # type: ignore


@every_format
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(1, 7, 9), (3, 30, 12), (2, 23, 31)], ids=str)
@pytest.mark.parametrize(
    "pool",
    [
        MaxPool((3, 3), (2, 2), (1, 1)),
        MaxPool((2, 2), (2, 2), (0, 0)),
        MaxPool((3, 2), (1, 3), (1, 0)),
        MaxPool((1, 3), (4, 1), (0, 1)),
        MaxPool((5, 5), (3, 3), (2, 2)),
    ],
    ids=lambda pool: f"{pool.window} {pool.stride} {pool.padding}",
)
def test_max_pools(pool: MaxPool, size: tuple[int, ...], threads: int, format: Format) -> None:
    """Of a convolution whose rows are never all there."""
    form = Form((3, 3, 3), (1, 1, 1), (1, 1, 1), max_pool=pool)
    case, before = Case(form, (5, 0, 39, 0), size, relu=False, format=format), torch.get_num_threads()
    has_nan = format.dtype.is_floating_point
    if has_nan:
        case.high[0, 0, 0, 0, 3] = torch.nan
    try:
        torch.set_num_threads(threads)
        got, low = run(case.layer(), channels_last(case.high))
    finally:
        torch.set_num_threads(before)
    case.check_results([got, low])
    assert got.isnan().any() == has_nan and not got.isnan().all()


@every_format
def test_strides_whose_padding_keeps_the_size(format: Format) -> None:
    """At half the size, the same padding gives more rows than half of the result's."""
    form = Form((1, 5, 1), (1, 2, 1), (0, 11, 0), (1, 3, 1), **BOTH)
    Case(form, (12, 4, 20, 5), (1, 10, 6), upsampled=False, format=format).check()
    in_time = Form((5, 1, 1), (2, 1, 1), (8, 0, 0), (3, 1, 1), **BOTH)
    Case(in_time, (12, 4, 20, 5), (4, 10, 6), upsampled=False, format=format).check()


@every_format
def test_images(format: Format) -> None:
    for form in (POINT, SPACE, replace(SPACE, stride=(1, 2, 2))):
        Case(form, (12, 0, 20, 0), (9, 7), residual=True, format=format).check()
    for form in (POINT, SPACE, replace(SPACE, pool_first=True, high_reads_low=True)):
        upsampled = not form.pool_first
        Case(replace(form, **BOTH), (12, 4, 20, 5), (9, 7), upsampled=upsampled, format=format).check()


@formats("f32", "bf16")
def test_nan_stays_nan(format: Format) -> None:
    case = Case(POINT, (8, 0, 8, 0), format=format)
    case.high[0, 3, 1, 2, 2] = torch.nan
    y = run(case.layer(), channels_last(case.high))[0]
    assert y[0, :, 1, 2, 2].isnan().all() and y.isnan().sum() == 8


@every_format
def test_results_overwrite_the_residual_and_nothing_else(format: Format) -> None:
    case = Case(replace(POINT, **BOTH), (16, 8, 24, 8), residual=True, format=format)
    maps = [x for x in case.maps() if x is not None]
    before = [x.clone() for x in maps]
    got = run(case.layer(), *maps)
    assert [y.data_ptr() for y in got if y is not None] == [x.data_ptr() for x in maps[2:]]
    assert torch.equal(maps[0], before[0]) and torch.equal(maps[1], before[1])


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 32, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm = nn.BatchNorm3d(32)
        self.second = nn.Conv3d(32, 32, (1, 3, 3), padding=(0, 1, 1))
        self.third = nn.Conv3d(32, 32, 1)
        self.strided = nn.Conv3d(32, 24, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        return self.head(torch.relu(self.strided(x)).mean((2, 3, 4)))


def networks() -> Iterator[tuple[nn.Module, nn.Module]]:
    """An ordinary and an octave network, and each prepared."""
    torch.manual_seed(0)
    network = Blocks().eval()
    nn.init.normal_(network.norm.running_mean)
    for each in (network, octavize(copy.deepcopy(network), {"first": 0.25, "second": 0.5, "third": 0.25}).eval()):
        yield each, prepare_inference(each)


def layers_of(prepared: nn.Module) -> list[Any]:
    """Those that are not a part of another one."""
    layers = [m for m in prepared.modules() if isinstance(m, PreparedLayer)]
    parts = {part for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if layer not in parts]


def expected_of(layers: list[Any]) -> list[bool]:
    return [isinstance(layer, PreparedOctConv) or layer.form.is_fast for layer in layers]


@needs_library
def test_prepared_networks_use_it() -> None:
    x = channels_last(random(1, 3, 4, 10, 14))
    for network, prepared in networks():
        layers = layers_of(prepared)
        assert not any(layer.fused for layer in layers)  # what is exported needs no packed weights
        with torch.no_grad():
            expected = network(x)
            torch.testing.assert_close(prepared(x), expected, atol=1e-5, rtol=1e-5)
            assert len(layers) == 4 and [layer.fused is not None for layer in layers] == expected_of(layers)
            for clone in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
                torch.testing.assert_close(clone(x), expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(prepared.double()(x.double()).float(), expected, atol=1e-5, rtol=1e-5)


@needs_library
def test_compiled_graphs_call_it() -> None:
    x = channels_last(random(1, 3, 4, 10, 14))
    for network, prepared in networks():
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, _: Any, graphs: list[torch.fx.GraphModule] = graphs) -> Any:
            graphs.append(graph)
            return graph

        with torch.no_grad():
            fuse_convolutions(prepared)
            compiled = torch.compile(prepared, backend=keep, fullgraph=True)
            torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=1e-5)
        calls = [str(n.target) for n in graphs[0].graph.nodes if "octvideo" in str(n.target)]
        sequences = [list(m.convs) for m in prepared.modules() if isinstance(m, FusedSequence)]
        expected = expected_of(layers_of(prepared))
        assert calls == ["octvideo.fused_sequence"] * len(sequences) and sum(map(len, sequences)) == sum(expected)
        assert len(sequences) == 1 or not all(expected)
        torch._dynamo.reset()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a new process of a checkout, with an empty cache."""
    monkeypatch.setattr(library, "VARIANTS", ())
    monkeypatch.setenv("OCTVIDEO_CACHE", str(tmp_path / "cache"))
    load_library.cache_clear()
    yield tmp_path
    load_library.cache_clear()


def test_a_cache_that_cannot_be_written_is_told(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (fresh / "file").write_text("")
    monkeypatch.setenv("OCTVIDEO_CACHE", str(fresh / "file" / "cache"))
    monkeypatch.setattr(library, "find_compiler", lambda: ["true"])
    monkeypatch.setattr(library, "compile_to", lambda file, *_: file.parent.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(library.tempfile, "mkdtemp", lambda prefix: str(fresh / prefix))
    kernel = library.kernel_file()
    assert kernel is not None and kernel.parent == fresh / "octvideo-"
    assert "the kernel is compiled anew in every process" in caplog.text and "set OCTVIDEO_CACHE" in caplog.text


@pytest.mark.parametrize("why", ["switched off", "no compiler", "one that fails"])
def test_without_a_library_onednn_does_it(
    why: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "octvideo.octave")
    if why == "switched off":
        monkeypatch.setenv("OCTVIDEO_FUSED", "0")
    elif why == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        script = fresh / "g++"
        script.write_text("#!/bin/sh\n[ $1 = --version ] && echo 1 && exit\necho no space >&2\nexit 1\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
    assert load_library() is None
    assert {"switched off": "", "no compiler": "no-such-compiler", "one that fails": "no space"}[why] in caplog.text
    x = channels_last(random(1, 3, 4, 10, 14))
    for network, prepared in networks():
        with torch.no_grad():
            torch.testing.assert_close(prepared(x), network(x), atol=1e-5, rtol=1e-5)
        assert all(getattr(m, "fused", None) is None for m in prepared.modules())


@pytest.fixture
def compiled() -> Path:
    """The library that all other tests run: asked for before the cache is another."""
    file = library.kernel_file()
    assert file is not None
    return file


@needs_library
def test_is_compiled_once(compiled: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler that gives what was compiled before: the real one takes seconds."""
    script = fresh / "g++"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$last" = --version ] || cp "{compiled}" "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", f"env {script}")  # a command of several words
    assert load_library() is not None
    (file,) = (fresh / "cache").glob("*.so")
    made = file.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library() is not None and file.stat().st_mtime_ns == made


@pytest.mark.slow
@needs_library
def test_the_compiler_of_several_words_compiles(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "NATIVE", "-O0")  # sooner than -O3
    monkeypatch.setenv("CXX", "env g++")
    assert load_library() is not None and list((fresh / "cache").glob("*.so"))


def test_processes_that_start_together_compile_it_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_to(file: Path, *_: Any) -> None:
        compiled.append(file)
        time.sleep(0.2)  # the others come meanwhile
        file.write_bytes(b"")

    monkeypatch.setattr(library, "compile_to", compile_to)
    monkeypatch.setattr(library, "find_compiler", lambda: [sys.executable])
    with ThreadPoolExecutor(4) as pool:  # a lock is a file handle's: threads exclude each other like processes
        found = set(pool.map(lambda _: library.kernel_file(), range(4)))
    assert len(compiled) == 1 and found == set(compiled)


@pytest.mark.slow
@pytest.mark.usefixtures("narrower_vectors")
def test_on_processors_with_narrower_vectors() -> None:
    for channels in ((6, 2, 5, 3), (24, 8, 48, 16), (58, 6, 58, 6), (300, 80, 300, 80)):
        for form in (POINT, TIME, SPACE):
            Case(replace(form, **BOTH), channels, (3, 15, 18), residual=True).check()
    pool = MaxPool((3, 3), (2, 2), (1, 1))
    Case(Form((3, 3, 3), padding=(1, 1, 1), max_pool=pool), (5, 0, 39, 0), (3, 15, 18)).check()
