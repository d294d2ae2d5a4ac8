"""Arms as text: what is read, what is told of a mistake, and which arms are compared."""

from __future__ import annotations

import re

import pytest

from lab.benchmark.arms import PRESETS, Arm, arm_text, common, labels, paper_points, parse_arms
from octvideo.errors import UserError


def test_an_arm_is_a_network_and_what_differs_from_the_rest() -> None:
    [plain, octave] = parse_arms(
        ["pytorchvideo:i3d_r50", "i3d_r50:alpha=.25,engine=openvino,precision=bf16,batch=2"], frames=16, classes=7
    )
    assert plain == Arm("pytorchvideo:i3d_r50", engine="plain", frames=16, classes=7)
    assert octave == Arm("i3d_r50", 0.25, engine="openvino", precision="bf16", batch=2, frames=16, classes=7)
    assert octave.clip_shape == (2, 3, 16, 224, 224)
    [image] = parse_arms(["timm:resnet50.a1:alpha=0.5,octave_downsample=stride,factor=1x2x2,width=8,layout=contiguous"])
    assert image.network == "timm:resnet50.a1" and image.width == 8
    assert image.octave == (("octave_downsample", "stride"), ("factor", (1, 2, 2)))
    [given] = parse_arms(["pytorchvideo:x3d_s:engine=eager"], engine="compile")
    assert given.engine == "eager" and parse_arms(["i3d_r50"], engine="compile")[0].engine == "compile"


def test_several_values_are_as_many_arms_the_last_key_changing_first() -> None:
    arms = parse_arms(["i3d_r50:engine=eager/compile,alpha=0/.25/.5"])
    assert [(arm.engine, arm.alpha) for arm in arms] == [(e, a) for e in ("eager", "compile") for a in (0, 0.25, 0.5)]


@pytest.mark.parametrize("name", PRESETS)
def test_the_text_of_an_arm_gives_the_arm(name: str) -> None:
    preset = PRESETS[name]
    not_arms = ("rounds", "device", "threads", "as_built")
    options = {key: value for key, value in preset.options.items() if key not in not_arms}
    arms = parse_arms(preset.arms, **options)
    assert parse_arms([arm_text(arm) for arm in arms]) == arms
    assert [Arm.from_dict(arm.to_dict()) for arm in arms] == arms
    assert len(set(labels(arms))) == len(arms)
    # Each octave arm of a preset has the ordinary network beside it, by the same engine.
    assert all(any(arm.is_twin(other) for other in arms) for arm in arms if arm.alpha)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i3d_r50:alfa=.25", "arm 'i3d_r50:alfa=.25': got key 'alfa' (did you mean alpha?), expected one of alpha, "),
        ("i3d_r50:alpha=1.5", "arm 'i3d_r50:alpha=1.5': alpha: got '1.5', expected the share of low-frequency chann"),
        ("i3d_r50:alpha=x", "alpha: got 'x', expected the share of low-frequency channels, 0 to 1"),
        ("i3d_r50:engine=tvm", "engine: got 'tvm', expected plain, eager, compile, aot"),
        ("i3d_r50:precision=f16", "precision: got 'f16', expected f32, bf16 or int8"),
        ("i3d_r50:batch=0", "batch: got '0', expected a whole number above 0"),
        ("i3d_r50:", "arm 'i3d_r50:': got '', expected KEY=VALUE"),
        ("i3d_r50:alpha=.1,engine", "arm 'i3d_r50:alpha=.1,engine': got 'engine', expected KEY=VALUE"),
        ("i3d_r50:alpha=.1,alpha=.2", "alpha is given twice, expected once (several values: alpha=A/B)"),
        ("alpha=.25", "arm: got 'alpha=.25', expected NETWORK or NETWORK:KEY=VALUE"),
        ("i3d_r50:alpha=.1/.1", "arm 'i3d_r50:alpha=0.1' is given twice, expected once"),
        ("i3d_r50:mode=training,engine=onnx", "engine: got 'onnx', expected plain, eager, compile in training"),
        ("i3d_r50:mode=training,precision=int8", "precision: got 'int8', expected f32 or bf16 in training"),
        ("i3d_r50:optimizer=sgd", "optimizer: got 'sgd', expected none in inference"),
    ],
)
def test_a_mistake_names_key_got_and_expected(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as told:
        parse_arms([text])
    assert "\n" not in str(told.value)


def test_twins_are_ordinary_and_run_alike_in_any_layout() -> None:
    octave, ordinary, other_layout, pooled, other_engine = parse_arms(
        [
            "i3d_r50:alpha=.25,exchange=none",
            "i3d_r50",
            "i3d_r50:layout=channels_last",
            "i3d_r50:downsample=pool",
            "i3d_r50:engine=compile",
        ]
    )
    assert octave.is_twin(ordinary) and octave.is_twin(other_layout) and pooled.is_twin(ordinary)
    assert not octave.is_twin(pooled) and not octave.is_twin(other_engine) and not pooled.is_ordinary


def test_what_computes_the_same() -> None:
    arms = parse_arms(["pytorchvideo:i3d_r50", "i3d_r50:engine=onnx,precision=bf16,batch=4", "i3d_r50:alpha=.25"])
    assert arms[0].function == arms[1].function != arms[2].function


def test_labels_say_what_differs_and_the_title_the_rest() -> None:
    arms = parse_arms(["i3d_r50:engine=eager/openvino,alpha=0/.25"], batch=2)
    assert labels(arms) == ["α 0 eager", "α 0.25 eager", "α 0 openvino", "α 0.25 openvino"]
    assert common(arms) == "i3d_r50, inference, f32, input 2x3x8x224x224"
    both = parse_arms(["i3d_r50", "c2d_r50:alpha=.5,exchange=none"])
    assert labels(both) == ["i3d_r50 α 0", "c2d_r50 α 0.5 exchange none"]


def test_the_papers_points_are_table_2() -> None:
    """Multiply-adds 3.6, 3.1, 2.4, 1.9 of 4.1 G and 116, 99, 74, 61 of 115 ms, as the paper rounds them."""
    points = paper_points()
    assert list(points) == [0.125, 0.25, 0.5, 0.75]
    for (flops, time), giga, ratio in zip(points.values(), (3.6, 3.1, 2.4, 1.9), (1.01, 0.86, 0.64, 0.53), strict=True):
        assert flops == pytest.approx(giga / 4.1, abs=0.015) and time == pytest.approx(ratio, abs=0.005)
