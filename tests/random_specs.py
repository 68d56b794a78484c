"""Random valid recurrences: programs nobody thought of, as text, with the features that each one exercises.

``generate(seed)`` is deterministic. The seed's remainder picks the family, so consecutive seeds visit them all.
``python tests/random_specs.py --count 50`` prints some, ``--features`` counts what they exercise.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LOG_GATE = "in (-inf, 0]"
ACTIVATIONS = ["silu", "tanh", "relu", "elu", "gelu", "sigmoid", "softplus", "sin", "cos", "expm1"]


@dataclass
class Writer:
    """A recurrence being written: declarations and statements in order, and the features used so far."""

    rng: random.Random
    dims: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    params: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    _taken: set[str] = field(default_factory=set)
    _indent: str = "    "

    # --- declarations ------------------------------------------------------------------------------------------------

    def fresh(self, wish: str) -> str:
        name, number = wish, 2
        while name in self._taken:
            name, number = f"{wish}{number}", number + 1
        self._taken.add(name)
        return name

    def dim(self, wish: str, definition: str = "") -> str:
        name = self.fresh(wish)
        self.dims.append(f"{name} = {definition}" if definition else name)
        return name

    def input(self, wish: str, *dims: str, tail: str = "") -> str:
        name = self.fresh(wish)
        self.inputs.append(_declared(name, dims, tail))
        return name

    def param(self, wish: str, *dims: str, tail: str = "") -> str:
        self.features.add("param")
        name = self.fresh(wish)
        self.params.append(_declared(name, dims, tail))
        return name

    def state(self, wish: str, *dims: str, tail: str = "") -> str:
        name = self.fresh(wish)
        self.states.append(_declared(name, dims, tail))
        return name

    # --- statements --------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append(self._indent + text)

    def output(self, value: str, wish: str = "o") -> None:
        if any("output " in line for line in self.lines):
            self.features.add("output:several")
        self.line(f"output {self.fresh(wish)} = {value}")

    def local(self, wish: str, value: str) -> str:
        self.features.add("local")
        name = self.fresh(wish)
        self.line(f"{name} = {value}")
        return name

    def comment(self) -> None:
        if self.chance(0.1):
            self.line("# " + self.pick(["the write", "what was stored is corrected", "one more step"]))

    # --- chance ------------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, options: Sequence[str]) -> str:
        return self.rng.choice(options)

    def choose(self, group: str, options: Sequence[str]) -> str:
        """Picks an option and notes it as the feature ``group:option``."""
        option = self.rng.choice(options)
        self.features.add(f"{group}:{option}")
        return option

    def text(self, name: str) -> str:
        lines = [f"recurrence {name}:"]
        if self.chance(0.5):
            lines.append(f'    "Random: {self.pick(["an experiment", "why not", "a sum of things"])}."')
        lines += [f"    dim {d}" for d in self.dims]
        lines += _grouped("input", self.inputs) + _grouped("param", self.params) + _grouped("state", self.states)
        return "\n".join([*lines, "", *self.lines]) + "\n"


def _declared(name: str, dims: Sequence[str], tail: str) -> str:
    return name + (f"[{', '.join(dims)}]" if dims else "") + (f" {tail}" if tail else "")


def _grouped(word: str, names: list[str]) -> list[str]:
    return [f"    {word} {', '.join(names)}"] if names else []


# --- pieces ----------------------------------------------------------------------------------------------------------


def gate(w: Writer, *dims: str, signs: bool = True) -> str:
    """A decay factor over dims, computed from an input (or for no dims also from a param)."""
    forms = ["log", "sigmoid", "raw", "softplus"] + (["negative"] * 2 if signs else []) + ([] if dims else ["param"])
    form = w.choose("gate", forms)
    if form == "log":
        return f"exp({w.input('g', *dims, tail=LOG_GATE)})"
    if form == "sigmoid":
        return f"sigmoid({w.input('f', *dims)})"
    if form == "raw":
        return w.input("a", *dims, tail="in (0, 1)")
    if form == "softplus":
        rate = w.param("A_log", *dims)
        return f"exp(-softplus({w.input('dt', *dims)}) * exp({rate}))"
    if form == "param":
        return w.param("gamma", tail="in (0, 1)")
    w.features.add("sign:negative")
    shape = w.pick(["raw", "sigmoid", "log"])
    if shape == "raw":
        return w.input("a", *dims, tail="in (-1, 1)")
    if shape == "sigmoid":
        return f"(2 * sigmoid({w.input('f', *dims)}) - 1)"
    return f"-exp({w.input('g', *dims, tail=LOG_GATE)})"


def complex_gate(w: Writer, *dims: str) -> str:
    w.features.add("complex")
    angle = w.input("theta", *dims)
    return f"polar({w.pick(['exp', 'sigmoid'])}({w.input('r', *dims, tail=LOG_GATE)}), {angle})"


def vector(w: Writer, wish: str, dim: str, plain: bool = False) -> str:
    """A vector over a dim: an input, perhaps activated, normalised, or the previous token's."""
    name = w.input(wish, dim)
    if plain or w.chance(0.5):
        return name
    forms = ["l2norm", "rmsnorm", "activation", "activation", "param", "prev", "where", "max", "centred", "clipped"]
    form = w.choose("coefficient", forms)
    if form == "prev":
        w.features.add("prev")
        return f"prev({name})"
    if form == "param":
        return f"({w.param('scale', dim)} * {name})"
    if form == "where":
        return f"where({name} > 0, {name}, 0.1 * {name})"
    if form == "max":
        return f"{w.pick(['max', 'min'])}({name}, {w.pick(['-0.5', '0.1'])})"
    if form == "centred":
        return f"({name} - mean({name}))"
    if form == "clipped":
        return f"({name} / max({w.pick(['norm', 'amax'])}({name}), 0.7))"
    if form == "activation":
        return f"{w.choose('activation', ACTIVATIONS)}({name})"
    return f"{form}({name})"


