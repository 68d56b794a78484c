"""Aligned dims as heads: a state S[N, K, V] with a key and a value for each n is N memories side by side.

Chunk kernels see H * N heads and no N: what has N is the same memory under another shape, what lacks it is repeated.
Sums over N, or results without it, would join heads, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from recur.ir.core import Node, apply, contract, expand, index, leaf, place, reduce, rename, topological
from recur.ir.normal import MatrixForm, map_event
from recur.ir.printing import format_node
from recur.operators import OPERATORS
from recur.strategies.chunk.epilogue import Epilogue
from recur.strategies.operands import TENSOR_KINDS, tensor_name

Dims = tuple[str, ...]


class NotFoldable(Exception):
    """An expression that joins the entries of an aligned dim."""

    def __init__(self, node: Node) -> None:
        super().__init__(f"{format_node(node, 60)} joins its entries")


@dataclass
class Folding:
    """Rewrites a stage without ``batch`` dims; ``tensors``: all tensors of the stage with the caller's dims."""

    batch: Dims
    tensors: dict[str, Dims] = field(default_factory=dict)
    _known: dict[Node, Node] = field(default_factory=dict)

    def stage(self, forms: tuple[MatrixForm, ...], epilogue: Epilogue) -> tuple[tuple[MatrixForm, ...], Epilogue]:
        """The stage without the dims; forms whose aligned dims are others keep theirs. Raises NotFoldable."""
        if not self.batch:
            return forms, epilogue
        epilogue = self.epilogue(epilogue)
        return tuple(self.form(f) if f.batch == self.batch else f for f in forms), epilogue

    def form(self, form: MatrixForm) -> MatrixForm:
        return replace(form, batch=(), events=tuple(map_event(e, self.folded) for e in form.events))

    def epilogue(self, epilogue: Epilogue) -> Epilogue:
        for name, node in epilogue:
            if not set(self.batch) <= set(node.dims):
                raise NotFoldable(node)
            self.tensors[name] = node.dims
        return tuple((name, self.folded(node)) for name, node in epilogue)

    def dims(self, dims: Dims) -> Dims:
        return tuple(d for d in dims if d not in self.batch)

    def folded(self, root: Node) -> Node:
        for node in topological([root], self._known):
            if node not in self._known:
                self._known[node] = self._without(node, [self._known[a] for a in node.args])
        return self._known[root]

    def _without(self, node: Node, args: list[Node]) -> Node:
        attrs, op = node.attrs, node.op
        if op == "leaf":
            if attrs[0] in TENSOR_KINDS:
                self.tensors[tensor_name(node)] = node.dims
            return leaf(str(attrs[0]), str(attrs[1]), self.dims(node.dims), node.is_complex, node.span)
        if op in OPERATORS:
            return apply(op, *args, attrs=attrs, span=node.span)
        if op == "expand":
            return expand(args[0], self.dims(node.dims))
        used = {d for a in attrs for d in (a if isinstance(a, tuple) else (a,))}
        if used & set(self.batch):
            raise NotFoldable(node)
        match op:
            case "contract":
                return contract(args[0], args[1], attrs[0], node.span)  # type: ignore[arg-type]
            case "sum" | "amax":
                return reduce(op, args[0], attrs[0], node.span)  # type: ignore[arg-type]
            case "rename":
                return rename(args[0], str(attrs[0]), str(attrs[1]), node.span)
            case "index":
                return index(args[0], str(attrs[0]), int(attrs[1]), node.span)  # type: ignore[arg-type]
            case "place":
                return place(args[0], str(attrs[0]), int(attrs[1]))  # type: ignore[arg-type]
        return replace(node, args=tuple(args), dims=self.dims(node.dims))
