"""An arm of a benchmark: which network runs how, from a short text such as `i3d_r50:alpha=.25,engine=openvino`.

`PRESETS` are the comparisons that octvideo is judged by, as arms and options of tools/benchmark.py.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from octvideo.errors import UserError
from octvideo.inference.engine import Precision
from octvideo.inference.engines import ENGINES
from octvideo.models.builders import OctaveOptions

Mode = Literal["inference", "training"]
Layout = Literal["auto", "contiguous", "channels_last"]
Optimizer = Literal["none", "sgd"]
Fuse = Literal["none", "norms"]

_FORM = "NETWORK or NETWORK:KEY=VALUE,KEY=VALUE, such as i3d_r50:alpha=.25,engine=openvino"


@dataclass(frozen=True)
class Arm:
    """One network, run in one way.

    Args:
        network: a builder of octvideo.models, or LIBRARY:NAME of pytorchvideo, torchvision or timm; at alpha 0
            engine "plain" runs the library's own network, untouched.
        alpha: share of low-frequency channels, 0 to 1.
        downsample: "stride" or "pool"; None is the builder's choice.
        octave: options of octave layers, as pairs of name and value.
        width: of the small networks' stem; None is the builder's choice.
        classes: K.
        engine: "plain" is the network as it is; the others are octvideo's (`ENGINES`).
        precision: of the arithmetic.
        layout: memory format of clips and weights; "auto" leaves it to the engine.
        batch: clips of one call, N.
        frames: of a clip, T; 1 for images.
        crop: pixels of a frame's side.
        mode: "training" is forward and backward.
        optimizer: a step of it after the backward pass, in training.
        fuse: "norms" is octvideo's `fuse_training`, in training.
    """

    network: str
    alpha: float = 0.0
    downsample: Literal["stride", "pool"] | None = None
    octave: tuple[tuple[str, Any], ...] = ()
    width: int | None = None
    classes: int = 400
    engine: str = "eager"
    precision: Precision = "f32"
    layout: Layout = "auto"
    batch: int = 1
    frames: int = 8
    crop: int = 224
    mode: Mode = "inference"
    optimizer: Optimizer = "none"
    fuse: Fuse = "none"

    @property
    def clip_shape(self) -> tuple[int, int, int, int, int]:
        """Of one call's input, (N, 3, T, H, W)."""
        return (self.batch, 3, self.frames, self.crop, self.crop)

    @property
    def is_ordinary(self) -> bool:
        """Whether it is the ordinary network, which others are compared with."""
        return self.alpha == 0 and self.downsample in (None, "stride") and self.fuse == "none"

    @property
    def function(self) -> tuple[Any, ...]:
        """What decides its scores but for rounding: arms that have this in common must agree."""
        own_name = self.network.removeprefix("pytorchvideo:")  # ours has the library's keys and arithmetic
        shape = (self.classes, self.frames, self.crop)
        return (own_name, self.alpha, self.downsample, self.octave, self.width, *shape)

    def is_twin(self, ordinary: Arm) -> bool:
        """Whether `ordinary` is this network without octave, run by the same engine; layouts may differ, since each
        may have its own best one.
        """
        free = {"alpha": 0.0, "downsample": None, "octave": (), "layout": "auto", "fuse": "none"}
        return ordinary.is_ordinary and replace(self, **free) == replace(ordinary, **free)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"octave": dict(self.octave)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Arm:
        """The arm that `to_dict` was called on."""
        octave = tuple((key, tuple(v) if isinstance(v, list) else v) for key, v in content["octave"].items())
        return cls(**{**content, "octave": octave})


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError
    return int(text)


def engines() -> list[str]:
    """Those that an arm may have: octvideo's, and "plain"."""
    return ["plain", *ENGINES]


def _choice(known: Sequence[str]) -> tuple[Callable[[str], str], str]:
    def choose(text: str) -> str:
        if text not in known:
            raise ValueError
        return text

    return choose, " or ".join([", ".join(known[:-1]), known[-1]])