def rate(w: Writer) -> str:
    form = w.pick(["range", "sigmoid", "constant"])
    if form == "range":
        return w.input("beta", tail=w.pick(["in (0, 1)", "in (0, 2)"]))
    return f"sigmoid({w.input('b')})" if form == "sigmoid" else "0.5"


def decayed(w: Writer, kind: str, state: str, K: str, V: str, signs: bool = True) -> str:
    """The state, decayed: by nothing, a constant, a number, a vector over K or V, or a product of two."""
    if kind == "none":
        return state
    if kind == "constant":
        number = w.pick(["0.9", "0.5", f"(1 - {K} ** -2)", "-0.7"] if signs else ["0.9", "0.5"])
        w.features |= {"sign:negative"} if number == "-0.7" else set()
        return f"{number} * {state}"
    if kind == "scalar":
        return f"{gate(w, signs=signs)} * {state}"
    if kind == "diag_k":
        return f"{gate(w, K, signs=signs)} * {state}"
    if kind == "diag_v":
        return f"{state} * {gate(w, V, signs=signs)}"
    if kind == "product":
        return f"{gate(w, K, signs=signs)} * {state} * {gate(w, V, signs=signs)}"
    return f"{gate(w, K, V, signs=signs)} * {state}"  # full: a decay for every entry


DECAYS = ["none", "constant", "scalar", "diag_k", "diag_v", "product"]


def matrix_dims(w: Writer) -> tuple[str, str]:
    K, V = w.rng.choice([("K", "V"), ("N", "P"), ("D", "E")])
    return w.dim(K), w.dim(V)


def finished(w: Writer, value: str, V: str) -> str:
    """An output's expression, perhaps with an epilogue."""
    form = w.choose("epilogue", ["none", "none", "scale", "gate", "norm", "skip"])
    if form == "scale":
        return f"{V} ** -0.5 * ({value})"
    if form == "gate":
        return f"silu({w.input('z', V)}) * ({value})"
    if form == "norm":
        return f"{w.pick(['rmsnorm', 'l2norm'])}({value})"
    return f"{value} + {w.param('skip')} * {w.input('u', V)}" if form == "skip" else value


