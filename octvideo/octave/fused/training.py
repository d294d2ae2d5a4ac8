"""`fuse_training`: a network whose batch norms do in passing what surrounds them, for a GPU, which is bound by memory.

Between two convolutions of an octave network lie an addition of the upsampled low part, batch norm, a residual, a ReLU,
a pool and a concatenation. All of it becomes one operation (octvideo/octave/gpu/norm.py), and so does the rest of it in
ordinary layers. Parameters, buffers and keys stay what and where they are: a norm only changes its class.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from octvideo.octave.conversion.modules import OctMap
from octvideo.octave.conversion.trace import add_operation
from octvideo.octave.features import Octave, Parts
from octvideo.octave.fused.patterns import TracedModules
from octvideo.octave.gpu.norm import octave_norm
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.norms import OctBatchNorm2d, OctBatchNorm3d
from octvideo.octave.resample import pool_down


@dataclass(frozen=True)
class FusionReport:
    """What `fuse_training` did.

    Args:
        fused: path of each norm to what it does in passing.
        kept: path of each norm that works by itself, or of a network, to the reason.
        thin: how many octave convolutions have a part whose channels are no multiple of 8.
    """

    fused: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    thin: int = 0

    def __str__(self) -> str:
        count = len(self.fused) + len(self.kept)
        lines = [f"{len(self.fused)} of {count} batch norms are fused with their neighbours"]
        for reason in dict.fromkeys(self.kept.values()):
            paths = [path or "the network" for path, own in self.kept.items() if own == reason]
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            lines.append(f"  {', '.join(paths[:3])}{more}: {reason}")
        if self.thin:
            lines.append(
                f"  {self.thin} octave convolutions have a part whose channels are no multiple of 8, which tensor "
                "cores need: a new network should have channel_multiple=8 (in a config: octave: {channel_multiple: 8})"
            )
        return "\n".join(lines)


def fuse_training(network: nn.Module) -> FusionReport:
    """Let the batch norms of an octave or ordinary network that `octavize` made do what surrounds them, in place.

    Outputs, gradients and running statistics are the same to rounding, in training and in evaluation. Parameters and
    buffers stay the same objects under the same keys; the network copies, pickles and compiles as before. Fuse it
    before its first compiled call, and after SyncBatchNorm took the norms' places: a fused norm refuses that with a
    TypeError. It pays on CUDA; elsewhere it is plain torch, and on CPUs slower than the network as it was. What does
    not fit (other activations, hooks, groups, a time octave) stays as it is.

    On CUDA a fused network has no gradients of gradients, which gradient penalties and Hessians need: they raise a
    NotImplementedError. `unfuse` it before.

    Args:
        network: made by `octavize`, at any alpha, or a module that holds such networks.

    Returns:
        What was fused and what was not. It stays in `meta["fused"]` of each network.
    """
    fused: dict[str, str] = {}
    kept: dict[str, str] = {}
    found = list(_networks(network))
    for path, part in found:
        report = _Fusion(part).run()
        part.meta["fused"] = report
        prefix = f"{path}." if path else ""
        fused |= {prefix + name: words for name, words in report.fused.items()}
        kept |= {prefix + name: reason for name, reason in report.kept.items()}
    if not found:
        kept[""] = "octavize did not make it"
    return FusionReport(fused, kept, sum(part.meta["fused"].thin for _, part in found))


def unfuse(network: nn.Module) -> None:
    """The inverse of `fuse_training`, in place."""
    for _, part in _networks(network):
        if part.meta.pop("fused", None) is not None:
            _Unfusion(part).run()


def _networks(network: nn.Module) -> Iterator[tuple[str, fx.GraphModule]]:
    """Those that `octavize` made, and their paths; none lies within another."""
    for path, module in network.named_modules():
        if isinstance(module, fx.GraphModule) and "octave" in module.meta:
            yield path, module


# -- modules -----------------------------------------------------------------------------------------------


class _FusedNorm:
    """Batch norm of what a convolution gives, and what follows; mixed in before the class that holds the parameters.

    Attributes:
        relu: whether it applies a ReLU.
        pools: whether it also gives `joined`, see `OctaveLayer.reads_joined`.
        again: whether it gives all that twice, see `octave_norm`.
    """

    relu = False
    pools = False
    again = False

    def forward(self, input: Tensor | Octave | Parts, residual: Tensor | Octave | None = None) -> Any:
        """relu(norm(input) + residual), and beside it `joined` if it pools; all that twice in a row for `again`.

        Args:
            input: (N, C, [T,] H, W), or an Octave of it, or that in parts.
            residual: of the result's sizes.
        """
        norm: Any = self
        high, half, low = _parts(input)
        keeps = norm.track_running_stats or not norm.training
        running = (norm.running_mean, norm.running_var) if keeps else (None, None)
        residuals = residual if isinstance(residual, Octave) else (residual, None)
        maps = [(x, r) for x, r in zip((high, low), residuals, strict=True) if x is not None and r is not None]
        alike = all(x.shape == r.shape and x.dtype == r.dtype for x, r in maps)
        momentum = norm.momentum
        if momentum is None:  # set since: torch's update_bn averages so. BatchCount has counted this batch
            counts = norm.training and norm.num_batches_tracked is not None
            momentum = 1.0 / float(norm.num_batches_tracked) if counts else 0.0
        options = {"training": norm.training, "momentum": momentum, "eps": norm.eps}
        vectors = norm.weight, norm.bias, *running
        if alike:
            options |= {"relu": self.relu, "pools": self.pools, "again": self.again}
            made = octave_norm(high, half, low, *residuals, *vectors, **options)
        else:  # the residual broadcasts, or has another precision
            y_high, y_low, _ = octave_norm(high, half, low, None, None, *vectors, **options, relu=False)
            y_high = self._finish(y_high, residuals[0])
            y_low = y_low if y_low is None else self._finish(y_low, residuals[1])
            joined = _join(y_high, y_low) if self.pools else None
            made = (y_high, y_low, joined) * (2 if self.again else 1)
        results: list[Any] = []
        for n in range(0, len(made), 3):
            y_high, y_low, joined = made[n : n + 3]
            results.append(y_high if y_low is None else Octave(y_high, y_low))
            results += [joined] if self.pools else []
        return tuple(results) if len(results) > 1 else results[0]

    @property
    def qconfig(self) -> Any:
        """What torch's tools ask for that put another module in a norm's place, which would leave out all that this one
        does beside: SyncBatchNorm.convert_sync_batchnorm and quantization.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "no other norm can take a fused norm's place: call SyncBatchNorm.convert_sync_batchnorm before "
            "fuse_training, or octvideo.octave.unfuse(network) first"
        )

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        y = y if residual is None else y + residual
        return F.relu(y) if self.relu else y

    def extra_repr(self) -> str:
        words = [name for name in ("relu", "pools", "again") if getattr(self, name)]
        return ", ".join([super().extra_repr(), "fused", *words])  # type: ignore[misc]