def _option(text: str) -> Any:
    """A value of an octave option: numbers as such, 2x2x2 as several."""
    if text.replace("x", "").isdecimal():
        numbers = tuple(int(number) for number in text.split("x"))
        return numbers if len(numbers) > 1 else numbers[0]
    return text


def _keys() -> dict[str, tuple[Callable[[str], Any], str]]:
    """Key → how its text is read, and what is expected."""
    return {
        "alpha": (_share, "the share of low-frequency channels, 0 to 1"),
        "downsample": _choice(("stride", "pool")),
        "engine": _choice(engines()),
        **{key: _choice(get_args(kind)) for key, kind in _CHOICES.items()},
        **{name: (_count, "a whole number above 0") for name in ("batch", "frames", "crop", "classes", "width")},
    }


_CHOICES = {"precision": Precision, "layout": Layout, "mode": Mode, "optimizer": Optimizer, "fuse": Fuse}
_OCTAVE_KEYS = tuple(key for key in OctaveOptions.__annotations__ if key != "leaf_modules")


def parse_arms(texts: Sequence[str], **defaults: Any) -> list[Arm]:
    """Arms from texts: NETWORK:KEY=VALUE,...; several values with / between them are as many arms.

    Args:
        texts: for instance ["i3d_r50:alpha=0/.25"], which is two arms.
        defaults: of fields that a text leaves open.

    Returns:
        The arms in their order.

    Raises:
        UserError: a mistake in one, or the same arm twice.
    """
    arms = [arm for text in texts for arm in _parse(text, defaults)]
    for place, arm in enumerate(arms):
        if arm in arms[:place]:
            raise UserError(f"arm {arm_text(arm)!r} is given twice, expected once")
    return arms


def _parse(text: str, defaults: dict[str, Any]) -> list[Arm]:
    network, options = text, ""
    head, colon, tail = text.rpartition(":")
    if colon and ("=" in tail or not tail):
        network, options = head, tail
    if not network or "=" in network or " " in text:
        raise UserError(f"arm: got {text!r}, expected {_FORM}")
    given: dict[str, list[Any]] = {}
    for option in options.split(",") if network != text else []:
        key, equals, value = option.partition("=")
        if not equals or not value:
            raise UserError(f"arm {text!r}: got {option!r}, expected KEY=VALUE")
        if key in given:
            raise UserError(f"arm {text!r}: {key} is given twice, expected once (several values: {key}=A/B)")
        given[key] = [_read(text, key, one) for one in value.split("/")]
    # What a user of that library runs.
    base: dict[str, Any] = {"network": network, **defaults}
    if network.startswith("pytorchvideo:") and "alpha" not in given and "engine" not in given:
        base["engine"] = "plain"
    arms = []
    for values in itertools.product(*given.values()):
        chosen = dict(zip(given, values, strict=True))
        octave = tuple((key, chosen.pop(key)) for key in _OCTAVE_KEYS if key in chosen)
        arm = Arm(**{**base, **chosen, "octave": octave})
        _check(text, arm)
        arms.append(arm)
    return arms


def _read(text: str, key: str, value: str) -> Any:
    if key in _OCTAVE_KEYS:
        return _option(value)
    keys = _keys()
    if key not in keys:
        known = [*keys, *_OCTAVE_KEYS]
        close = difflib.get_close_matches(key, known, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"arm {text!r}: got key {key!r}{meant}, expected one of {', '.join(known)}")
    read, expected = keys[key]
    try:
        return read(value)
    except ValueError:
        raise UserError(f"arm {text!r}: {key}: got {value!r}, expected {expected}") from None