# --- families --------------------------------------------------------------------------------------------------------


def matrix_plain(w: Writer) -> None:
    """A matrix state with decays and writes, no reads."""
    K, V = matrix_dims(w)
    first, second = (V, K) if w.chance(0.25) else (K, V)
    w.features |= {"layout:values_first"} if first == V else set()
    S = w.state("S", first, second)
    steps = w.rng.choice([1, 1, 2])
    before = w.chance(0.3)
    if before:
        readout(w, S, K, V, "before")
    for _ in range(steps):
        old = decayed(w, w.choose("decay", [*DECAYS, "full"]), S, K, V)
        if w.chance(0.4):
            w.line(f"{S} = {old}")
            old = S
            if w.chance(0.3):
                readout(w, S, K, V, "between")
        w.comment()
        w.line(f"{S} = {old} + {write(w, K, V)}")
    if not before or w.chance(0.5):
        readout(w, S, K, V, "after")
    if w.chance(0.15):
        w.features.add("bonus")
        k, v = w.input("k", K), w.input("v", V)
        w.output(f"{w.input('q', K)} @ ({S} + outer({w.param('bonus', K)} * {k}, {v}))")


def write(w: Writer, K: str, V: str) -> str:
    key, value = vector(w, "k", K), vector(w, "v", V)
    gated = f"{rate(w)} * " if w.chance(0.4) else ""
    return gated + (f"outer({key}, {value})" if w.chance(0.7) else f"{key} * {value}")


def readout(w: Writer, S: str, K: str, V: str, position: str, value: str = "") -> None:
    w.features.add(f"readout_position:{position}")
    w.features |= {"output:before_update"} if position == "before" else set()
    axis = w.choose("readout_axis", ["k", "k", "v"])
    over, left = (K, V) if axis == "k" else (V, K)
    w.output(finished(w, value or f"{vector(w, 'q', over, plain=w.chance(0.5))} @ {S}", left))


def matrix_reads(w: Writer) -> None:
    """A matrix state corrected by reads along one axis: one to three micro-steps."""
    K, V = matrix_dims(w)
    S = w.state("S", *((V, K) if w.chance(0.2) else (K, V)))
    axis = w.choose("reads_axis", ["k", "k", "v"])
    if w.chance(0.25):
        readout(w, S, K, V, "before")
    steps = w.rng.choice([1, 1, 2, 3])
    w.features.add(f"reads:{steps}")
    for step in range(steps):
        kind = w.choose("decay", DECAYS if step == 0 else ["none", "none", "scalar", "diag_k"])
        old = decayed(w, kind, S, K, V)
        if kind != "none" and w.chance(0.6):
            w.line(f"{S} = {old}")
            old = S
        elif kind != "none":
            w.features.add("read_position:before_decay")
        w.comment()
        w.line(f"{S} = {old} {corrected(w, S, K, V, axis)}")
        if step + 1 < steps and w.chance(0.3):
            readout(w, S, K, V, "between")
    only_erased = not w.features & {"read:delta", "read:general"}  # nothing but zeros would be stored
    if only_erased or w.chance(0.3):
        w.features.add("plain_write_beside_reads")
        w.line(f"{S} = {S} + {write(w, K, V)}")
    readout(w, S, K, V, "after")


