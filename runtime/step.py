"""The reference's interpreter: one token of the syntax tree, on tensors with named dimensions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recur.ir.spec import Assign, Binary, Call, Expr, For, Index, Name, Number, Output, Recurrence, Statement, Unary
from recur.runtime import named, scaled
from recur.runtime.named import Dims, Named
from recur.runtime.scaled import Value, materialise

Operand = Named | float | int


def plain(function: Callable[[Tensor], Tensor]) -> Callable[[Value], Value]:
    """A function of plain tensors."""
    return lambda x: function(materialise(x))


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "exp": plain(torch.exp),
    "expm1": plain(torch.expm1),
    "log": scaled.log,
    "log1p": plain(torch.log1p),
    "sigmoid": plain(torch.sigmoid),
    "logsigmoid": plain(F.logsigmoid),
    "softplus": plain(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "tanh": plain(torch.tanh),
    "relu": scaled.mantissawise(torch.relu),
    "elu": plain(F.elu),
    "silu": plain(F.silu),
    "gelu": plain(F.gelu),
    "sqrt": scaled.sqrt,
    "rsqrt": scaled.rsqrt,
    "abs": scaled.mantissawise(torch.abs),
    "sign": plain(torch.sign),
    "sin": plain(torch.sin),
    "cos": plain(torch.cos),
    "square": scaled.square,
    "real": scaled.mantissawise(lambda x: x.real if x.is_complex() else x),
    "imag": scaled.mantissawise(lambda x: x.imag if x.is_complex() else torch.zeros_like(x)),
    "conj": scaled.mantissawise(lambda x: torch.conj(x).resolve_conj()),
}
SCALED_FUNCTIONS = FUNCTIONS | {"exp": scaled.exp, "sigmoid": scaled.sigmoid}

REDUCTIONS: dict[str, Callable[[Value, int], Value]] = {
    "sum": scaled.total,
    "mean": named.mean,
    "amax": scaled.largest,
    "norm": named.norm,
}
NORMALISATIONS: dict[str, Callable[[Value, int], Value]] = {"l2norm": scaled.total, "rmsnorm": named.mean}

ARITHMETIC = {"+": scaled.add, "-": scaled.subtract, "*": scaled.multiply, "/": scaled.divide}
ON_NUMBERS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow,
}  # fmt: skip
COMPLEX = frozenset(
    ["exp", "square", "sum", "mean", "where", "outer", "rename", "hadamard", "abs", "norm", "real", "imag", "conj"]
)  # the functions that take complex values

COMPARISONS = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne}


@dataclass
class Step:
    """Interprets a recurrence's statements for one token.

    names: the values of inputs, params, states, locals and ``prev.x`` (updated in place by ``run``).
    scales: evaluate exponentials as scaled numbers (see scaled.py).
    term_by_term: contractions as products and sums, where every derivative has to be guarded.
    """

    rec: Recurrence
    dims: Dims
    like: Tensor
    scales: bool = False
    term_by_term: bool = False
    names: dict[str, Named] = field(default_factory=dict)
    outputs: dict[str, Named] = field(default_factory=dict)
    _loops: dict[str, tuple[str, int]] = field(default_factory=dict)

    def run(self, statements: tuple[Statement, ...]) -> None:
        for statement in statements:
            if isinstance(statement, For):
                for position in range(self.dims.sizes[statement.dim]):
                    self._loops[statement.variable] = (statement.dim, position)
                    self.run(statement.body)
                del self._loops[statement.variable]
            elif isinstance(statement, Output):
                value = self._named(statement.value)
                dims = statement.dims
                self.outputs[statement.name] = (
                    value if dims is None else named.assigned(value, dims, self.dims, statement.name)
                )
            else:
                self._assign(statement)

    def _assign(self, statement: Assign) -> None:
        result, dims = self._evaluate(statement.value), statement.dims
        value = self._lifted(result)
        state = next((s for s in self.rec.states if s.name == statement.target), None)
        if state is not None:
            dims = state.dims
            if not state.is_complex:
                self._check_real(f"the real state {state.name}", value)
            value = Named(scaled.normalise(value.value), value.dims)
        elif dims is not None and not isinstance(result, Named):  # a constant fills a local's stated dims
            value = Named(self.like.new_full((1, 1, *(self.dims.sizes[d] for d in dims)), result), dims)
        if dims is not None:
            value = named.assigned(value, dims, self.dims, statement.target)
        self.names[statement.target] = value

    # --- expressions -------------------------------------------------------------------------------------------------

    def _evaluate(self, expr: Expr) -> Operand:
        if isinstance(expr, Number):
            return expr.value
        if isinstance(expr, Name):
            return self._name(expr.id)
        if isinstance(expr, Unary):
            operand = self._evaluate(expr.operand)
            if expr.op == "+":
                return operand
            return Named(scaled.negative(operand.value), operand.dims) if isinstance(operand, Named) else -operand
        if isinstance(expr, Binary):
            return self._binary(expr)
        if isinstance(expr, Index):
            return self._index(expr)
        return self._call(expr)

    def _name(self, name: str) -> Operand:
        if name in self._loops:
            return self._loops[name][1]
        if name in self.dims.sizes:
            return self.dims.sizes[name]
        if name not in self.names:
            raise ValueError(f"{self.rec.name}: {name} has no value here")
        return self.names[name]

    def _named(self, expr: Expr) -> Named:
        """The expression's value, a number as a tensor without dimensions."""
        return self._lifted(self._evaluate(expr))

    def _lifted(self, value: Operand) -> Named:
        return value if isinstance(value, Named) else Named(self.like.new_tensor(value).reshape(1, 1))

    def _binary(self, expr: Binary) -> Operand:
        left, right = self._evaluate(expr.left), self._evaluate(expr.right)
        if not isinstance(left, Named) and not isinstance(right, Named) and expr.op in ON_NUMBERS:
            return ON_NUMBERS[expr.op](left, right)
        if expr.op == "**":
            if isinstance(right, Named) or not isinstance(left, Named):
                raise ValueError(f"{self.rec.name}: the exponent of ** must be a constant")
            return Named(scaled.power(left.value, right), left.dims)
        a, b = self._lifted(left), self._lifted(right)
        if expr.op == "@":
            return named.contract(a, b, self.term_by_term)
        if expr.op in ("*", "/"):
            return named.multiplicative(ARITHMETIC[expr.op], a, b)
        if expr.op in COMPARISONS:
            self._check_real(expr.op, a, b)
            test = COMPARISONS[expr.op]
            return named.additive(lambda x, y: scaled.compare(test, x, y), a, b, expr.op)
        return named.additive(ARITHMETIC[expr.op], a, b, expr.op)

    def _index(self, expr: Index) -> Named:
        base = self._named(expr.base)
        if isinstance(expr.index, Name) and expr.index.id in self._loops:
            dim, position = self._loops[expr.index.id]
        else:
            fixed = [name for name in base.dims if name in self.dims.fixed]
            if len(fixed) != 1:
                raise ValueError(f"{self.rec.name}: an index needs exactly one fixed dimension, found {fixed}")
            dim, position = fixed[0], int(self._evaluate(expr.index))  # type: ignore[arg-type]
        if dim not in base.dims:
            raise ValueError(f"{self.rec.name}: the indexed value has no dimension {dim}")
        return named.pick(base, dim, position)

    def _call(self, expr: Call) -> Named:
        function, args = expr.function, expr.args
        if function == "prev":
            return self.names[f"prev.{_id(args[0])}"]
        if function == "eye":
            return named.eye(_id(args[0]), _id(args[1]), self.dims, self.like)
        x = self._named(args[0])
        if function not in COMPLEX:
            self._check_real(function, x)
        if function in FUNCTIONS:
            table = SCALED_FUNCTIONS if self.scales else FUNCTIONS
            return Named(table[function](x.value), x.dims)
        if function == "rename":
            return self._renamed(x, _id(args[1]), _id(args[2]))
        if function in ("outer", "max", "min", "polar", "complex"):
            return self._of_two(function, x, self._named(args[1]))
        if function == "where":
            a, b = self._named(args[1]), self._named(args[2])
            named.check_same_names(a, b, "where")
            return named.multiplicative(scaled.select, x, a, b)
        return self._along(function, x, args[1:])

    def _renamed(self, x: Named, old: str, new: str) -> Named:
        if self.dims.roots[old] != self.dims.roots[new]:
            raise ValueError(f"rename: {new} is not another name of {old}'s size")
        return named.rename(x, old, new)

    def _check_real(self, what: str, *operands: Named) -> None:
        if any(named.is_complex(x.value) for x in operands):
            raise ValueError(f"{self.rec.name}: {what} takes real values, and this is complex")

    def _of_two(self, function: str, x: Named, y: Named) -> Named:
        if function == "outer":
            return named.outer(x, y, self.dims)
        self._check_real(function, y)
        if function == "polar":
            return named.multiplicative(_polar, x, y)
        operation = {"max": scaled.maximum, "min": scaled.minimum, "complex": _complex}[function]
        return named.additive(operation, x, y, function)

    def _along(self, function: str, x: Named, args: tuple[Expr, ...]) -> Named:
        """The functions along a dimension: ``f(x)``, ``f(x, K)``, and for the normalisations ``f(x, K, epsilon)``."""
        over = [a.id for a in args if isinstance(a, Name) and a.id in self.dims.sizes]
        dim = over[0] if over else named.only_dim(x, function)
        if function in REDUCTIONS:
            return named.reduce(REDUCTIONS[function], x, dim, function)
        if function in NORMALISATIONS:
            epsilon = [self._evaluate(a) for a in args[len(over) :]]
            value = float(epsilon[0]) if epsilon else 1e-6  # type: ignore[arg-type]
            return named.normalised(NORMALISATIONS[function], x, dim, value, function)
        if function == "softmax":
            return named.softmax(x, dim)
        if function == "hadamard":
            return named.hadamard(x, dim, self.dims.sizes[dim])
        raise ValueError(f"{self.rec.name}: unknown function {function}")