class FusedBatchNorm2d(_FusedNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d, and what follows it."""


class FusedBatchNorm3d(_FusedNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d, and what follows it."""


class FusedOctBatchNorm2d(_FusedNorm, OctBatchNorm2d):
    """OctBatchNorm2d, and what follows it."""


class FusedOctBatchNorm3d(_FusedNorm, OctBatchNorm3d):
    """OctBatchNorm3d, and what follows it."""


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.BatchNorm3d: FusedBatchNorm3d,
    OctBatchNorm2d: FusedOctBatchNorm2d,
    OctBatchNorm3d: FusedOctBatchNorm3d,
}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


class BatchCount(nn.Module):
    """Counts the batch for all fused norms of a network in one kernel, as each would do by itself; gives what it takes.

    Args:
        norms: which stay where they are in the network, and are not in this module.
    """

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        super().__init__()
        self.norms = tuple(norms)

    def forward(self, x: Any) -> Any:
        norms: Any = self.norms
        counts = [norm.num_batches_tracked for norm in norms if norm.training and norm.track_running_stats]
        if counts:
            torch._foreach_add_(counts, 1)
        return x


class OctJoin(nn.Module):
    """`joined` of a value, for several convolutions that read it."""

    def forward(self, x: Tensor | Octave) -> Tensor:
        """(N, C, [T,] h, w)."""
        return _join(*x) if isinstance(x, Octave) else _join(x, None)


def _join(high: Tensor, low: Tensor | None) -> Tensor:
    pooled = pool_down(high)
    return pooled if low is None else torch.cat([pooled, low], 1)


def _parts(x: Tensor | Octave | Parts) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(x, Tensor):
        return x, None, None
    return x if isinstance(x, Parts) else (x.high, None, x.low)


# -- the graph ---------------------------------------------------------------------------------------------