def corrected(w: Writer, S: str, K: str, V: str, axis: str) -> str:
    """A rank-one correction: the delta rule, or a general a, b with norms that keep products of them bounded."""
    form = w.choose("read", ["delta", "general", "erase"])
    if form == "delta" and axis == "k":
        k = w.local("key", f"l2norm({w.input('k', K)})") if w.chance(0.3) else w.input("k", K)
        return f"+ {rate(w)} * outer({k}, {vector(w, 'v', V)} - {k} @ {S})"
    if form == "delta":
        v = w.input("v", V)
        return f"+ {rate(w)} * outer({vector(w, 'k', K)} - {v} @ {S}, {v})"
    over = K if axis == "k" else V
    a, b = w.input("kappa", over), w.input("eta", over)
    read = f"{a} @ {S}"
    pair = (b, read) if axis == "k" else (read, b)
    if form == "erase":
        return f"- {rate(w)} * outer({', '.join(pair)})"
    return f"+ 0.5 * outer({', '.join(pair)}) + {write(w, K, V)}"


def matrix_loop(w: Writer) -> None:
    """Householder-like factors or plain writes in a loop."""
    K, V = matrix_dims(w)
    n = w.dim("n", w.pick(["2", "3"]))
    S = w.state("S", K, V)
    w.features.add("loop")
    k, v, beta = w.input("k", n, K), w.input("v", n, V), w.input("beta", n, tail="in (0, 2)")
    old = decayed(w, w.choose("decay", DECAYS), S, K, V)
    if old != S:
        w.line(f"{S} = {old}")
    inner_gate = w.input("g", n, tail=LOG_GATE) if w.chance(0.3) else ""
    form = w.choose("loop_body", ["delta", "delta", "plain", "local"])
    w.line(f"for j in range({n}):")
    if inner_gate:
        w.features.add("loop_decay")
        w.line(f"    {S} = exp({inner_gate}[j]) * {S}")
    if form == "delta":
        w.features |= {"reads_axis:k", f"reads:{w.dims[-1][-1]}"}
        w.line(f"    {S} = {S} + {beta}[j] * outer({k}[j], {v}[j] - {k}[j] @ {S})")
    elif form == "plain":
        w.line(f"    {S} = {S} + {beta}[j] / (j + 1) * outer({k}[j], {v}[j])")
    else:
        error = w.fresh("error")
        w.features |= {"local", "reads_axis:k"}
        w.line(f"    {error} = {v}[j] - {k}[j] @ {S}")
        w.line(f"    {S} = {S} + {beta}[j] * outer({k}[j], {error})")
    readout(w, S, K, V, "after")
    if w.chance(0.3):
        w.features.add("fixed_index")
        w.output(f"{k}[0] @ {S}")


def matrix_complex(w: Writer) -> None:
    """A complex matrix state: rotating decays, real or complex keys, real readouts."""
    K, V = matrix_dims(w)
    S = w.state("S", K, V, tail="complex")
    kind = w.choose("complex_decay", ["scalar", "diag_k", "diag_v"])
    turn = complex_gate(w, *{"scalar": (), "diag_k": (K,), "diag_v": (V,)}[kind])
    k = w.input("k", K, tail=w.pick(["", "complex"]))
    if w.chance(0.25):
        w.features |= {"complex_reads", "reads_axis:k"}
        w.line(f"{S} = {turn} * {S}")
        w.line(f"{S} = {S} + {rate(w)} * outer({k}, {vector(w, 'v', V)} - conj({k}) @ {S})")
    else:
        w.line(f"{S} = {turn} * {S} + outer({k}, {vector(w, 'v', V)})")
    q = w.input("q", K, tail=w.pick(["", "complex"]))
    w.output(f"{w.choose('complex_output', ['real', 'imag', 'abs', 'complex'])}({q} @ {S})".replace("complex(", "("))


def matrix_gram(w: Writer) -> None:
    """A state over two names of one size, from the outer product of a vector with itself."""
    K = w.dim("K")
    J = w.dim("J", K)
    w.features.add("alias")
    first, second = w.rng.choice([(K, J), (J, K)])
    M = w.state("M", first, second)
    k, other = w.input("k", K), vector(w, "x", K)
    kind = w.choose("decay", ["none", "constant", "scalar", "diag_k"])
    w.line(f"{M} = {decayed(w, kind, M, K, J)} + outer({k}, {k})")
    if w.chance(0.5):
        w.output(f"{other} @ {M}")
    else:
        w.features.add("local")
        right = other if second == K else f"rename({other}, {K}, {J})"
        w.line(f"{w.fresh('y')}[{K}] = {M} @ {right}")
        w.output(finished(w, f"{other} * y", K))


