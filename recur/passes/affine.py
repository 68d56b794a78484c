"""Expressions that are affine in a state, as sums of products: the raw material of classification.

    term  =  sum over `over` of  factors_1 * factors_2 * ... * base       (base: the state at some version, or nothing)

Every linear operation of the language keeps this shape, so however a user spells an update, its terms come out alike.
Dimensions that are summed away get private names (`K'3`), so a factor never captures another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from recur.ir.core import (
    Node,
    apply,
    const,
    contract,
    div,
    expand,
    eye,
    index,
    is_const,
    mul,
    neg,
    reduce,
    rename,
    sub,
    topological,
    where,
)

MAX_TERMS = 200


class NotAffine(Exception):
    """The expression is not affine in the state: the offending node, and why in a few words."""

    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.node = node
        self.why = why


@dataclass(frozen=True)
class Term:
    """One product. ``dims``: the base's dims under the names that they have here; ``over``: the names summed away."""

    factors: tuple[Node, ...]
    base: Node | None = None
    dims: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    node: Node | None = None

    @property
    def free(self) -> set[str]:
        names = set(self.dims).union(*(f.dims for f in self.factors))
        return names - set(self.over)


# --- products ---------------------------------------------------------------------------------------------------------

MOST_FACTORS = 64  # of a product taken apart; one that squares a value again and again has 2^n
_FLATTEN = ("mul", "div", "neg", "contract", "expand", "rename", "index")


def flatten(node: Node) -> tuple[Node, ...]:
    """The factors of a product, signs and reciprocals as factors of their own: -x / y is (-1, x, 1 / y)."""
    done: dict[Node, tuple[Node, ...]] = {}
    stack = [node]
    while stack:
        top = stack[-1]
        is_product = top.op in _FLATTEN and not (top.op == "contract" and top.attrs[0]) and not _is_normalised(top)
        inner = () if not is_product else top.args[:1] if top.op == "div" else top.args
        missing = [a for a in inner if a not in done]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        factors = _factors(top, [done[a] for a in inner]) if is_product else (top,)
        done[top] = factors if len(factors) <= MOST_FACTORS else (top,)
    return tuple(f for f in done[node] if not is_const(f, 1.0))


def _is_normalised(node: Node) -> bool:
    """Whether a vector is scaled by a reduction of itself alone (l2norm, softmax): that stays one factor."""
    if node.op not in ("mul", "div"):
        return False
    pairs = [node.args] if node.op == "div" else [node.args, node.args[::-1]]
    for x, scale in pairs:
        missing = set(x.dims) - set(scale.dims)
        if not missing or not set(scale.dims) <= set(x.dims):
            continue
        inner = topological([scale])
        sources = {n for n in inner if n.op == "leaf"}
        reduced = {d for n in inner if n.op in ("sum", "amax", "contract") for d in n.attrs[0]}  # type: ignore[union-attr]
        if sources and missing <= reduced and sources <= {n for n in topological([x]) if n.op == "leaf"}:
            return True
    return False


def _factors(node: Node, parts: list[tuple[Node, ...]]) -> tuple[Node, ...]:
    joined = tuple(f for part in parts for f in part)
    if node.op == "neg":
        return (const(-1), *joined)
    if node.op == "div":
        return (*joined, reciprocal(node.args[1]))
    if node.op == "expand":
        return (*joined, *(ones(d) for d in node.dims if d not in node.args[0].dims))
    if node.op == "rename":
        return tuple(rename_factor(f, str(node.attrs[0]), str(node.attrs[1])) for f in joined)
    if node.op == "index":
        dim, i = str(node.attrs[0]), int(node.attrs[1])  # type: ignore[arg-type]
        return tuple(index_factor(f, dim, i) for f in joined)
    return joined


def reciprocal(node: Node) -> Node:
    return node.args[1] if node.op == "div" and is_const(node.args[0], 1.0) else div(const(1), node)


def ones(dim: str) -> Node:
    return expand(const(1), (dim,))


def _is_ones(node: Node) -> bool:
    return node.op == "expand" and is_const(node.args[0], 1.0)


def rename_factor(factor: Node, old: str, new: str) -> Node:
    if old == new or old not in factor.dims:
        return factor
    if factor.op == "eye":
        row, column = (new if d == old else d for d in factor.dims)
        return eye(row, column, factor.span)
    if _is_ones(factor):
        return expand(const(1), tuple(new if d == old else d for d in factor.dims))
    if factor.op == "rename":
        inner, (before, after) = factor.args[0], (str(a) for a in factor.attrs)
        if after == old:
            return rename_factor(inner, before, new)
        if new not in inner.dims and new != after:
            return rename(rename_factor(inner, old, new), before, after, factor.span)
    return rename(factor, old, new, factor.span)