def _check(text: str, arm: Arm) -> None:
    trains = ["plain", *(name for name, entry in ENGINES.items() if entry.trains)]
    if arm.mode == "training" and arm.engine not in trains:
        raise UserError(f"arm {text!r}: engine: got {arm.engine!r}, expected {', '.join(trains)} in training")
    if arm.mode == "training" and arm.precision == "int8":
        raise UserError(f"arm {text!r}: precision: got 'int8', expected f32 or bf16 in training")
    if arm.mode == "inference" and arm.optimizer != "none":
        raise UserError(f"arm {text!r}: optimizer: got {arm.optimizer!r}, expected none in inference")
    if arm.mode == "inference" and arm.fuse != "none":
        raise UserError(f"arm {text!r}: fuse: got {arm.fuse!r}, expected none in inference, which chooses by itself")


def arm_text(arm: Arm) -> str:
    """The text that gives this arm: what is not a default of `Arm` is named."""
    parts = []
    for own in fields(Arm)[1:]:
        value = getattr(arm, own.name)
        if own.name == "octave":
            parts += [f"{key}={_joined(v)}" for key, v in value]
        elif value != own.default or (own.name == "engine" and arm.network.startswith("pytorchvideo:")):
            parts.append(f"{own.name}={value:g}" if isinstance(value, float) else f"{own.name}={value}")
    return f"{arm.network}:{','.join(parts)}" if parts else arm.network


