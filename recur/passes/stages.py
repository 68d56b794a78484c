"""A step's states in order: which depend on which, what is decided together, and what crosses from stage to stage.

States that depend on one another form one stage. A state whose update, or whose readout's vector, uses another state's
value belongs to a later stage; the value crosses as a `value` leaf, one per token, cut where it is smallest (at a
contraction). Independent states that an output combines share a stage where their forms agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recur.ir.core import Node, Step, leaf, rebuild, topological
from recur.ir.normal import ElementwiseForm, Form, MatrixForm, NormalForm, Stage
from recur.passes.affine import NotAffine
from recur.passes.classify import classify_stage, matrix_stage
from recur.passes.decay import Ranges
from recur.passes.updates import NotThisForm, collect_update

Dependencies = dict[Node, frozenset[str]]


def infer_stages(step: Step) -> tuple[Stage, ...]:
    """The step's stages in order."""
    dependencies = _dependencies(step)
    edges = _edges(step, dependencies)
    levels = _levels(tuple(s for s, _ in step.updates), edges)
    groups = [group for level in levels for group in level]
    if any(len(level) > 1 for level in levels):
        alone = cut_stages(step, groups, dependencies)
        groups = _merge_levels(step, levels, alone, dependencies)
    return cut_stages(step, groups, dependencies)


# --- the dependency graph -----------------------------------------------------------------------------------------


def _dependencies(step: Step) -> Dependencies:
    """For each node, the states on whose value it depends."""
    result: Dependencies = {}
    for node in topological([n for _, n in (*step.updates, *step.outputs)]):
        if node.op == "leaf" and node.attrs[0] == "state":
            result[node] = frozenset((str(node.attrs[1]),))
        else:
            result[node] = frozenset(s for a in node.args for s in result[a])
            if node.op == "version":
                result[node] |= {str(node.attrs[0])}
    return result


def _edges(step: Step, dependencies: Dependencies) -> set[tuple[str, str]]:
    """Pairs (earlier, later). A state is later than the vector that contracts it, unless that makes a cycle."""
    edges = {(a, b) for b, node in step.updates for a in sorted(dependencies[node]) if a != b}
    for a, b in _reading_edges(step, dependencies):
        if not _reaches(edges, b, a):
            edges.add((a, b))
    return edges


def _reaches(edges: set[tuple[str, str]], start: str, goal: str) -> bool:
    reached, stack = {start}, [start]
    while stack:
        node = stack.pop()
        following = [b for a, b in sorted(edges) if a == node and b not in reached]
        reached.update(following)
        stack.extend(following)
    return goal in reached


def _reading_edges(step: Step, dependencies: Dependencies) -> list[tuple[str, str]]:
    """For every contraction of a state by a value that depends on others: (other, state).

    ``raw`` follows a state up to where it is contracted, with the states that its coefficients on the way depend on.
    """
    dims = {v.name: v.dims for v in step.recurrence.states}
    raw: dict[Node, dict[str, frozenset[str]]] = {}
    edges: dict[tuple[str, str], None] = {}
    for node in topological([n for _, n in (*step.updates, *step.outputs)]):
        if node.op == "version" or node.op == "leaf":
            is_state = node.op == "version" or node.attrs[0] == "state"
            raw[node] = {str(node.attrs[0 if node.op == "version" else 1]): frozenset()} if is_state else {}
            continue
        found: dict[str, frozenset[str]] = {}
        over = node.attrs[0] if node.op in ("contract", "sum") else ()
        assert isinstance(over, tuple)
        for arg in node.args:
            beside = frozenset(
                s for other in node.args if other is not arg for s in dependencies[other]
                if node.op in ("contract", "mul", "div")
            )
            for state, coefficients in raw[arg].items():
                users = coefficients | beside
                if set(over) & set(arg.dims) and len(dims[state]) > 1:
                    edges.update(dict.fromkeys((s, state) for s in sorted(users) if s != state))
                else:
                    found[state] = found.get(state, frozenset()) | users
        raw[node] = found
    return list(edges)


def _levels(states: tuple[str, ...], edges: set[tuple[str, str]]) -> list[list[tuple[str, ...]]]:
    """Strongly connected components, by the length of the longest path that leads to them."""
    reach = {s: [t for t in states if _reaches(edges, s, t)] for s in states}
    component = {s: tuple(t for t in states if t in reach[s] and s in reach[t]) for s in states}
    groups = list(dict.fromkeys(component[s] for s in states))
    level: dict[tuple[str, ...], int] = {}
    while len(level) < len(groups):
        for group in groups:
            before = {component[a] for a, b in edges if b in group and a not in group}
            if group not in level and all(g in level for g in before):
                level[group] = 1 + max((level[g] for g in before), default=-1)
    return [[g for g in groups if level[g] == i] for i in range(max(level.values()) + 1)]


# --- states that are decided together ---------------------------------------------------------------------------------


def _merge_levels(
    step: Step, levels: list[list[tuple[str, ...]]], alone: tuple[Stage, ...], dependencies: Dependencies
) -> list[tuple[str, ...]]:
    """Joins states of one level that an output or a later update combines and whose forms agree."""
    stages = {stage.states: stage for stage in alone}
    normal = {states: classify_stage(stage, step.recurrence) for states, stage in stages.items()}
    used_together = [dependencies[n] for _, n in (*step.outputs, *step.updates)]
    result: list[tuple[str, ...]] = []
    for level in levels:
        joined: list[tuple[str, ...]] = []
        for group in level:
            for i, other in enumerate(joined):
                combined = any(set(group) <= used and set(other) <= used for used in used_together)
                first = next(g for g in level if set(g) <= set(other))
                if combined and _agree(step, normal[first], normal[group]):
                    joined[i] = other + group
                    break
            else:
                joined.append(group)
        result += joined
    return result