class _Fusion(TracedModules):
    """A traced network, in place, while its norms take on what surrounds them."""

    def run(self) -> FusionReport:
        self.fused: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        self.order = {node: n for n, node in enumerate(self.graph.nodes)}
        # Of two norms that are added, the one that comes last takes the other's result for its residual.
        for node in reversed(list(self.graph.nodes)):
            norm = self.module(node)
            if isinstance(norm, _FusedNorm):
                self.fused[str(node.target)] = "as before"
            elif isinstance(norm, nn.modules.batchnorm._NormBase):
                reason = self._why_not(node, norm) or self._fuse(node, norm)
                if reason is not None:
                    self.kept[str(node.target)] = reason
        for node in list(self.graph.nodes):
            self._join_once(node)
        for node in list(self.graph.nodes):
            self._give_again(node)
        self._count_batches()
        self.graph.lint()
        self.model.recompile()
        order = [path for path in self.modules if path in self.fused]
        thin = sum(map(_is_thin, self._octave_layers()))
        return FusionReport({path: self.fused[path] for path in order}, dict(reversed(self.kept.items())), thin)

    def _why_not(self, node: fx.Node, norm: Any) -> str | None:
        if type(norm) not in _FUSED:
            return f"is a {type(norm).__name__}"
        if self.calls[node.target] > 1 or len(node.args) != 1 or node.kwargs:
            return "is called twice"
        if _has_hooks(norm):
            return "has hooks"
        if norm.momentum is None:
            return "averages its statistics over all batches"
        if isinstance(norm, OctBatchNorm2d | OctBatchNorm3d):
            if not norm.is_in_order:
                return "has low channels between high ones"
            if not all(layer.factor in ((2, 2), (1, 2, 2)) for layer in self._octave_layers()):
                return "belongs to a network that halves other axes than height and width"
        return None

    def _octave_layers(self) -> list[OctaveLayer]:
        return [module for module in self.modules.values() if isinstance(module, OctaveLayer)]

    def _fuse(self, node: fx.Node, norm: nn.Module) -> str | None:
        """Let a norm take on what surrounds it; why it does not, if there is nothing."""
        last, residual, relu = node, None, False
        addition = self._only_user(last)
        if addition is not None and self.is_addition(addition):
            other = addition.args[1] if addition.args[0] is last else addition.args[0]
            assert isinstance(other, fx.Node)
            # In place of a value that others read, a sum is theirs too.
            changes_other = self.writes_in_place(addition) and addition.args[0] is other and len(other.users) > 1
            if not changes_other:
                last, residual = addition, other
        rectifier = self._only_user(last)
        if rectifier is not None and self.is_relu(rectifier):
            last, relu = rectifier, True
        source = node.args[0]
        parts = self._takes_parts(source)
        is_pair = isinstance(norm, OctBatchNorm2d | OctBatchNorm3d)
        if not (is_pair or parts or relu or residual):
            return "nothing that it could take on surrounds it"
        if parts:
            self.module(source).gives_parts = True  # type: ignore[union-attr]
        norm.__class__ = _FUSED[type(norm)]
        norm.relu, norm.pools, norm.again = relu, False, False  # type: ignore[assignment]
        with self.graph.inserting_before(last):
            call = self.graph.call_module(str(node.target), (source,) if residual is None else (source, residual))
        call.meta = dict(last.meta)
        last.replace_all_uses_with(call)
        for done in dict.fromkeys((last, node if residual is None else addition, node)):
            self.graph.erase_node(done)  # type: ignore[arg-type]
        words = {"upsampled part": parts, "residual": residual is not None, "ReLU": relu}
        self.fused[str(node.target)] = ", ".join([word for word, there in words.items() if there] or ["both maps"])
        return None

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """What alone reads a value, if that has no hooks that would have to see it."""
        if len(node.users) != 1:
            return None
        user = next(iter(node.users))
        modules = (self.module(user), self.operation(user))
        return None if any(_has_hooks(module) for module in modules) else user

    def _takes_parts(self, source: Any) -> bool:
        """Whether the norm that reads `source` can add up a convolution's two terms."""
        conv = self.module(source)
        if not isinstance(conv, OctaveLayer) or _has_hooks(conv):
            return False
        return len(source.users) == 1 and self.calls[source.target] == 1 and conv.can_give_parts

    def _join_once(self, value: fx.Node) -> None:
        """Let convolutions read x_high pooled, and x_low, from one buffer: a norm's, or one that is made once."""
        readers = [user for user in value.users if self._reads_joined(user, value)]
        norm = self.module(value)
        by_norm = isinstance(norm, _FusedNorm)
        if len(readers) < (1 if by_norm else 2) or any(self.writes_in_place(user) for user in value.users):
            return
        if by_norm:
            norm.pools = True  # type: ignore[union-attr]
            self.fused[str(value.target)] += ", pool"
            value, joined = self._first_item(value), self._item(value, 1)
        else:
            with self.graph.inserting_before(min(readers, key=self._place)):
                path = add_operation(self.model, f"join_{value.name}", OctJoin())
                joined = self.graph.call_module(path, (value,))
        for reader in readers:
            reader.args = (value, joined)

    def _give_again(self, node: fx.Node) -> None:
        """Let one of several readers of a norm's value take it a second time, with a gradient of its own."""
        norm: Any = self.module(node)
        if not isinstance(norm, _FusedNorm) or norm.again:
            return
        items = {user.args[1]: user for user in node.users} if norm.pools else {0: node}
        readers = list(items[0].users)
        if len(readers) < 2 or any(self.writes_in_place(reader) for reader in readers):
            return
        norm.again = True
        given = [items[0], items[1]] if norm.pools else [self._first_item(node)]

        def reads(reader: fx.Node) -> list[int]:
            return [n for n, item in enumerate(given) if item in reader.all_input_nodes]

        second = min(readers, key=lambda reader: len(reads(reader)))  # rather one that reads no `joined`
        for n in reads(second):
            second.replace_input_with(given[n], self._item(node, len(given) + n))

    def _first_item(self, value: fx.Node) -> fx.Node:
        """What all readers read from now on, where a norm gives several values."""
        first = self._item(value, 0)
        value.replace_all_uses_with(first, lambda user: user is not first)
        return first

    def _item(self, value: fx.Node, n: int) -> fx.Node:
        with self.graph.inserting_after(value):
            return self.graph.call_function(operator.getitem, (value, n))

    def _reads_joined(self, node: fx.Node, value: fx.Node) -> bool:
        conv = self.module(node)
        plain = node.args == (value,) and not node.kwargs
        return plain and isinstance(conv, OctaveLayer) and conv.reads_joined and not _has_hooks(conv)

    def _count_batches(self) -> None:
        norms = [module for module in self.modules.values() if isinstance(module, _FusedNorm)]
        counted = any(isinstance(self.module(node), BatchCount) for node in self.graph.nodes)
        if not norms or counted:
            return
        first = next(node for node in self.graph.nodes if node.op == "placeholder")
        after = next(node for node in self.graph.nodes if node.op != "placeholder")
        with self.graph.inserting_before(after):
            path = add_operation(self.model, "count_batches", BatchCount(norms))  # type: ignore[arg-type]
            call = self.graph.call_module(path, (first,))
        first.replace_all_uses_with(call, lambda user: user is not call)

    def _place(self, node: fx.Node) -> int:
        return self.order[node]