def _joined(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def labels(arms: Sequence[Arm]) -> list[str]:
    """A short name for each arm: network, alpha, and whatever the arms do not have in common."""
    differing = [f.name for f in fields(Arm)[2:] if len({getattr(arm, f.name) for arm in arms}) > 1]
    with_network = len({arm.network for arm in arms}) > 1 or not differing
    return [_label(arm, differing, with_network=with_network) for arm in arms]


def _label(arm: Arm, differing: Sequence[str], *, with_network: bool) -> str:
    parts = [arm.network] * with_network + [f"α {arm.alpha:g}"]
    for name in differing:
        value = getattr(arm, name)
        if name == "octave":
            parts += [f"{key} {_joined(v)}" for key, v in value]
        elif name in ("batch", "frames", "crop", "classes", "width") and value is not None:
            parts.append(f"{name} {value}")
        elif value not in (None, "none", "auto"):
            parts.append(str(value))
    return " ".join(parts)


def common(arms: Sequence[Arm]) -> str:
    """In words, what all arms have in common."""
    first = arms[0]
    alike = {f.name for f in fields(Arm) if len({getattr(arm, f.name) for arm in arms}) == 1}
    parts = [str(getattr(first, name)) for name in ("network", "mode", "engine", "precision") if name in alike]
    if {"batch", "frames", "crop"} <= alike:
        parts.append(f"input {'x'.join(map(str, first.clip_shape))}")
    if "optimizer" in alike and first.optimizer != "none":
        parts.append(f"with a step of {first.optimizer}")
    if "layout" in alike and first.layout != "auto":
        parts.append(first.layout)
    return ", ".join(parts)


# ── presets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Preset:
    """A comparison by name.

    Args:
        text: what it compares.
        arms: as on the command line.
        options: of the command line, by name; the command line overrides them.
        paper: whether the paper's own times are drawn beside ours.
    """

    text: str
    arms: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False


PRESETS = {
    "cpu-eager": Preset(
        "I3D-50 and C2D-50 without a compiler, one clip",
        (
            "i3d_r50:alpha=0/.1/.125/.25/.5", "i3d_r50:alpha=.1/.125,channel_multiple=16",
            "c2d_r50:alpha=0/.1/.125/.25/.5", "c2d_r50:alpha=.1/.125,channel_multiple=16",
        ),
        {"engine": "eager", "rounds": 10},
    ),
    "cpu-training": Preset(
        "forward and backward of I3D-50, two clips, both layouts",
        ("i3d_r50:layout=contiguous/channels_last,alpha=0/.25/.5",),
        {"mode": "training", "batch": 2, "rounds": 7},
    ),
    "cpu-engines": Preset(
        "every engine on I3D-50, against pytorchvideo's own network",
        (
            "pytorchvideo:i3d_r50",
            "i3d_r50:engine=eager/compile/onnx/openvino,alpha=0/.25/.5",
            "i3d_r50:engine=openvino,precision=bf16/int8,alpha=0/.25/.5",  # bf16 is f32 where the CPU has no units
        ),
        {"rounds": 10},
    ),
    "cpu-precisions": Preset(
        "f32, bf16 and int8 of I3D-50, C2D-50 and SlowFast 4x16, by octvideo's kernel and by OpenVINO",
        (
            "i3d_r50:engine=eager/openvino,precision=f32/bf16/int8,alpha=0/.25/.5",
            "c2d_r50:engine=eager/openvino,precision=f32/bf16/int8,alpha=0/.25/.5",
            "slowfast_4x16_r50:frames=32,engine=eager/openvino,precision=f32/bf16/int8,alpha=0/.25/.5",
        ),
        {"rounds": 7, "threads": ["1"]},
    ),
    "cpu-light": Preset(
        "light, gated and grouped networks, by octvideo's kernel and by OpenVINO; image networks on eight frames",
        (
            *[
                f"pytorchvideo:{name}:alpha=0/.25/.5,frames={frames},crop={crop},engine=eager/openvino"
                for name, frames, crop in (("x3d_s", 13, 160), ("csn_r101", 32, 224), ("r2plus1d_r50", 16, 224))
            ],
            *[
                f"{name}:alpha=0/.25/.5,frames=1,batch=8,engine=eager/openvino"
                for name in (
                    "timm:efficientnet_lite0", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large",
                    "timm:seresnet50", "torchvision:resnext50_32x4d",
                )
            ],
        ),
        {"rounds": 7, "threads": ["1"]},
    ),
    "resnet50-table2": Preset(
        "ResNet-50 on one image, against Table 2 of arXiv 1904.05049",
        ("torchvision:resnet50:engine=eager/openvino,alpha=0/.125/.25/.5/.75",),
        {"frames": 1, "classes": 1000, "rounds": 15, "threads": ["1"]},
        paper=True,
    ),
    "gpu-training": Preset(
        "a training step of I3D-50 in bf16, with and without compiling, both layouts",
        ("i3d_r50:engine=eager/compile,layout=contiguous/channels_last,alpha=0/.25/.5",),
        {
            "mode": "training", "precision": "bf16", "batch": 32, "optimizer": "sgd", "device": "cuda", "rounds": 10,
            "as_built": True,
        },
    ),
    "gpu-inference": Preset(
        "30 views of I3D-50 in bf16, with and without compiling, both layouts",
        ("i3d_r50:engine=eager/compile,layout=contiguous/channels_last,alpha=0/.25/.5",),
        {"precision": "bf16", "batch": 30, "crop": 256, "device": "cuda", "rounds": 20, "as_built": True},
    ),
}  # fmt: skip

# ResNet-50 on one thread of a Skylake, 224 x 224 (arXiv 1904.05049, Table 2): alpha -> multiply-adds in G (counted
# exactly; the table rounds to 4.1, 3.6, 3.1, 2.4, 1.9) and milliseconds. Alpha 0 was run by MKLDNN (119 ms) and by
# TVM (115 ms), the others by TVM.
PAPER_TABLE_2 = {0.0: (4.089, 115), 0.125: (3.565, 116), 0.25: (3.104, 99), 0.5: (2.367, 74), 0.75: (1.880, 61)}


def paper_points() -> dict[float, tuple[float, float]]:
    """Alpha -> FLOP ratio and time ratio of the paper's Table 2, to TVM's ordinary network."""
    giga, milliseconds = PAPER_TABLE_2[0.0]
    return {alpha: (g / giga, ms / milliseconds) for alpha, (g, ms) in PAPER_TABLE_2.items() if alpha}