def normalised(w: Writer) -> None:
    """A matrix state and its normaliser, with a bounded write gate or none."""
    K, V = matrix_dims(w)
    S, z = w.state("S", K, V), w.state("z", K)
    w.features.add("normaliser")
    kind = w.choose("decay", ["none", "constant", "scalar", "diag_k"])
    factor = decayed(w, kind, "1", K, V, signs=False).replace(" * 1", "")
    form = w.choose("normaliser", ["positive", "max", "plus"])
    k, q = w.input("k", K), w.input("q", K)
    key = w.local("key", f"softplus({k})") if form == "positive" else k
    query = w.local("query", f"softplus({q})") if form == "positive" else q
    for state, value in ((S, f"outer({key}, {w.input('v', V)})"), (z, key)):
        w.line(f"{state} = {'' if factor == '1' else f'{factor} * '}{state} + {value}")
    below = {
        "positive": f"({query} @ {z})",
        "max": f"max(abs({query} @ {z}), 1)",
        "plus": f"(1 + abs({query} @ {z}))",
    }[form]
    w.output(f"({query} @ {S}) / {below}")


def stabilised(w: Writer) -> None:
    """Exponential write gates shared by a state and its normaliser: a ratio of sums."""
    w.features |= {"stabiliser", "normaliser"}
    V = w.dim("V")
    form = w.choose("stabilised", ["attention", "matrix_max", "elementwise", "additive"])
    decay = gate(w, signs=False) if w.chance(0.6) else ""
    times = f"{decay} * " if decay else ""
    if form == "additive":
        K = w.dim("K")
        S, z, k = w.state("S", K, V), w.state("z", K), w.input("k", K)
        w.line(f"{S} = {times}{S} + outer(exp({k}), {w.input('v', V)})")
        w.line(f"{z} = {times}{z} + exp({k})")
        w.output(f"{w.input('q', K)} @ ({S} / {z})")
    elif form == "matrix_max":
        K = w.dim("K")
        C, n, i, k = w.state("C", K, V), w.state("n", K), w.input("i"), w.input("k", K)
        w.line(f"{C} = {times}{C} + exp({i}) * outer({k}, {w.input('v', V)})")
        w.line(f"{n} = {times}{n} + exp({i}) * {k}")
        q = w.input("q", K)
        w.output(f"({q} @ {C}) / max(abs({q} @ {n}), 1)")
    else:
        dims = (V,) if form == "elementwise" else ()
        a, c, i = w.state("a", V), w.state("c", *dims), w.input("i", *dims)
        weight = w.local("weight", f"exp({i})")
        w.line(f"{a} = {times}{a} + {weight} * {w.input('v', V)}")
        w.line(f"{c} = {times}{c} + {weight}")
        w.output(f"{a} / {c}")