def index_factor(factor: Node, dim: str, i: int) -> Node:
    if dim not in factor.dims:
        return factor
    if _is_ones(factor):
        left = tuple(d for d in factor.dims if d != dim)
        return expand(const(1), left) if left else const(1)
    if factor.op == "rename":
        before, after = (str(a) for a in factor.attrs)
        inner = index_factor(factor.args[0], before if after == dim else dim, i)
        return inner if after == dim else rename_factor(inner, before, after)
    return index(factor, dim, i, factor.span)


def multiply(factors: Iterable[Node]) -> Node:
    """The product in a canonical order: numbers, then by rank and text; divisors last; one sign in front."""
    from recur.ir.printing import format_node

    number = 1.0
    above: list[Node] = []
    below: list[Node] = []
    for factor in factors:
        if factor.op == "const":
            number *= float(factor.attrs[0])  # type: ignore[arg-type]
        elif factor.op == "div" and is_const(factor.args[0], 1.0):
            below.append(factor.args[1])
        else:
            above.append(factor)
    if number == 0:
        return const(0)
    covered = {d for f in above + below if not _is_ones(f) for d in f.dims}
    above = list(dict.fromkeys(f for f in above if _is_ones(f) and not set(f.dims) <= covered)) + [
        f for f in above if not _is_ones(f)
    ]
    result = const(abs(number))
    for factor in sorted(above, key=lambda f: (len(f.dims), f.op == "const", format_node(f), f.key)):
        result = mul(result, factor)
    for factor in sorted(below, key=lambda f: (len(f.dims), format_node(f), f.key)):
        result = div(result, factor)
    return neg(result) if number < 0 else result


def add_up(nodes: Iterable[Node]) -> Node:
    """The sum, a positive term first where there is one, subtracting the negative ones."""
    parts = [n for n in nodes if not is_const(n, 0.0)]
    if not parts:
        return const(0)
    lead = next((i for i, n in enumerate(parts) if n.op != "neg"), 0)
    result = parts.pop(lead)
    for node in parts:
        result = sub(result, node.args[0]) if node.op == "neg" else apply("add", result, node)
    return result


def contract_factors(factors: Iterable[Node], over: Iterable[str]) -> tuple[Node, ...]:
    """Factors of  sum over `over` of the product: each connected group of factors becomes one node."""
    rest = list(factors)
    for name in list(dict.fromkeys(over)):
        if not any(name in f.dims for f in rest):
            continue
        group = [f for f in rest if name in f.dims]
        rest = [f for f in rest if name not in f.dims]
        identity = next((f for f in group if f.op == "eye"), None)
        if identity is not None and len(group) > 1:
            group.remove(identity)
            kept = next(d for d in identity.dims if d != name)
            rest += [rename_factor(f, name, kept) for f in group]
            continue
        group.sort(key=lambda f: len(f.dims))
        *others, last = group
        if _is_ones(last) and others:
            rest.append(reduce("sum", multiply(others), (name,)))
        elif others:
            rest.append(contract(multiply(others), last, (name,)))
        else:
            rest.append(reduce("sum", last, (name,)))
    return tuple(f for factor in rest for f in flatten(factor))


def summands(node: Node) -> list[tuple[Node, ...]]:
    """A sum written out: the factors of each summand of the node, products distributed over sums."""
    done: dict[Node, list[tuple[Node, ...]]] = {}
    stack = [node]
    while stack:
        top = stack[-1]
        inner = _inner_sums(top)
        missing = [n for n in inner if n not in done]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        done[top] = _summands(top, inner, done)
        if len(done[top]) > MAX_TERMS:
            raise NotAffine(top, "has too many terms when written out")
    return done[node]


def _inner_sums(node: Node) -> tuple[Node, ...]:
    """The nodes whose summands make up the node's."""
    if node.op in ("add", "sub"):
        return node.args
    if node.op == "rename" and node.args[0].op in ("add", "sub"):
        return node.args
    factors = flatten(node)
    return () if factors == (node,) else factors


def _summands(
    node: Node, inner: tuple[Node, ...], done: dict[Node, list[tuple[Node, ...]]]
) -> list[tuple[Node, ...]]:
    if not inner:
        return [flatten(node)]
    if node.op in ("add", "sub"):
        signs = ((), (const(-1),) if node.op == "sub" else ())
        return [
            (*sign, *part, *(ones(d) for d in node.dims if d not in side.dims))
            for sign, side in zip(signs, inner, strict=True)
            for part in done[side]
        ]
    if node.op == "rename" and inner == node.args:
        old, new = str(node.attrs[0]), str(node.attrs[1])
        return [tuple(rename_factor(f, old, new) for f in part) for part in done[inner[0]]]
    products: list[tuple[Node, ...]] = [()]
    for factor in inner:
        products = [(*p, *part) for p in products for part in done[factor]]
        if len(products) > MAX_TERMS:
            raise NotAffine(node, "has too many terms when written out")
    return products