class _Unfusion(TracedModules):
    """A fused network, in place, while its norms give back what they took on."""

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        for node in nodes:  # first, so that nothing reads `joined` when its norm no longer gives it
            module = self.module(node)
            if isinstance(module, OctaveLayer):
                module.gives_parts = False
                node.args = node.args[:1]
        for node in nodes:
            module = self.module(node)
            if isinstance(module, _FusedNorm):
                self._unfuse(node, module)
            elif isinstance(module, OctJoin):
                self.graph.erase_node(node)
            elif isinstance(module, BatchCount):
                self.drop(node, node.args[0])  # type: ignore[arg-type]
        self.graph.lint()
        self.model.recompile()

    def _unfuse(self, node: fx.Node, norm: Any) -> None:
        is_pair = isinstance(norm, OctBatchNorm2d | OctBatchNorm3d)
        made, readers = node, list(node.users)
        source: Any
        residual: Any
        source, *residual = node.args
        node.args = (source,)
        with self.graph.inserting_after(node):
            if norm.relu:
                made = rectified = self._call(F.relu, (node,), is_pair)
            if residual:
                total = self._call(operator.add, (node, *residual), is_pair)
                made = rectified if norm.relu else total
                if norm.relu:
                    rectified.args = (total,)
        for reader in readers:
            if norm.pools or norm.again:  # it takes the value, or `joined`, which nobody reads any more
                reader.replace_all_uses_with(made)
                self.graph.erase_node(reader)
            else:
                reader.replace_input_with(node, made)
        norm.relu = norm.pools = norm.again = False
        norm.__class__ = _PLAIN[type(norm)]

    def _call(self, function: Any, args: tuple[fx.Node, ...], is_pair: bool) -> fx.Node:
        if not is_pair:
            return self.graph.call_function(function, args)
        name = f"unfused_{function.__name__}_{args[0].name}"
        return self.graph.call_module(add_operation(self.model, name, OctMap(function)), args)


def _is_thin(layer: OctaveLayer) -> bool:
    """Whether tensor cores would have to fill up a part of its channels."""
    parts = (part for own in (layer.partition_in, layer.partition_out) for part in (own.high, own.low))
    return layer.is_octave and layer.groups == 1 and any(len(part) % 8 for part in parts)


def _has_hooks(module: Any) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return isinstance(module, nn.Module) and any(getattr(module, name) for name in names)
