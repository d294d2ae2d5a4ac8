"""What kernels an operation of torch launches on CUDA, and what each reads and writes.

An operation that is in no table below is one kernel, which reads every tensor it takes once, and writes every one that
it gives or changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from lab.roofline.device import Kernel, Kind, Phase, Product
from lab.roofline.fake import conv_layout

aten = torch.ops.aten
Launches = list[tuple[str, Kind, int, Product | None]]  # name, kind, bytes

# What runs on the host alone, or not at all: memory that is given and taken, and other views of it.
_FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "_unsafe_view", "view_as_real", "is_same_size", "sym_size", "sym_stride", "sym_numel",
    "set_", "resize_", "_assert_tensor_metadata", "_assert_scalar", "record_stream",
}  # fmt: skip
# Words in a name -> what it is counted as; the first that is found counts.
_KINDS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("convolution", ("convolution", "conv1d", "conv2d", "conv3d", "weight_block")),
    ("matrix product", ("addmm", "bmm", "mm", "linear", "matmul", "product", "scaled_dot_product")),
    ("normalisation", ("norm", "var_mean", "moments", "rsqrt")),
    ("pooling", ("pool",)),
    ("upsampling, addition", ("upsample", "add", "sub", "unsafe_index", "interpolate")),
    (
        "copy",
        (
            "_weight",
            "copy",
            "clone",
            "cat",
            "slice",
            "select",
            "zero",
            "fill",
            "full",
            "pad",
            "convert_element_type",
            "_to",
        ),
    ),
)
_FOREACH_TENSORS = 64  # a launch of a list operation takes about as many tensors, by the space for its arguments
_CAT_AXES = 4  # torch joins tensors of more axes one by one


def kind_of(name: str) -> Kind:
    """What an operation of that name is counted as."""
    return next((kind for kind, words in _KINDS if any(word in name for word in words)), "other")


def launches(
    func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, phase: Phase
) -> list[Kernel]:
    """The kernels of one operation, called with tensors that may be fake.

    Args:
        func: as torch dispatches it.
        args, kwargs: that it takes.
        result: what it gives.
        phase: of the step, noted with each kernel.
    """
    namespace, _, name = func._schema.name.partition("::")
    tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
    if (
        func.is_view
        or namespace == "prim"
        or name in _FREE
        or not any(x.device.type == "cuda" and x.numel() for x in tensors)
    ):
        return []
    shape = tuple(max(tensors, key=Tensor.numel).shape)
    bound = _bound(func, args, kwargs)
    found: Launches
    rules = {"aten": _RULES, "octvideo": _OWN}.get(namespace, {})
    if (rule := rules.get(name)) is not None:
        found = rule(bound, result)
    else:
        found = [(name, kind_of(name), _moved(func, bound, result), None)]
        if name.startswith("_foreach"):
            lists = [x for x in bound.values() if isinstance(x, list | tuple) and x and isinstance(x[0], Tensor)]
            parts = -(-len(lists[0]) // _FOREACH_TENSORS) if lists else 1
            found = [(name, kind_of(name), found[0][2] // parts, None)] * parts
    return [Kernel(launch, kind, moved, phase, product, shape) for launch, kind, moved, product in found]


def touched(x: Tensor | None) -> int:
    """Bytes that lie under a tensor: of what is repeated by a stride of 0, one."""
    if x is None:
        return 0
    return math.prod(size if stride else 1 for size, stride in zip(x.shape, x.stride(), strict=True)) * x.element_size()


def _bound(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    return defaults | dict(zip(names, args, strict=False)) | dict(kwargs)


def _moved(func: OpOverload, bound: Mapping[str, Any], result: Any) -> int:
    """Every tensor once: read where it is taken, written where it is given or changed."""
    read = {id(x): touched(x) for x in _tensors(bound.values())}
    changed = [bound[a.name] for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    written = {id(x): touched(x) for x in [*_tensors(changed), *_tensors([result])]}
    return sum(read.values()) + sum(written.values())


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    return [x for x in tree_leaves(list(values)) if isinstance(x, Tensor)]


# ── octvideo's own operators (octvideo/octave/gpu), each of its kernels ───────────────────────────────────────────────


def _moments(a: Mapping[str, Any], result: Any) -> Launches:
    maps = sum(touched(a[name]) for name in ("high", "half", "low"))
    vectors = sum(map(touched, result))
    return [("moments", "normalisation", maps + vectors, None), ("moments, summed", "normalisation", 3 * vectors, None)]


def _normalize(a: Mapping[str, Any], result: Any) -> Launches:
    read = sum(touched(x) for x in a.values() if isinstance(x, Tensor))
    return [("normalize", "normalisation", read + sum(map(touched, result)), None)]


def _normalize_backward(a: Mapping[str, Any], result: Any) -> Launches:
    """Sums, which also write g where it is a residual's or of two readers, their addition, and the maps' gradients."""
    d_high, d_half, d_low, g_high, g_low, *vectors = result
    x = sum(touched(a[name]) for name in ("high", "half", "low"))
    joined = touched(a["d_joined"])
    in_sums, in_gradient = x + joined + touched(a["again_joined"]), x
    for name, g in (("high", g_high), ("low", g_low)):
        in_sums += touched(a[f"dy_{name}"]) + touched(a[f"again_{name}"]) + touched(g)
        if a[f"has_residual_{name}"] and a["relu"]:  # the ReLU's mask is y's
            in_sums += touched(a[f"y_{name}"])
        in_gradient += touched(g) or touched(a[f"dy_{name}"])
    in_gradient += 0 if g_high.numel() and (g_low.numel() or a["low"] is None) else joined
    sums = sum(map(touched, vectors))
    return [
        ("normalize's sums", "normalisation", in_sums + sums, None),
        ("normalize's sums, summed", "normalisation", 3 * sums, None),
        ("normalize, backward", "normalisation", in_gradient + sum(map(touched, (d_high, d_half, d_low))), None),
    ]


_OWN: dict[str, Callable[[Mapping[str, Any], Any], Launches]] = {
    "octave_moments": _moments,
    "octave_normalize": _normalize,
    "octave_normalize_backward": _normalize_backward,
}


# ── torch's, where they are more than one kernel, or read less or more than all ───────────────────────────────────────


def _layout_copy(x: Tensor | None, layout: torch.memory_format) -> Launches:
    """What changes a tensor's layout before an operation that needs another one."""
    if x is None or x.is_contiguous(memory_format=layout):
        return []
    return [("layout", "copy", touched(x) + x.numel() * x.element_size(), None)]