def _complex(re: Value, im: Value) -> Value:
    real, imaginary = torch.broadcast_tensors(materialise(re), materialise(im))
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _polar(r: Value, theta: Value) -> Value:
    theta = materialise(theta)
    return scaled.multiply(r, torch.complex(torch.cos(theta), torch.sin(theta)))


def _id(expr: Expr) -> str:
    if not isinstance(expr, Name):
        raise ValueError(f"expected a name, found {expr}")
    return expr.id


def expressions(node: Statement | Expr) -> Iterator[Expr]:
    """Every expression under a node, outermost first."""
    if isinstance(node, For):
        for statement in node.body:
            yield from expressions(statement)
        return
    if isinstance(node, (Assign, Output)):
        yield from expressions(node.value)
        return
    yield node
    children: tuple[Expr, ...] = ()
    if isinstance(node, Unary):
        children = (node.operand,)
    elif isinstance(node, Binary):
        children = (node.left, node.right)
    elif isinstance(node, Index):
        children = (node.base, node.index)
    elif isinstance(node, Call):
        children = node.args
    for child in children:
        yield from expressions(child)


class NoGradientNoEffect(TorchFunctionMode):
    """A zero cotangent stays zero, whatever the derivative: 0 * inf is 0.

    ``where`` differentiates the branch taken; without this, sqrt'(0) in the other branch makes the gradient NaN.
    """

    _GUARDED = frozenset([
        "mul", "__mul__", "__rmul__", "div", "__truediv__", "__rtruediv__", "pow", "__pow__", "square", "exp", "expm1",
        "log", "log1p", "sqrt", "rsqrt", "logaddexp", "sigmoid", "tanh", "elu", "silu", "gelu", "sin", "cos", "abs",
    ])  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        tensors = [a for a in args if isinstance(a, Tensor)]
        if func.__name__ not in self._GUARDED or not any(t.requires_grad for t in tensors):
            return func(*args, **kwargs)
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        guarded = [a.expand(shape) if isinstance(a, Tensor) else a for a in args]
        result = func(*guarded, **kwargs)
        guard = _Guard()
        result.register_hook(guard.note)
        for t in guarded:
            if isinstance(t, Tensor) and t.requires_grad:
                t.register_hook(guard.clear)
        return result


class _Guard:
    """Notes where a result's cotangent is zero, and clears its operands' there. Autograd may pass None for zero."""

    def __init__(self) -> None:
        self.zero: Tensor | None = None

    def note(self, cotangent: Tensor | None) -> None:
        self.zero = None if cotangent is None else cotangent == 0

    def clear(self, cotangent: Tensor | None) -> Tensor | None:
        if cotangent is None or self.zero is None:
            return None
        return torch.where(self.zero, torch.zeros_like(cotangent), cotangent)