def unroll(factors: tuple[Node, ...], name: str, size: int) -> list[tuple[Node, ...]]:
    """The products of a sum over a dim of fixed size."""
    return [tuple(index_factor(f, name, i) for f in factors) for i in range(size)]


# --- terms --------------------------------------------------------------------------------------------------------


class Expander:
    """Writes nodes out as terms. ``bases``: the nodes that terms may be linear in (a state's leaf and versions)."""

    def __init__(self, bases: Iterable[Node]) -> None:
        self.bases = set(bases)
        self._known: dict[Node, tuple[Term, ...]] = {}
        self._depends: dict[Node, bool] = {}
        self._fresh = 0

    def depends(self, node: Node) -> bool:
        """Whether the node's value depends on a base."""
        if node not in self._depends:
            for n in topological([node], self._depends):
                if n not in self._depends:
                    self._depends[n] = n in self.bases or any(self._depends[a] for a in n.args)
        return self._depends[node]

    def expand(self, root: Node) -> tuple[Term, ...]:
        """The root's terms; raises NotAffine."""
        for node in self._order(root):
            if node not in self._known:
                terms = self._expand(node)
                if len(terms) > MAX_TERMS:
                    raise NotAffine(node, "has too many terms when written out")
                self._known[node] = tuple(terms)
        return self._known[root]

    def _order(self, root: Node) -> list[Node]:
        """What must be written out for the root, arguments first, not looking beneath bases."""
        order: list[Node] = []
        seen: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                if node not in self.bases and self.depends(node):
                    stack.extend((a, False) for a in reversed(node.args))
        return order

    def _expand(self, node: Node) -> list[Term]:
        if node in self.bases:
            return [Term((), node, node.dims, (), node)]
        if not self.depends(node):
            return [Term(flatten(node), node=node)]
        rule = _RULES.get(node.op)
        if rule is None:
            raise NotAffine(node, f"applies {node.op} to the state")
        return rule(self, node)

    def of(self, node: Node) -> list[Term]:
        return list(self._known[node])

    def fresh(self, dim: str) -> str:
        self._fresh += 1
        return f"{dim.split(chr(39))[0]}'{self._fresh}"


def _rename_term(term: Term, renames: Mapping[str, str]) -> Term:
    factors = list(term.factors)
    for old, new in renames.items():
        factors = [rename_factor(f, old, new) for f in factors]
    return replace(
        term,
        factors=tuple(factors),
        dims=tuple(renames.get(d, d) for d in term.dims),
        over=tuple(renames.get(d, d) for d in term.over),
    )


def _broaden(term: Term, dims: tuple[str, ...]) -> Term:
    free = term.free
    return replace(term, factors=term.factors + tuple(ones(d) for d in dims if d not in free))


def _sum_over(self: Expander, term: Term, over: tuple[str, ...], node: Node) -> Term:
    """The term summed over dims: those that touch the base get private names, the others are contracted at once."""
    renames = {d: self.fresh(d) for d in over if _touches(term, d)}
    factors = contract_factors(term.factors, [d for d in over if d not in renames])
    renamed = _rename_term(replace(term, factors=factors), renames)
    return simplify_eye(replace(renamed, over=renamed.over + tuple(renames.values()), node=node))


def _touches(term: Term, dim: str) -> bool:
    """Whether a sum over ``dim`` involves the base: directly, or through factors that also hold summed base dims."""
    if term.base is None:
        return False
    return dim in term.dims or any(dim in f.dims and set(f.dims) & set(term.over) for f in term.factors)


def simplify_eye(term: Term) -> Term:
    """sum over J of eye(K, J) x[J] is x[K]."""
    for factor in term.factors:
        if factor.op != "eye":
            continue
        row, column = factor.dims
        for gone, kept in ((row, column), (column, row)):
            if gone in term.over:
                left = list(term.factors)
                left.remove(factor)
                over = tuple(d for d in term.over if d != gone)
                return simplify_eye(_rename_term(replace(term, factors=tuple(left), over=over), {gone: kept}))
    return term


def _rule_same(self: Expander, node: Node) -> list[Term]:
    return self.of(node.args[0])


def _rule_sum(self: Expander, node: Node) -> list[Term]:
    left, right = ([_broaden(t, node.dims) for t in self.of(a)] for a in node.args)
    return left + (right if node.op == "add" else [_scale(t, (const(-1),)) for t in right])


def _scale(term: Term, factors: tuple[Node, ...], node: Node | None = None) -> Term:
    return replace(term, factors=factors + term.factors, node=node or term.node)


def _rule_neg(self: Expander, node: Node) -> list[Term]:
    return [_scale(t, (const(-1),)) for t in self.of(node.args[0])]