def _whole(x: Tensor | None) -> int:
    return 0 if x is None else x.numel() * x.element_size()


def _product(rows: int, columns: int, depth: int, x: Tensor, copies: int = 1) -> Product:
    return Product(rows, columns, depth, copies, half=x.element_size() == 2)


def _channels(count: int, x: Tensor) -> int:
    """Rounded up to what a tensor core's load takes: 16 bytes."""
    step = 16 // x.element_size()
    return -(-count // step) * step


def _convolution(a: Mapping[str, Any], y: Tensor) -> Launches:
    x, weight, groups = a["input"], a["weight"], a["groups"]
    layout = conv_layout(x, weight)
    found = _layout_copy(x, layout) + _layout_copy(weight, layout)
    found.append(
        ("convolution", "convolution", _whole(x) + _whole(weight) + _whole(y), _forward(x, weight, y, groups, a))
    )
    if a["bias"] is not None:  # cuDNN's results are changed by a kernel of torch's
        found.append(("convolution's bias", "upsampling, addition", 2 * _whole(y), None))
    return found


def _forward(x: Tensor, weight: Tensor, y: Tensor, groups: int, a: Mapping[str, Any]) -> Product:
    taps = math.prod(weight.shape[2:])
    if a["transposed"]:  # a data gradient
        pixels = math.prod(x.shape[2:]) * x.shape[0]
        return _product(pixels, y.shape[1] // groups * taps, _channels(x.shape[1] // groups, x), x, groups)
    pixels = math.prod(y.shape[2:]) * y.shape[0]
    return _product(pixels, y.shape[1] // groups, taps * _channels(x.shape[1] // groups, x), x, groups)


def _convolution_backward(a: Mapping[str, Any], result: Any) -> Launches:
    dy, x, weight, groups = a["grad_output"], a["input"], a["weight"], a["groups"]
    layout = conv_layout(x, weight)
    wants_x, wants_weight, wants_bias = a["output_mask"]
    taps, pixels = math.prod(weight.shape[2:]), math.prod(dy.shape[2:]) * dy.shape[0]
    ins, outs = x.shape[1] // groups, dy.shape[1] // groups
    found = _layout_copy(dy, layout)
    if wants_x:
        found += _layout_copy(weight, layout)
        product = _product(math.prod(x.shape[2:]) * x.shape[0], ins, _depth(a, taps) * _channels(outs, x), x, groups)
        found.append(("convolution, to maps", "convolution", _whole(dy) + _whole(weight) + _whole(x), product))
    if wants_weight:
        found += _layout_copy(x, layout)
        product = _product(outs, taps * _channels(ins, x), pixels, x, groups)
        found.append(("convolution, to weight", "convolution", _whole(dy) + _whole(x) + _whole(weight), product))
    if wants_bias:
        found.append(("convolution, to bias", "convolution", _whole(dy), None))
    return found


def _depth(a: Mapping[str, Any], taps: int) -> int:
    """Taps that meet each pixel of the maps: where the convolution strides, a share of them."""
    return taps if a["transposed"] else -(-taps // math.prod(a["stride"]))


def _batch_norm(a: Mapping[str, Any], result: Any) -> Launches:
    """torch's kernels, which cuDNN's match in what they move: bf16 is torch's own."""
    x = a["input"]
    y = result[0] if isinstance(result, tuple | list) else result
    channels = 4 * x.shape[1]  # float32
    if not a.get("training", a.get("train", "batch_norm_with_update" in a)):
        return [
            ("inverse deviation", "normalisation", 2 * channels, None),
            ("batch norm", "normalisation", touched(x) + _whole(y) + 4 * channels, None),
        ]
    running = a.get("running_mean") is not None
    return [
        ("statistics", "normalisation", touched(x) + 2 * channels, None),
        ("running statistics", "normalisation", (7 if running else 2) * channels, None),
        ("batch norm", "normalisation", touched(x) + _whole(y) + 4 * channels, None),
    ]


def _batch_norm_update(a: Mapping[str, Any], result: Any) -> Launches:
    return _batch_norm({**a, "training": True}, result)


def _batch_norm_no_update(a: Mapping[str, Any], result: Any) -> Launches:
    return _batch_norm({**a, "training": False}, result)


def _batch_norm_backward(a: Mapping[str, Any], result: Any) -> Launches:
    x = a["input"]
    dy = next(a[name] for name in ("grad_out", "grad_output") if name in a)
    channels = 4 * x.shape[1]
    both = touched(dy) + touched(x)
    return [
        ("batch norm's sums", "normalisation", both + 6 * channels, None),
        ("batch norm, backward", "normalisation", both + _whole(x) + 5 * channels, None),
    ]


def _mm(a: Mapping[str, Any], y: Tensor) -> Launches:
    first, second = (a["self"], a["mat2"]) if "mat2" in a else (a["mat1"], a["mat2"])
    return [("mm", "matrix product", touched(first) + touched(second) + _whole(y), _of_matrices(first, second))]


def _addmm(a: Mapping[str, Any], y: Tensor) -> Launches:
    first, second = a["mat1"], a["mat2"]
    moved = touched(a["self"]) + touched(first) + touched(second) + _whole(y)
    return [("addmm", "matrix product", moved, _of_matrices(first, second))]


def _bmm(a: Mapping[str, Any], y: Tensor) -> Launches:
    first = a["self"] if "mat2" in a else a["batch1"]
    second = a.get("mat2", a.get("batch2"))
    assert second is not None
    more = touched(a["self"]) if "batch1" in a else 0
    product = _of_matrices(first[0], second[0], copies=first.shape[0])
    return [("bmm", "matrix product", more + touched(first) + touched(second) + _whole(y), product)]


def _of_matrices(first: Tensor, second: Tensor, copies: int = 1) -> Product:
    rows, depth = first.shape
    columns = second.shape[1]
    if rows < columns:  # the tile is laid so that the longer side is its rows
        rows, columns = columns, rows
    return _product(rows, columns, _channels(depth, first), first, copies)


def _max_pool_backward(a: Mapping[str, Any], dx: Tensor) -> Launches:
    dy = a["grad_output"]
    moved = 2 * touched(dy) + touched(a["indices"])  # each adds to a pixel of dx
    return [("fill", "copy", _whole(dx), None), ("max pool, backward", "pooling", moved + touched(dy), None)]


def _avg_pool_3d(a: Mapping[str, Any], y: Tensor) -> Launches:
    """Knows contiguous maps alone."""
    x = a["self"]
    copy = _layout_copy(x, torch.contiguous_format)
    return [*copy, ("avg_pool3d", "pooling", _whole(x) + _whole(y), None)]


def _avg_pool_3d_backward(a: Mapping[str, Any], dx: Tensor) -> Launches:
    dy = a["grad_output"]
    copy = _layout_copy(dy, torch.contiguous_format)
    return [*copy, ("avg_pool3d, backward", "pooling", _whole(dy) + _whole(dx), None)]


def _backward_of_pool(a: Mapping[str, Any], dx: Tensor) -> Launches:
    """Without the maps, of which it takes the size."""
    return [("average pool, backward", "pooling", touched(a["grad_output"]) + _whole(dx), None)]


def _copy_into(a: Mapping[str, Any], _: Tensor) -> Launches:
    return [("copy", "copy", touched(a["src"]) + touched(a["self"]), None)]


def _fill(a: Mapping[str, Any], y: Tensor) -> Launches:
    return [("fill", "copy", _whole(y), None)]


def _cat(a: Mapping[str, Any], y: Tensor) -> Launches:
    parts = [x for x in a["tensors"] if x.numel()]
    if y.dim() <= _CAT_AXES:
        return [("cat", "copy", sum(map(touched, parts)) + _whole(y), None)]
    return [("cat", "copy", touched(x) + _whole(x), None) for x in parts]


def _slice_backward(a: Mapping[str, Any], y: Tensor) -> Launches:
    grad = a["grad_output"]
    return [("fill", "copy", _whole(y), None), ("slice, backward", "copy", touched(grad) + _whole(grad), None)]


def _pad(a: Mapping[str, Any], y: Tensor) -> Launches:
    x = a["self"]
    return [("fill", "copy", _whole(y), None), ("pad", "copy", touched(x) + _whole(x), None)]


def _clone(a: Mapping[str, Any], y: Tensor) -> Launches:
    return [("copy", "copy", touched(a["self"]) + _whole(y), None)]


def _index_add(a: Mapping[str, Any], y: Tensor) -> Launches:
    source = a["source"]
    more = 2 * _whole(y)  # the copy that it changes
    return [
        ("copy", "copy", more, None),
        ("index_add", "upsampling, addition", touched(source) + 2 * _whole(source), None),
    ]


_RULES: dict[str, Callable[[Mapping[str, Any], Any], Launches]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_no_update,
    "cudnn_batch_norm": _batch_norm,
    "_batch_norm_with_update": _batch_norm_update,
    "_batch_norm_no_update": _batch_norm_no_update,
    "native_batch_norm_backward": _batch_norm_backward,
    "cudnn_batch_norm_backward": _batch_norm_backward,
    "batch_norm_backward": _batch_norm_backward,
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "baddbmm": _bmm,
    "max_pool2d_with_indices_backward": _max_pool_backward,
    "max_pool3d_with_indices_backward": _max_pool_backward,
    "avg_pool3d": _avg_pool_3d,
    "avg_pool3d_backward": _avg_pool_3d_backward,
    "avg_pool2d_backward": _backward_of_pool,
    "copy_": _copy_into,
    "fill_": _fill,
    "zero_": _fill,
    "zeros": _fill,
    "zeros_like": _fill,
    "new_zeros": _fill,
    "ones": _fill,
    "ones_like": _fill,
    "full": _fill,
    "full_like": _fill,
    "cat": _cat,
    "slice_backward": _slice_backward,
    "select_backward": _slice_backward,
    "constant_pad_nd": _pad,
    "clone": _clone,
    "_to_copy": _clone,
    "index_add": _index_add,
}
