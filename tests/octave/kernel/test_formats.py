"""Number formats of the kernel: conversions, the bounds of the reference, random layers, and real clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.benchmark.networks import set_weights
from octvideo.models import i3d_r50
from octvideo.octave import prepare_inference
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS, Format, Quantum, quantised_weight
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.sequence import from_format, to_format
from octvideo.video.reader import read_frames
from tests.octave.kernel.cases import (
    BOTH,
    SPACE,
    Case,
    every_format,
    formats,
    has_format,
    needs_library,
    random,
    run,
    to_elements,
    to_real,
)


def fuzz(formats: Sequence[Format], first: int, count: int, repo: Path) -> None:
    """Tries seeds in a process of their own, which may crash."""
    command = [sys.executable, "-m", "tests.octave.kernel.fuzz", "--format", *(format.name for format in formats)]
    command += ["--first", str(first), "--count", str(count)]
    paths = [str(repo), str(repo / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=repo, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"stopped at {lines[-1:]} of {count}: {done.stderr[-2000:]}"
    found = json.loads(lines[-1])
    assert not found["failures"], "\n".join(found["failures"])
    assert sum(found["kinds"].values()) == count * len(formats)


@needs_library
def test_random_layers(repo: Path) -> None:
    """In memory beside which nothing can be read or written, after scratch memory has been filled with NaN."""
    fuzz([format for format in FORMATS.values() if has_format(format)], 0, 25, repo)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@every_format
def test_ten_thousand_random_layers(format: Format, repo: Path) -> None:
    fuzz([format], 1000, 10_000, repo)


@every_format
@pytest.mark.parametrize("wrong", ["weight", "bias", "input", "low input"])
def test_small_faults_are_found(wrong: str, format: Format) -> None:
    """The reference is strict: a change of one weight, bias or element by little is out of its bounds."""
    case = Case(replace(SPACE, **BOTH), (13, 5, 9, 7), format=format, relu=False)
    case.check()
    results = run(case.layer(), *case.maps())
    assert case.biases[0] is not None and case.low is not None
    if wrong == "weight":
        case.high_weight[3, 7, 0, 1, 2] += 0.3
    elif wrong == "bias":
        case.biases[0][5] += 0.5
    else:
        (case.high if wrong == "input" else case.low)[1, 2, 1, 2, 2] += 20 if format.name == "int8" else 0.25
    with pytest.raises(pytest.fail.Exception, match="elements of y_high are wrong"):
        case.check_results(results)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 5000])
@formats("bf16", "int8")
def test_conversions(format: Format, count: int) -> None:
    """To the nearest element, ties to even, and back; int8 saturates; NaN and infinity stay."""
    for quantum in (Quantum(0.5, 128), Quantum(0.25, 0)) if format.name == "int8" else (Quantum(),):
        ties = torch.arange(-300, 300) * quantum.scale / 2
        real = torch.cat([ties, 50 * torch.randn(max(count, 600))])[-count:] if count < 5000 else ties
        x = channels_last(real.view(1, -1, 1, 1))
        got = to_format(x, format, quantum)
        assert got.dtype == format.dtype and torch.equal(got, to_elements(x, format, quantum))
        assert torch.equal(from_format(got, format, quantum).double(), to_real(got, quantum))
    if format.dtype.is_floating_point:
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 3.4e38, 2.0**-126]).view(1, -1, 1, 1)
        torch.testing.assert_close(
            to_format(odd, format, Quantum()), odd.to(format.dtype), equal_nan=True, rtol=0, atol=0
        )


def test_quantised_weights() -> None:
    """Of each output, the greatest product of a weight and its map's scale is 127; corrections undo zeros."""
    weight, quanta = random(5, 6, 1, 3, 3), [*[Quantum(0.02, 128)] * 4, *[Quantum(0.3, 0)] * 2]
    weight[2] = 0
    integers, scales, corrections = quantised_weight(weight, quanta)
    per_input = torch.tensor([q.scale for q in quanta]).view(1, -1, 1, 1, 1)
    assert (integers == integers.round()).all() and integers.abs().flatten(1).amax(1).tolist() == [
        127,
        127,
        0,
        127,
        127,
    ]
    error = (integers * scales.view(-1, 1, 1, 1, 1) - weight * per_input).abs()
    assert (error <= 0.5001 * scales.view(-1, 1, 1, 1, 1)).all() and scales[2] == 1
    zeros = torch.tensor([float(q.zero) for q in quanta]).view(1, -1, 1, 1, 1)
    sums = F.conv3d(zeros.expand(1, 6, 1, 3, 3).contiguous(), integers).flatten() * scales
    torch.testing.assert_close(sums + corrections, torch.zeros(5), atol=1e-2, rtol=0)


@pytest.fixture(scope="module")
def real_clips(real_videos: Path) -> list[Tensor]:
    """The middle of each real clip: (1, 3, 8, 112, 112), normalised."""
    files = sorted(file for file in (real_videos / "clips").iterdir() if file.suffix != ".tsv")
    if not files:
        pytest.skip(f"no clips in {real_videos / 'clips'}")
    clips = []
    for file in files:
        frames = read_frames(file, lambda n: torch.linspace(n // 4, max(n // 4, 3 * n // 4 - 1), 8).long()).frames
        x = frames.permute(0, 3, 1, 2).float() if frames.shape[-1] == 3 else frames.float()
        x = F.interpolate(x, (112, 112), mode="bilinear", antialias=True).div(255).sub(0.45).div(0.225)
        clips.append(channels_last(x.transpose(0, 1)[None]))
    return clips


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not has_format(FORMATS["bf16"]), reason="no bf16 on this processor")
def test_real_clips_have_the_same_top_class_in_bfloat16(real_clips: list[Tensor]) -> None:
    """Of an octave network of drawn weights, whose batch norms know the clips; σ is that of a clip's 400 logits."""
    network = prepare_inference(set_weights(i3d_r50(400, 0.25), real_clips))
    with torch.inference_mode():
        expected = torch.cat([network(x) for x in real_clips])
        sequences = [module for module in network.modules() if isinstance(module, FusedSequence)]
        for sequence in sequences:
            sequence.set_format(FORMATS["bf16"])
        found = torch.cat([network(x) for x in real_clips])
    assert sequences and not torch.equal(found, expected)
    sigma = expected.std(1)
    difference = (found - expected).std(1) / sigma
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert difference.max() < 0.05, f"of σ: {difference.tolist()}"
