"""Several key or value dims as one: chunk kernels multiply matrices, so S[K, J, V] is to them a matrix S[K_J, V].

A fused dim F of (K, J) runs over all pairs, row-major: its entry f stands for k = f // J and j = f % J. What has one of
the dims is spread along F by a product with a matrix of zeros and ones, E[f, k] = [k is f's part]:

    x[K] -> E x,  x_f = x_k        and its adjoint sums over the other dims        sum over J of y[K, J] -> y E

Elementwise operations commute with that. Tensors that have all the dims (states, and maybe inputs or outputs) are the
same memory under another shape: `views` says which shape the caller has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from recur.ir.core import Node, apply, contract, expand, leaf, mul, rebuild, reduce, select, topological
from recur.ir.normal import MatrixForm, map_event
from recur.ir.printing import format_node
from recur.operators import OPERATORS
from recur.strategies.operands import tensor_name

Dims = tuple[str, ...]
Epilogue = tuple[tuple[str, Node], ...]


class NotFusable(Exception):
    """An expression over several of the dims that is neither elementwise nor a sum over all of them: which."""

    def __init__(self, node: Node) -> None:
        super().__init__(f"{format_node(node, 60)} mixes dimensions that would be one")


@dataclass(frozen=True)
class Fused:
    """The stage with one key and one value dim. ``groups``: each fused dim with its dims, in order.

    ``views``: for each tensor whose dims are fused, its own dims in the caller's order.
    """

    forms: tuple[MatrixForm, ...]
    epilogue: Epilogue
    groups: tuple[tuple[str, Dims], ...] = ()
    views: tuple[tuple[str, Dims], ...] = ()

    def dims(self, dims: Dims) -> Dims:
        """Each fused dim where the first of its group stands."""
        for name, group in self.groups:
            if set(group) <= set(dims):
                dims = tuple(dict.fromkeys(name if d in group else d for d in dims))
        return dims


def fuse_dims(
    forms: tuple[MatrixForm, ...], epilogue: Epilogue, key: Dims, value: Dims, taken: Mapping[str, int]
) -> Fused:
    """The forms over one key and one value dim; as they are where they have no more. Raises NotFusable."""
    fused = Fused(forms, epilogue)
    for group in (key, value):
        if len(group) > 1:
            fused = _fuse_group(fused, group, _free_name("_".join(group), taken))
    return fused


def _free_name(wanted: str, taken: Mapping[str, int]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted


def _fuse_group(stage: Fused, group: Dims, name: str) -> Fused:
    fusion = _Fusion(name, group)
    forms = tuple(fusion.form(f) for f in stage.forms)
    epilogue = tuple((result, fusion.exported(node)) for result, node in stage.epilogue)
    fusion.tensors |= {result: node.dims for result, node in stage.epilogue if len(fusion.own(node.dims)) > 1}
    views = tuple((fusion.tensors | dict(stage.views)).items())
    return Fused(forms, epilogue, (*stage.groups, (name, group)), views)


class _Fusion:
    """Rewrites expressions for one group of dims.

    `plain` keeps an expression of at most one of the dims as it is (only what it takes from readouts changes); `fused`
    gives it over the fused dim. ``tensors``: those that have all of the dims, with their own.
    """

    def __init__(self, name: str, group: Dims) -> None:
        self.name, self.group = name, group
        self.tensors: dict[str, Dims] = {}
        self._plain: dict[Node, Node] = {}
        self._fused: dict[Node, Node] = {}

    def form(self, form: MatrixForm) -> MatrixForm:
        key, value = ((self.name,) if set(d) & set(self.group) else d for d in (form.key, form.value))
        return replace(form, key=key, value=value, events=tuple(map_event(e, self) for e in form.events))

    def exported(self, node: Node) -> Node:
        own = self.own(node.dims)
        if 1 < len(own) < len(self.group):
            raise NotFusable(node)
        self._prepare(node)
        return self._fused[node] if len(own) > 1 else self._plain[node]

    def __call__(self, node: Node) -> Node:
        """The expression with the fused dim in place of the group's; one without any of them stays."""
        self._prepare(node)
        return self._over_fused(node)

    def own(self, dims: Dims) -> Dims:
        """Which of the group's dims these are."""
        return tuple(d for d in dims if d in self.group)

    def dims(self, dims: Dims) -> Dims:
        return tuple(dict.fromkeys(self.name if d in self.group else d for d in dims))

    def part(self, dim: str) -> Node:
        """E[f, dim]."""
        at = self.group.index(dim)
        return select(self.name, dim, self.group[:at], self.group[at + 1 :])

    def _prepare(self, root: Node) -> None:
        for node in topological([root]):
            if len(self.own(node.dims)) > 1:
                self._fused.setdefault(node, self._fuse(node))
            else:
                self._plain.setdefault(node, self._keep(node))

    def _over_fused(self, node: Node) -> Node:
        """A prepared expression over the fused dim."""
        if node not in self._fused:
            own = self.own(node.dims)
            if node.op == "expand" and own:
                self._fused[node] = expand(self._over_fused(node.args[0]), self.dims(node.dims))
            else:
                self._fused[node] = contract(self._plain[node], self.part(own[0]), own) if own else self._plain[node]
        return self._fused[node]

    def _keep(self, node: Node) -> Node:
        if all(len(self.own(a.dims)) < 2 for a in node.args):
            return rebuild(node, tuple(self._plain[a] for a in node.args))
        return self._sum_up(node)

    def _fuse(self, node: Node) -> Node:
        if node.op == "leaf":
            return self._reshaped(node)
        args = [self._over_fused(a) for a in node.args]
        if node.op in OPERATORS:
            return apply(node.op, *args, attrs=node.attrs, span=node.span)
        if node.op == "expand":
            return expand(args[0], self.dims(node.dims))
        if node.op == "contract" and not self.own(node.attrs[0]):  # type: ignore[arg-type]
            return contract(args[0], args[1], node.attrs[0], node.span)  # type: ignore[arg-type]
        if node.op in ("sum", "amax") and not self.own(node.attrs[0]):  # type: ignore[arg-type]
            return reduce(node.op, args[0], node.attrs[0], span=node.span)  # type: ignore[arg-type]
        raise NotFusable(node)

    def _reshaped(self, node: Node) -> Node:
        if set(self.own(node.dims)) != set(self.group):
            raise NotFusable(node)
        kind, name = (str(a) for a in node.attrs)
        if kind != "readout":
            self.tensors[tensor_name(node)] = node.dims
        return leaf(kind, name, self.dims(node.dims), node.is_complex, node.span)

    def _sum_up(self, node: Node) -> Node:
        """A sum of products over all of the dims, or over all but one, which is then picked out again."""
        over: Dims = node.attrs[0] if node.op in ("contract", "sum") else ()  # type: ignore[assignment]
        left = self.own(node.dims)
        if set(self.own(over)) | set(left) != set(self.group):
            raise NotFusable(node)
        args = [self._over_fused(a) for a in node.args]
        inner = (self.name, *(d for d in over if d not in self.group))
        if left:
            return contract(args[0] if node.op == "sum" else mul(*args), self.part(left[0]), inner, node.span)
        if node.op == "sum":
            return reduce("sum", args[0], inner, node.span)
        return contract(args[0], args[1], inner, node.span)