def elementwise(w: Writer) -> None:
    """A real vector state, or one for every pair with a readout that contracts."""
    D = w.dim("D")
    if w.chance(0.5):
        h = w.state("h", D)
        factor = gate(w, D) if w.chance(0.7) else gate(w)
        x = vector(w, "x", D)
        if w.chance(0.3):
            w.features |= {"output:before_update", "readout_position:before"}
            w.output(h, "before")
        if w.chance(0.4):
            f = w.local("keep", factor)
            w.features.add("convex")
            w.line(f"{h} = {f} * {h} + (1 - {f}) * {x}")
        else:
            w.line(f"{h} = {factor} * {h} + {x}")
        w.output(finished(w, h if w.chance(0.5) else f"{w.input('q', D)} * {h}", D))
        return
    if w.chance(0.2):
        w.features.add("elementwise:timescales")
        n = w.dim("n", w.pick(["2", "3"]))
        h, x = w.state("h", n, D), w.input("x", D)
        f = w.local("f", f"sigmoid({w.input('f', n)})" if w.chance(0.5) else f"exp(-exp({w.param('rate', n)}))")
        w.line(f"{h} = {f} * {h} + (1 - {f}) * {x}")
        weight = w.input("w", n)
        w.output(w.pick([f"{weight}[0] * {h}[1]", f"sum({weight} * {h}, {n})", f"{weight} @ {h}"]))
        return
    w.features.add("elementwise:two_dims")
    N = w.dim("N")
    h = w.state("h", D, N)
    kind = w.choose("decay", ["full", "full", "product", "diag_k"])
    if kind == "full" and w.chance(0.6):
        delta = w.local("delta", f"softplus({w.input('dt', D)})")
        old = f"exp(-{delta} * exp({w.param('A_log', D, N)})) * {h}"
    else:
        old = decayed(w, kind, h, D, N)
    w.line(f"{h} = {old} + outer({vector(w, 'x', D)}, {w.input('B', N)})")
    w.output(finished(w, f"{h} @ {w.input('C', N)}" if w.chance(0.7) else f"sum({h}, {N})", D))


def elementwise_complex(w: Writer) -> None:
    """A complex vector state, with complex or real inputs and a real or complex readout."""
    N = w.dim("N")
    x = w.state("x", N, tail="complex")
    if w.chance(0.7):
        factor = complex_gate(w, N)
    else:
        w.features.add("complex")
        factor = f"polar(exp(-exp({w.param('nu', N)})), {w.param('phase', N)})"
    form = w.choose("complex_input", ["real", "complex", "matrix"])
    if form == "matrix":
        D = w.dim("D")
        value = f"{w.param('B', N, D, tail='complex')} @ {w.input('u', D)}"
    else:
        value = w.input("u", N, tail="complex" if form == "complex" else "")
    w.line(f"{x} = {factor} * {x} + {value}")
    if w.chance(0.5):
        D = w.dim("E")
        w.output(f"real({w.param('C', D, N, tail='complex')} @ {x})")
    else:
        w.output(w.choose("complex_output", ["real", "imag", "abs", "complex"]).replace("complex", "") + f"({x})")


def transition(w: Writer) -> None:
    """A vector state whose transition is a small matrix: in blocks, dense, low rank, transformed, fixed."""
    form = w.choose("transition", ["block", "block", "dense", "low_rank", "hadamard", "fixed", "eye"])
    if form == "block":
        w.features.add("alias")
        N, b = w.dim("N"), w.dim("b")
        c = w.dim("c", b)
        h, A = w.state("h", N, c), w.input("A", N, b, c)
        extra = f" + {rate(w)} * {h}" if w.chance(0.3) else ""
        if extra:
            w.line(f"{w.fresh('moved')}[{N}, {c}] = {A} @ {h} + {w.input('x', N, b)}")
            w.line(f"{h} = moved{extra}")
        else:
            w.line(f"{h} = {A} @ {h} + {w.input('x', N, b)}")
        w.output(h if w.chance(0.6) else f"{w.input('q', N, c)} * {h}")
        return
    N = w.dim("N")
    h = w.state("h", N)
    if form in ("dense", "fixed", "eye"):
        w.features.add("alias")
        M = w.dim("M", N)
        A = w.param("A", M, N) if form == "fixed" else w.input("A", M, N)
        if form == "eye":
            A = w.local("transition", f"{gate(w)} * eye({M}, {N}) + 0.3 * {A}")
        w.line(f"{h} = {A} @ {h} + {w.input('x', M)}")
    elif form == "low_rank":
        r = w.dim("r", "2")
        d = w.input("d", N, tail="in (-0.5, 0.5)")
        w.line(f"{h} = {d} * {h} + 0.3 * ({w.input('P', N, r)} @ ({w.input('Q', r, N)} @ {h})) + {w.input('x', N)}")
    else:
        w.line(f"{h} = {N} ** -0.5 * hadamard({gate(w, N)} * {h}, {N}) + {w.input('x', N)}")
    w.output(finished(w, h, N))