def _rule_product(self: Expander, node: Node) -> list[Term]:
    x, y = node.args
    if self.depends(x) and self.depends(y):
        raise NotAffine(node, "multiplies the state by a value that depends on it")
    free, bound = (y, x) if self.depends(x) else (x, y)
    factors = flatten(free)
    return [_scale(t, factors, node) for t in self.of(bound)]


def _rule_div(self: Expander, node: Node) -> list[Term]:
    x, y = node.args
    if self.depends(y):
        raise NotAffine(node, "divides by a value that depends on the state")
    return [_scale(t, (reciprocal(y),), node) for t in self.of(x)]


def _rule_contract(self: Expander, node: Node) -> list[Term]:
    over = node.attrs[0]
    assert isinstance(over, tuple)
    return [_sum_over(self, t, over, node) for t in _rule_product(self, node)]


def _rule_reduce(self: Expander, node: Node) -> list[Term]:
    over = node.attrs[0]
    assert isinstance(over, tuple)
    return [_sum_over(self, t, over, node) for t in self.of(node.args[0])]


def _rule_expand(self: Expander, node: Node) -> list[Term]:
    return [_broaden(t, node.dims) for t in self.of(node.args[0])]


def _rule_rename(self: Expander, node: Node) -> list[Term]:
    return [_rename_term(t, {str(node.attrs[0]): str(node.attrs[1])}) for t in self.of(node.args[0])]


def _rule_index(self: Expander, node: Node) -> list[Term]:
    dim, i = str(node.attrs[0]), int(node.attrs[1])  # type: ignore[arg-type]
    terms = self.of(node.args[0])
    if any(dim in t.dims for t in terms):
        raise NotAffine(node, "picks single entries of the state")
    return [replace(t, factors=tuple(index_factor(f, dim, i) for f in t.factors)) for t in terms]


def _rule_hadamard(self: Expander, node: Node) -> list[Term]:
    dim = str(node.attrs[0])
    result = []
    for term in self.of(node.args[0]):
        inner = self.fresh(dim)
        moved = _rename_term(term, {dim: inner})
        matrix = Node("hadamard", (eye(dim, inner),), (dim, inner), (dim,), False, node.span)
        if term.base is None or not _touches(term, dim):
            held = [f for f in moved.factors if inner in f.dims]
            rest = tuple(f for f in moved.factors if inner not in f.dims)
            whole = rename_factor(multiply(held), inner, dim) if held else ones(dim)
            factors = (*rest, Node("hadamard", (whole,), whole.dims, (dim,), whole.is_complex, node.span))
            result.append(replace(term, factors=factors, node=node))
        else:
            result.append(replace(moved, factors=(matrix, *moved.factors), over=(*moved.over, inner), node=node))
    return result


def _rule_where(self: Expander, node: Node) -> list[Term]:
    """where(c, x, y): coefficients of the bare state are chosen between; every other term is masked."""
    condition, x, y = node.args
    if self.depends(condition):
        raise NotAffine(node, "compares a value that depends on the state")
    sides = [[_broaden(t, node.dims) for t in self.of(a)] for a in (x, y)]
    result: list[Term] = []
    bare = [[t for t in side if not t.over] for side in sides]
    for key in dict.fromkeys((t.base, t.dims) for side in bare for t in side):
        chosen = [[multiply(t.factors) for t in side if (t.base, t.dims) == key] for side in bare]
        if key[0] is None and (sum(map(len, chosen)) != 2 or not all(chosen)):
            result += [_masked(t, condition, i == 0) for i, side in enumerate(bare) for t in side if t.base is None]
        else:
            factor = where(condition, add_up(chosen[0]), add_up(chosen[1]))
            result.append(Term((factor,), key[0], key[1], (), node))
    result += [_masked(t, condition, i == 0) for i, side in enumerate(sides) for t in side if t.over]
    return [_broaden(t, node.dims) for t in result]


def _masked(term: Term, condition: Node, keep: bool) -> Term:
    one, zero = const(1), const(0)
    return _scale(term, (where(condition, one, zero) if keep else where(condition, zero, one),))


_RULES = {
    "add": _rule_sum,
    "sub": _rule_sum,
    "neg": _rule_neg,
    "mul": _rule_product,
    "div": _rule_div,
    "contract": _rule_contract,
    "sum": _rule_reduce,
    "expand": _rule_expand,
    "rename": _rule_rename,
    "index": _rule_index,
    "hadamard": _rule_hadamard,
    "where": _rule_where,
    "version": _rule_same,
}


def ordered(dims: Iterable[str], order: tuple[str, ...]) -> tuple[str, ...]:
    """The dims in the order in which ``order`` has them."""
    names = set(dims)
    return tuple(d for d in order if d in names)
