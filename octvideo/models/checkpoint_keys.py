"""Names of weights: from other programs' state_dicts to pytorchvideo's, which our video networks have.

Whose names a file has is decided by what then matches the network; a network whose own keys match needs no
translation and gets none. What is in no table keeps its name, and `load_weights` reports it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Place = Literal["stem", "block", "nonlocal", "fusion", "head"]


@dataclass(frozen=True)
class Naming:
    """How a program names the layers of its ResNets.

    Args:
        owner: for messages.
        first_stage: its number for the first residual stage (res2 of the papers).
        rows: (its name of a layer, the place where pytorchvideo has it, pytorchvideo's name in that place).
    """

    owner: str
    first_stage: int
    rows: tuple[tuple[str, Place, str], ...]


# Source: torchvision/models/resnet.py (Bottleneck, ResNet); timm/models/resnet.py has the same names. Their
# classifier is "fc", their shortcut a Sequential of convolution and norm.
TORCHVISION = Naming(
    "torchvision's and timm's",
    1,
    (
        ("conv1", "stem", "conv"),
        ("bn1", "stem", "norm"),
        ("layer{stage}.{block}.conv{layer}", "block", "branch2.conv_{layer}"),
        ("layer{stage}.{block}.bn{layer}", "block", "branch2.norm_{layer}"),
        ("layer{stage}.{block}.downsample.0", "block", "branch1_conv"),
        ("layer{stage}.{block}.downsample.1", "block", "branch1_norm"),
        ("fc", "head", "proj"),
    ),
)
# Source: PySlowFast's slowfast/models/{stem,resnet,nonlocal,head}_helper.py and FuseFastToSlow in
# video_model_builder.py, and SE in operators.py. A network of one pathway has pathway0 only; SlowFast's pathway1 is the
# fast one. The norm of non-local blocks was "norm" before it became "bn". Where a name has two rows, a network has one
# of the places: the second is X3D's. pytorchvideo's stem of X3D calls its convolution in space conv_t.
PYSLOWFAST = Naming(
    "PySlowFast's",
    2,
    (
        ("s1.pathway{path}_stem.conv", "stem", "conv"),
        ("s1.pathway{path}_stem.conv", "stem", "conv.conv_xy"),
        ("s1.pathway{path}_stem.conv_xy", "stem", "conv.conv_t"),
        ("s1.pathway{path}_stem.bn", "stem", "norm"),
        ("s{stage}.pathway{path}_res{block}.branch1", "block", "branch1_conv"),
        ("s{stage}.pathway{path}_res{block}.branch1_bn", "block", "branch1_norm"),
        ("s{stage}.pathway{path}_res{block}.branch2.{layer}", "block", "branch2.conv_{layer}"),
        ("s{stage}.pathway{path}_res{block}.branch2.{layer}_bn", "block", "branch2.norm_{layer}"),
        ("s{stage}.pathway{path}_res{block}.branch2.{layer}_bn", "block", "branch2.norm_{layer}.0"),
        ("s{stage}.pathway{path}_res{block}.branch2.se.fc1", "block", "branch2.norm_b.1.block.0"),
        ("s{stage}.pathway{path}_res{block}.branch2.se.fc2", "block", "branch2.norm_b.1.block.2"),
        ("s{stage}.pathway{path}_nonlocal{block}.conv_{role}", "nonlocal", "conv_{role}"),
        ("s{stage}.pathway{path}_nonlocal{block}.bn", "nonlocal", "norm"),
        ("s{stage}.pathway{path}_nonlocal{block}.norm", "nonlocal", "norm"),
        ("s{stage}_fuse.conv_f2s", "fusion", "conv_fast_to_slow"),  # s1_fuse follows the stem
        ("s{stage}_fuse.bn", "fusion", "norm"),
        ("head.projection", "head", "proj"),
        ("head.conv_5", "head", "pool.pre_conv"),
        ("head.conv_5_bn", "head", "pool.pre_norm"),
        ("head.lin_5", "head", "pool.post_conv"),
        ("head.lin_5_bn", "head", "pool.post_norm"),
    ),
)
NAMINGS = (TORCHVISION, PYSLOWFAST)

_FIELDS = {"stage": r"\d", "block": r"\d+", "path": r"\d", "layer": "[abc123]", "role": "theta|phi|g|out"}
_PARAMETER = r"\.(?P<parameter>weight|bias|running_mean|running_var|num_batches_tracked)"
_EPS = 1e-5  # of PySlowFast's norms
_LETTER = {"1": "a", "2": "b", "3": "c"}  # conv1 of a bottleneck is conv_a


@dataclass(frozen=True)
class BlockLayout:
    """Where one of pytorchvideo's networks keeps stem, stages and head, read from its keys.

    They are `blocks.N`, where pools count too: res3 is block 3 in I3D and block 2 in Slow.

    Args:
        root: what all keys start with.
        stages: indices of the blocks of res2 to res5.
        head: index of the classifier's block.
        two_paths: whether each block holds SlowFast's two.
        nonlocals: (stage, block) to the path of the non-local block after it.
    """

    root: str
    stages: tuple[int, ...]
    head: int | None
    two_paths: bool
    nonlocals: Mapping[tuple[int, int], str]

    @classmethod
    def of(cls, keys: Iterable[str]) -> BlockLayout | None:
        """None for keys that are not of the kind of pytorchvideo's."""
        found = [m for m in (re.match(r"(.*?)blocks\.(\d+)\.(.+)", key) for key in keys) if m]
        root = min((m[1] for m in found), key=len, default="")
        inside = [(int(m[2]), m[3]) for m in found if m[1] == root]
        stages = sorted({number for number, rest in inside if "res_blocks." in rest})
        if not stages:
            return None
        nonlocals = {}
        for number, rest in inside:
            # The last number before its layers is that of the residual block it follows, wherever it is kept.
            if m := re.match(r"(.*?(\d+)\D*)\.conv_theta\.weight$", rest):
                nonlocals[number, int(m[2])] = f"{root}blocks.{number}.{m[1]}"
        return cls(
            root=root,
            stages=tuple(stages),
            head=next((number for number, rest in inside if rest.startswith("proj.")), None),
            two_paths=any(rest.startswith("multipathway_blocks.") for _, rest in inside),
            nonlocals=nonlocals,
        )

    def find(self, place: Place, *, stage: int, block: int, path: int) -> str | None:
        """The path of a place, or None where this network has none.

        Args:
            place: its kind.
            stage: 0 for the stem, 1 for res2.
            block: index of the residual block within its stage.
            path: 1 for SlowFast's fast pathway.
        """
        numbers = (0, *self.stages)
        if stage >= len(numbers) or path > int(self.two_paths):
            return None
        number: int | None = self.head if place == "head" else numbers[stage]
        here = f"{self.root}blocks.{number}"
        if place == "nonlocal":
            return self.nonlocals.get((numbers[stage], block))
        if place == "fusion":
            return f"{here}.multipathway_fusion"
        if place == "head":
            return None if number is None else here
        if self.two_paths:
            here += f".multipathway_blocks.{path}"
        return here if place == "stem" else f"{here}.res_blocks.{block}"


@dataclass(frozen=True)
class Matching:
    """Which of a network's keys each key of a file means.

    Args:
        keys: the file's key to the network's; without a common prefix where the network has no such key.
        owner: whose names were translated, None where none had to be.
        translated: how many of the network's keys were found under another program's name.
    """

    keys: Mapping[str, str]
    owner: str | None = None
    translated: int = 0


def match_keys(theirs: Collection[str], own: Collection[str]) -> Matching:
    """Finds the names, and the prefix, that make most of the network's keys match.

    Args:
        theirs: keys of the file.
        own: keys of the network.

    Example:
        >>> match_keys(["conv1.weight"], ["blocks.0.conv.weight", "blocks.1.res_blocks.0.x"]).keys
        {'conv1.weight': 'blocks.0.conv.weight'}
    """
    own = set(own)
    best = Matching(_match_prefix(theirs, own))
    hits = _hits(best.keys, own)
    layout = BlockLayout.of(own)
    if layout is None:
        return best
    for naming in NAMINGS:
        translated = translate(theirs, naming, layout, own=own)
        if (count := _hits(translated, own)) > hits:
            best, hits = Matching(translated, naming.owner, count), count
    return best


def translate(theirs: Iterable[str], naming: Naming, layout: BlockLayout, *, own: Collection[str]) -> dict[str, str]:
    """Each of a program's keys as the network's; what the network does not have keeps its name.

    A prefix before the program's names ("model.", "backbone.") is ignored.
    """
    theirs = list(theirs)
    rows = [(_pattern(name), place, ours) for name, place, ours in naming.rows]
    first = [key for key in theirs if re.search(rows[0][0] + "$", key) and key.endswith(".weight")]
    start = min(first, key=len, default="")
    prefix = re.sub(rows[0][0] + "$", "", start)
    return {key: _translated(key.removeprefix(prefix), rows, naming, layout, own) or key for key in theirs}


def _pattern(name: str) -> str:
    fields = {field: f"(?P<{field}>{expression})" for field, expression in _FIELDS.items()}
    return name.replace(".", r"\.").format(**fields) + _PARAMETER


def _translated(
    key: str, rows: list[tuple[str, Place, str]], naming: Naming, layout: BlockLayout, own: Collection[str]
) -> str | None:
    for pattern, place, ours in rows:
        found = re.fullmatch(pattern, key)
        if found is None:
            continue
        fields = found.groupdict()
        stage = int(fields["stage"]) - naming.first_stage + 1 if "stage" in fields else 0
        path = layout.find(place, stage=stage, block=int(fields.get("block", 0)), path=int(fields.get("path", 0)))
        fields["layer"] = _LETTER.get(fields.get("layer", ""), fields.get("layer", ""))
        target = f"{path}.{ours.format(**fields)}.{fields['parameter']}"
        if target in own:
            return target
    return None


def without_shortcut_norms(tensors: Mapping[str, Tensor], matching: Matching) -> dict[str, Tensor]:
    """A file's tensors without the norms of shortcuts that the network has none of, which their neighbours take on.

    PySlowFast's X3D normalises every shortcut with a convolution, pytorchvideo's only those that change the number of
    channels, so not that of res2. As the shortcut is added to what norm c gives, convolution and norm c can hold it:
    in evaluation the block gives the same.

    Args:
        tensors: by the file's keys.
        matching: of these keys.
    """
    kept = dict(tensors)
    if matching.owner != PYSLOWFAST.owner:
        return kept
    for key in tensors:
        before, found, _ = key.partition("branch1_bn.weight")
        norm = [f"{before}branch1_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        conv, last = f"{before}branch1.weight", f"{before}branch2.c_bn.bias"
        if not found or matching.keys[key] != key or not {conv, last, *norm} <= kept.keys():
            continue
        gain, bias, mean, variance = (kept.pop(name) for name in norm)
        kept.pop(f"{before}branch1_bn.num_batches_tracked", None)
        scale = gain / (variance + _EPS).sqrt()
        kept[conv] = kept[conv] * scale[:, None, None, None, None]
        kept[last] = kept[last] + bias - mean * scale
    return kept


def _hits(keys: Mapping[str, str], own: Collection[str]) -> int:
    return len(set(keys.values()) & set(own))


def _match_prefix(theirs: Collection[str], own: Collection[str]) -> dict[str, str]:
    """The file's keys as the network's: without or with the prefix ("model.") that makes most of them match."""
    best = {key: key for key in theirs}
    for prefix in _prefixes(of=theirs, before=own):
        without = {key: key.removeprefix(prefix) for key in theirs}
        best = max(best, without, key=lambda keys: _hits(keys, own))
    for prefix in _prefixes(of=own, before=theirs):
        added = {key: prefix + key for key in theirs if prefix + key in own}
        best = max(best, {key: added.get(key, key) for key in theirs}, key=lambda keys: _hits(keys, own))
    return best


def _prefixes(*, of: Collection[str], before: Collection[str]) -> list[str]:
    """What keys have before some keys of another collection, sampled: all of a network's have the same."""
    ends = sorted(before)
    some = ends[:: max(1, len(ends) // 8)]
    return sorted({key.removesuffix(end) for end in some for key in of if key.endswith("." + end)})