def staged(w: Writer) -> None:
    """Two stages: what the first state holds drives the second."""
    w.features.add("stages:2")
    form = w.choose("stage", ["softmax", "smoothed_key", "gated_by_state", "chained_sums", "smoothed_value"])
    V = w.dim("V")
    if form == "softmax":
        K, M = w.dim("K"), w.dim("M")
        R, S, f = w.state("R", M, K), w.state("S", M, V), gate(w, M, signs=False)
        w.line(f"{R} = {f} * {R} + outer(1 - {f}, {w.input('k', K)})")
        w.line(f"{S} = {f} * {S} + outer(1 - {f}, {w.input('v', V)})")
        w.output(f"softmax({R} @ {w.input('q', K)}) @ {S}")
    elif form == "gated_by_state":
        h, z = w.state("h", V), w.state("z", V)
        w.line(f"{h} = {gate(w, V)} * {h} + {w.input('x', V)}")
        w.line(f"{z} = sigmoid({h}) * {z} + {vector(w, 'y', V)}")
        w.output(finished(w, z, V))
    elif form == "chained_sums":
        h, z = w.state("h", V), w.state("z", V)
        w.line(f"{h} = {gate(w)} * {h} + {w.input('x', V)}")
        w.line(f"{z} = {gate(w)} * {z} + {h}")
        w.output(z)
        w.output(h, "first")
    else:
        K = w.dim("K")
        smooth, dim = ("m", K) if form == "smoothed_key" else ("u", V)
        m, S = w.state(smooth, dim), w.state("S", K, V)
        w.line(f"{m} = {gate(w, signs=False)} * {m} + {w.input('x', dim)}")
        other = w.input("v" if dim == K else "k", V if dim == K else K)
        pair = (f"l2norm({m})", other) if dim == K else (other, f"tanh({m})")
        w.line(f"{S} = {decayed(w, w.choose('decay', DECAYS), S, K, V)} + outer({', '.join(pair)})")
        readout(w, S, K, V, "after")


def coupled(w: Writer) -> None:
    """Two states that read each other: a rotation written out, or a leak from one to the other."""
    D = w.dim("D")
    x, y = w.state("x", D), w.state("y", D)
    w.features.add("states:coupled")
    if w.chance(0.5):
        theta, f = w.input("theta", D), gate(w, D, signs=False)
        c, s = w.local("c", f"{f} * cos({theta})"), w.local("s", f"{f} * sin({theta})")
        old = w.local("old", x)
        w.line(f"{x} = {c} * {x} - {s} * {y} + {w.input('u', D)}")
        w.line(f"{y} = {s} * {old} + {c} * {y}")
    else:
        w.line(f"{x} = {gate(w, D, signs=False)} * {x} + 0.1 * {y} + {w.input('u', D)}")
        w.line(f"{y} = {gate(w, signs=False)} * {y} - 0.1 * {x} + {vector(w, 'v', D)}")
    w.output(f"{x} + {y}" if w.chance(0.5) else x)


def several(w: Writer) -> None:
    """States that do not see one another, a counter among them."""
    w.features.add("states:several")
    K, V = matrix_dims(w)
    S, h, count = w.state("S", K, V), w.state("h", V), w.state("count")
    w.line(f"{count} = {w.pick(['', '0.9 * '])}{count} + 1")
    w.line(f"{S} = {decayed(w, w.choose('decay', DECAYS), S, K, V)} + {write(w, K, V)}")
    w.line(f"{h} = {gate(w, V)} * {h} + {w.input('x', V)}")
    w.output(f"({w.input('q', K)} @ {S}) / {count}")
    w.output(f"{h} / sqrt({count})" if w.chance(0.5) else h, "y")
    if w.chance(0.4):
        w.output(f"{h} * ({w.input('p', K)} @ {S})", "mixed")