def _agree(step: Step, first: NormalForm, second: NormalForm) -> bool:
    if len(first.forms) > 1 or len(second.forms) > 1:
        return False
    x, y = first.forms[0], second.forms[0]
    if isinstance(x, ElementwiseForm) and isinstance(y, ElementwiseForm):
        return set(x.dims) <= set(y.dims) or set(y.dims) <= set(x.dims)
    x, y = _as_matrix(step, first), _as_matrix(step, second)
    if not isinstance(x, MatrixForm) or not isinstance(y, MatrixForm):
        return False
    x, y = _as_normaliser(x, y), _as_normaliser(y, x)
    same = (x.key, x.batch, x.decays) == (y.key, y.batch, y.decays)
    columns = x.value == y.value or not x.value or not y.value  # a normaliser is one more column
    return same and columns and not x.reads and not y.reads


def _as_normaliser(form: MatrixForm, other: MatrixForm) -> MatrixForm:
    """The form with all of its dims as key dims, where those are the other's key dims: one more column beside it."""
    whole = form.key + form.value
    if not form.value or set(whole) != set(other.key) or form.reads or len(form.decays) > 1:
        return form
    if any(r.axis == "value" for r in form.readouts) or any(d.factor.dims for d in form.decays):
        return form
    return replace(form, key=other.key, value=())


def _as_matrix(step: Step, normal: NormalForm) -> Form:
    """The form, a vector state's as a matrix without value dims where it can be."""
    form = normal.forms[0]
    if not isinstance(form, ElementwiseForm):
        return form
    updates = [collect_update(normal.stage, form.state, step.recurrence)]
    try:
        return matrix_stage(normal.stage, updates, Ranges(step.recurrence), vectors=True).forms[0]
    except (NotThisForm, NotAffine):
        return form


# --- cutting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    cost: int
    nodes: tuple[Node, ...]


def cut_stages(step: Step, groups: Sequence[tuple[str, ...]], dependencies: Dependencies) -> tuple[Stage, ...]:
    """Stages for the groups, from the last to the first: what a stage needs of earlier ones becomes their export."""
    number = {state: i for i, group in enumerate(groups) for state in group}
    updates = dict(step.updates)
    names = _Names(step)
    exports: list[list[tuple[str, Node]]] = [[] for _ in groups]
    for name, node in step.outputs:
        exports[max((number[s] for s in dependencies[node]), default=len(groups) - 1)].append((name, node))
    stages: list[Stage] = []
    for i in reversed(range(len(groups))):
        roots = [updates[s] for s in groups[i]] + [node for _, node in exports[i]]
        crossing = _crossing(roots, set(groups[i]), dependencies, step)
        replaced: dict[Node, Node] = {}
        for node in crossing:
            home = max(number[s] for s in dependencies[node])
            found = [n for n, e in exports[home] if e == node]
            name = found[0] if found else names.new(groups[home])
            if not found:
                exports[home].append((name, node))
            replaced[node] = leaf("value", name, node.dims, node.is_complex, node.span)
        new = _replace(roots, replaced)
        count = len(groups[i])
        stages.append(
            Stage(
                "_".join(groups[i]),
                groups[i],
                tuple(zip(groups[i], new[:count], strict=True)),
                tuple((name, node) for (name, _), node in zip(exports[i], new[count:], strict=True)),
            )
        )
    return tuple(reversed(stages))


class _Names:
    """Names for values that cross: those of their states, numbered."""

    def __init__(self, step: Step) -> None:
        recurrence = step.recurrence
        self._taken = {v.name for v in recurrence.variables} | {name for name, _ in step.outputs}

    def new(self, states: tuple[str, ...]) -> str:
        stem, i = "_".join(states), 0
        while f"{stem}_value{i}" in self._taken:
            i += 1
        self._taken.add(f"{stem}_value{i}")
        return f"{stem}_value{i}"


def _crossing(roots: Sequence[Node], own: set[str], dependencies: Dependencies, step: Step) -> list[Node]:
    """The values of earlier stages that the roots need."""
    sizes = {d.name: d.size or 64 for d in step.recurrence.dims}
    cuts: dict[Node, _Cut] = {}
    for node in topological(roots):
        states = dependencies[node]
        if not states:
            cuts[node] = _Cut(0, ())
            continue
        below = () if node.op in ("leaf", "version") and not states & own else node.args
        nodes = tuple(dict.fromkeys(n for a in below for n in cuts[a].nodes))
        cost = sum(_weight(n, sizes) for n in nodes)
        weight = _weight(node, sizes)
        if not states & own and (not below or weight <= cost):
            cuts[node] = _Cut(weight, (node,))
        else:
            cuts[node] = _Cut(cost, nodes)
    return list(dict.fromkeys(n for r in roots for n in cuts[r].nodes))


def _weight(node: Node, sizes: dict[str, int]) -> int:
    weight = 1
    for d in node.dims:
        weight *= sizes.get(d, 64)
    return weight


def _replace(roots: Sequence[Node], replaced: dict[Node, Node]) -> list[Node]:
    done: dict[Node, Node] = {}
    for node in topological(roots):
        done[node] = replaced[node] if node in replaced else rebuild(node, tuple(done[a] for a in node.args))
    return [done[r] for r in roots]