def nonlinear(w: Writer) -> None:
    """Cells that are not affine in their state."""
    form = w.choose("nonlinear", ["elementwise", "recurrent", "gru", "matrix", "quadratic", "exponential", "ratio"])
    D = w.dim("D")
    if form == "matrix":
        V = w.dim("V")
        S = w.state("S", D, V)
        w.line(f"{S} = tanh({decayed(w, w.pick(['none', 'scalar', 'diag_k']), S, D, V)} + {write(w, D, V)})")
        readout(w, S, D, V, "after")
        return
    h = w.state("h", D)
    if form == "elementwise":
        w.line(f"{h} = {w.pick(['tanh', 'sigmoid', 'sin'])}({w.param('w', D)} * {h} + {vector(w, 'x', D)})")
    elif form == "quadratic":
        w.line(f"{h} = 0.5 * {h} - 0.1 * square({h}) + tanh({w.input('x', D)})")
    elif form == "ratio":
        c, n, i = w.state("c", D), w.state("n", D), w.input("i", D)
        w.features |= {"stabiliser", "normaliser"}
        keep, weight = w.local("keep", f"sigmoid({w.input('f', D)})"), w.local("weight", f"exp({i} + 0.3 * {h})")
        w.line(f"{c} = {keep} * {c} + {weight} * tanh({w.input('x', D)} + {h})")
        w.line(f"{n} = {keep} * {n} + {weight}")
        w.line(f"{h} = {c} / {n}")
    elif form == "exponential":
        n = w.state("n", D)
        w.features |= {"stabiliser", "normaliser"}
        w.line(f"{n} = sigmoid({w.input('f', D)}) * {n} + exp({w.input('i', D)} + 0.5 * {h})")
        w.line(f"{h} = tanh({w.input('x', D)} + {h}) / (1 + {n})")
    else:
        w.features.add("alias")
        J = w.dim("J", D)
        R = w.param("R", J, D)
        if form == "recurrent":
            w.line(f"{h} = tanh({R} @ {h} + {w.input('x', J)})")
        else:
            w.line(f"{w.fresh('mixed')}[{D}] = {R} @ (sigmoid({w.input('r', D)}) * {h})")
            keep = w.local("keep", f"sigmoid({w.input('z', D)} + {h})")
            w.line(f"{h} = {keep} * {h} + (1 - {keep}) * tanh({w.input('x', D)} + mixed)")
    w.output(h)


FAMILIES: tuple[Callable[[Writer], None], ...] = (
    matrix_plain, matrix_reads, elementwise, normalised, matrix_loop, elementwise_complex, staged, stabilised,
    matrix_complex, transition, nonlinear, matrix_gram, coupled, several,
)  # fmt: skip


def generate(seed: int, family: str | None = None) -> tuple[str, frozenset[str]]:
    """A valid recurrence named ``random_SEED``, as text, and the features it exercises.

    Features are words like ``decay:diag_k``, ``reads:2``, ``family:matrix_reads``. ``family`` overrides the seed's.
    """
    table = {f.__name__: f for f in FAMILIES}
    chosen = table[family] if family else FAMILIES[seed % len(FAMILIES)]
    writer = Writer(random.Random(seed))
    chosen(writer)
    return writer.text(f"random_{seed}"), frozenset(writer.features | {f"family:{chosen.__name__}"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--family", choices=[f.__name__ for f in FAMILIES])
    parser.add_argument("--features", action="store_true", help="count features instead of printing specs")
    options = parser.parse_args()
    specs = [generate(seed, options.family) for seed in range(options.start, options.start + options.count)]
    if options.features:
        for feature, count in sorted(Counter(f for _, features in specs for f in features).items()):
            print(f"{count:6d}  {feature}")
        return
    for text, features in specs:
        print(f"# {', '.join(sorted(features))}\n{text}")


if __name__ == "__main__":
    main()
