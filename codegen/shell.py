"""What surrounds the stages' code: names, autograd functions' parts, and the body of the function that calls them."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import wrap

from recur.codegen.torch_printer.function import identifier, identifiers
from recur.codegen.torch_printer.tensors import permuted
from recur.ir.core import leaves
from recur.ir.normal import MaxPlusForm, NormalForm, Program
from recur.ir.plan import Plan
from recur.ir.spec import Recurrence, Variable
from recur.ir.tile import Buffer


def stage_function(stage: str) -> str:
    """The name of a stage's autograd function."""
    return "".join(part[:1].upper() + part[1:] for part in stage.split("_")) + "Function"


def tuple_target(names: list[str]) -> str:
    """What a tuple is unpacked to."""
    return ", ".join(names) + "," * (len(names) == 1)


def signature(inputs: list[str], outputs: list[str]) -> str:
    """What an autograd function takes and gives, as lines of its docstring."""
    text = f"({', '.join(inputs)}) -> ({', '.join(outputs)})"
    return "\n    ".join(wrap(text, 112, break_long_words=False))


def caller_layout(plan: Plan, buffer: Buffer) -> tuple[str, ...]:
    """The dimensions that the caller's tensor has, where the buffer's layout has others."""
    own = dict(plan.views).get(buffer.name)
    return buffer.layout if own is None else (*(d for d in buffer.layout if d in ("B", "T", "H")), *own)


def split_layout(plan: Plan, buffer: Buffer) -> tuple[str, ...]:
    """The buffer's layout with the several dims for each fused one, and the folded ones beside the heads."""
    if buffer.name not in dict(plan.views):
        return buffer.layout
    groups = dict(plan.fused) | {"H": ("H", *plan.folded)}
    return tuple(part for d in buffer.layout for part in groups.get(d, (d,)))


@dataclass
class Names:
    """Python names of one scope: `take` gives each wanted name once, with underscores where it is taken."""

    taken: set[str] = field(default_factory=set)

    def take(self, wanted: str) -> str:
        name = identifier(wanted)
        while name in self.taken or keyword.iskeyword(name):
            name += "_"
        self.taken.add(name)
        return name


@dataclass(frozen=True)
class Shell:
    """The function that runs a recurrence's stages in order."""

    program: Program
    plans: tuple[Plan, ...]
    is_compiled: bool = False  # stages take None for initial states, and compile their kernels when they first run

    @property
    def rec(self) -> Recurrence:
        return self.program.step.recurrence

    @cached_property
    def names(self) -> Names:
        functions = {stage_function(p.stage) for p in self.plans}
        return Names({"initial_state", "output_final_state", "results", "states"} | functions)

    @cached_property
    def variables(self) -> dict[str, str]:
        """Python names of inputs and params, and, as stages give them, of their values."""
        return {v.name: self.names.take(v.name) for v in self.rec.inputs}

    @property
    def parameters(self) -> list[str]:
        return [self.variables[v.name] for v in self.rec.inputs]

    @property
    def function_name(self) -> str:
        return identifier(self.rec.name)

    @cached_property
    def first(self) -> Variable:
        """The first input with a token axis; shapes are read from it."""
        return next(v for v in self.rec.inputs if v.role == "input")

    @cached_property
    def previous(self) -> tuple[Variable, ...]:
        """The inputs that are read at the previous token."""
        nodes = [node for _, node in (*self.program.step.updates, *self.program.step.outputs)]
        read = {str(leaf.attrs[1]) for leaf in leaves(nodes, "prev")}
        return tuple(v for v in self.rec.inputs if v.name in read)

    @cached_property
    def scale_of(self) -> dict[str, str]:
        return dict(pair for stage in self.program.stages for pair in stage.scale_of)

    def scaled_by(self, scale: str) -> list[Variable]:
        return [v for v in self.rec.states if self.scale_of.get(v.name) == scale]

    @cached_property
    def entries(self) -> list[str]:
        """The entries of the state: declared, previous tokens, log scales."""
        declared = [v.name for v in self.rec.states]
        scales = [f"{v.name}.log_scale" for v in self.rec.states if v.name in self.scale_of]
        return declared + [f"prev.{v.name}" for v in self.previous] + scales

    # --- one stage ----------------------------------------------------------------------------------------------------

    def stage(self, plan: Plan, title: str, code: str) -> dict[str, object]:
        """What the template needs of a stage."""
        inputs = plan.arguments + plan.initial
        names = identifiers(b.name for b in inputs + plan.results + plan.final)
        ledger = {line.of: "d_" + names[line.of] for line in plan.gradients}
        return {
            "name": plan.stage,
            "title": title + " " + "-" * max(0, 113 - len(title)),
            "code": code,
            "function": stage_function(plan.stage),
            "is_differentiable": bool(plan.gradients),
            "signature": signature(*([names[b.name] for b in g] for g in (inputs, plan.results + plan.final))),
            "ledger": list(ledger.values()),
            "target": tuple_target(list(ledger.values())),
            "gradients": [ledger.get(b.name, "None") for b in inputs],
            "is_compiled": self.is_compiled,
        }

    # --- the composing function ---------------------------------------------------------------------------------------

    def doc(self) -> str:
        """Shapes of what the function takes and gives."""
        lines = [*wrap((self.rec.doc or self.rec.name).splitlines()[0], 110), ""]
        lines = [lines[0], *(f"    {line}" if line else "" for line in lines[1:])]
        for v in self.rec.inputs:
            lead = "B, T, H" if v.role == "input" else "H"
            lines.append(f"    {v.name}: [{', '.join((lead, *v.dims))}]{' complex' if v.is_complex else ''}")
        lines += ["    initial_state: " + self.state_doc(), ""]
        outputs = [o.name for o in self.rec.outputs]
        returned = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
        lines.append(f"    Returns ({returned}, final); outputs are [B, T, H, ...] in {self.first.name}'s dtype,")
        lines += ["    final is None unless output_final_state. For one head, all tensors leave H out.", "    "]
        return "\n".join(lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')

    def state_doc(self) -> str:
        shapes = [f"{v.name} [{', '.join(('B', 'H', *v.dims))}]" for v in self.rec.states]
        shapes += [f"{name} [B, H, ...]" for name in self.entries[len(shapes) :]]
        shown = ", ".join(shapes)
        return f"{shown}; float32, or float64 where the inputs are" if len(shapes) == 1 else f"a dict of {shown}"

    def body(self) -> list[str]:
        """The composing function's lines."""
        take = self.names.take
        first = self.variables[self.first.name]
        heads, given, batch, count, dtype = (take(n) for n in ("has_heads", "given", "B", "H", "dtype"))
        lines = self.lead_lines(first, heads)
        declared = tuple_target([f'"{v.name}"' for v in self.rec.states])
        lines.append(f"{given} = _entries(initial_state, ({declared}), {heads})")
        sizes = [f"{batch}, _, {count} = {first}.shape[:3]", f"{dtype} = _state_dtype({first})"]
        states, previous = self.start_lines(given, batch, count, dtype, first)
        if self.is_compiled:
            lines += sizes * bool(previous)
            names = [name for entry, name in self.variables.items() if entry.endswith(".initial")]
            given_lines = (sizes if not previous else []) + states
            lines += [f"if {given}:", *(f"    {x}" for x in given_lines), "else:", f"    {' = '.join(names)} = None"]
        else:
            lines += sizes + states
        lines += previous
        for normal, plan in zip(self.program.stages, self.plans, strict=True):
            lines += self.call_lines(normal, plan)
        return [*lines, *self.return_lines(first, heads, dtype)]

    def lead_lines(self, first: str, heads: str) -> list[str]:
        """H is put in where the caller has one head and left it out."""
        rank = 3 + len(self.first.dims)
        lines = [f"{heads} = {first}.dim() == {rank}", f"if not {heads}:"]
        for role, position in (("input", 2), ("param", 0)):
            names = [self.variables[v.name] for v in self.rec.inputs if v.role == role]
            if len(names) == 1:
                lines.append(f"    {names[0]} = {names[0]}.unsqueeze({position})")
            elif names:
                shown = ", ".join(names)
                lines.append(f"    {shown} = (x.unsqueeze({position}) for x in ({shown}))")
        return lines

    def start_lines(self, given: str, batch: str, count: str, dtype: str, first: str) -> tuple[list[str], list[str]]:
        """Initial states, in the common scale where they are stabilised; and inputs at the previous token."""
        states = []
        for v in self.rec.states:
            self.variables[v.name + ".initial"] = name = self.names.take(v.name)
            states.append(f"{name} = {self.start(v.name, v, given, batch, count, dtype, first)}")
        for scale in dict.fromkeys(self.scale_of.values()):
            states += self.scale_lines(scale, given)
        lines = []
        for v in self.previous:
            start = self.start(f"prev.{v.name}", v, given, batch, count, dtype, first)
            self.variables[f"prev.{v.name}"] = name = self.names.take(f"prev_{v.name}")
            lines.append(f"{name} = _one_later({self.variables[v.name]}, {start})")
        return states, lines

    def start(self, entry: str, v: Variable, given: str, batch: str, count: str, dtype: str, first: str) -> str:
        sizes = ", ".join((batch, count, *(self.size(d) for d in v.dims)))
        kind = f"{dtype}.to_complex()" if v.is_complex else dtype
        return f'_start({given}, "{entry}", ({sizes}), {kind}, {first}.device)'

    def size(self, dim: str) -> str:
        """A dimension's size: its number, or that of a tensor that has it."""
        root = self.rec.root_dim(dim)
        fixed = next((d.size for d in self.rec.dims if d.name == root), None)
        if fixed is not None:
            return str(fixed)
        v, i = next((v, i) for v in self.rec.inputs for i, d in enumerate(v.dims) if self.rec.root_dim(d) == root)
        return f"{self.variables[v.name]}.shape[{i + (3 if v.role == 'input' else 1)}]"

    def scale_lines(self, scale: str, given: str) -> list[str]:
        """m_0 = the largest log scale of the states that share it, and every such state brought to that scale."""
        forms = (f for stage in self.program.stages for f in stage.forms if isinstance(f, MaxPlusForm))
        dims = next(f.dims for f in forms if f.state == scale)
        self.variables[scale + ".initial"] = m = self.names.take(scale)
        states = self.scaled_by(scale)
        lines, scales = [], []
        for v in states:
            name = self.variables[v.name + ".initial"]
            over = tuple(2 + i for i, d in enumerate(v.dims) if d not in dims)
            kept = tuple(d for d in v.dims if d in dims)
            own = self.names.take(f"{v.name}_scale")
            lines.append(f'{own} = {given}.get("{v.name}.log_scale", 0.0)')
            order = "" if kept == dims else f".permute(0, 1, {', '.join(str(2 + kept.index(d)) for d in dims)})"
            scales.append((v, own, f"_scale_of({name}, {own}, {over}){order}"))
        common = scales[0][2]
        for _, _, text in scales[1:]:
            common = f"torch.maximum({common}, {text})"
        lines.append(f"{m} = {common}")
        for v, own, _ in scales:
            name = self.variables[v.name + ".initial"]
            index = ", ".join((":", ":", *(":" if d in dims else "None" for d in v.dims)))
            aligned = f"_rescale({own}, {m})"
            kept = tuple(d for d in v.dims if d in dims)
            if kept != dims:
                aligned += f".permute(0, 1, {', '.join(str(2 + dims.index(d)) for d in kept)})"
            lines.append(f"{name} = {name} * {aligned}[{index}]" if "None" in index else f"{name} = {name} * {aligned}")
        return lines

    def call_lines(self, normal: NormalForm, plan: Plan) -> list[str]:
        """Runs a stage; its results and final states get names."""
        states = [f.state for f in normal.forms]
        starts = {b.name: self.variables[state + ".initial"] for state, b in zip(states, plan.initial, strict=True)}
        inputs = [self.stage_view(self.variables[b.name], plan, b) for b in plan.arguments]
        inputs += [self.stage_view(starts[b.name], plan, b) for b in plan.initial]
        results = [self.result_name(b) for b in plan.results]
        finals = []
        for state in states:
            self.variables[state + ".final"] = name = self.names.take(f"{state}_final")
            finals.append(name)
        arguments, given_out = ", ".join(inputs), tuple_target(results + finals)
        if not plan.gradients and self.is_compiled:
            several = f"({tuple_target(results)}), ({tuple_target(finals)}), _"
            return [f"{several} = {plan.stage}_forward(*map(_dense, ({arguments})), output_final_state)"]
        if not plan.gradients:
            return [
                "with torch.no_grad():",
                f"    results, states, _ = {plan.stage}_forward(*(_dense(x) for x in ({arguments})))",
                f"{tuple_target(results)} = results",
                f"{tuple_target(finals)} = states",
            ]
        call = f"{stage_function(plan.stage)}.apply({arguments})"
        if self.is_compiled:
            call = f"_run({stage_function(plan.stage)}, {plan.stage}_forward, output_final_state, {arguments})"
        split = self.split_lines(plan, dict(zip(results + finals, plan.results + plan.final, strict=True)))
        return [f"{given_out} = {call}", *split]

    def stage_view(self, text: str, plan: Plan, buffer: Buffer) -> str:
        """The caller's tensor in the buffer's layout: dims fused, folded ones joined with the heads."""
        if buffer.name not in dict(plan.views):
            return text
        own, split = caller_layout(plan, buffer), split_layout(plan, buffer)
        name = text
        text = permuted(text, own, tuple(d for d in split if d in own))
        for i, dim in enumerate(split):
            if dim not in own:
                text += f".unsqueeze({i})"
        if set(split) - set(own):
            text += f".expand({', '.join('-1' if d in own else self.size(d) for d in split)})"
        for i, parts in self.joined(plan, buffer):
            text += f".flatten({i}, {i + len(parts) - 1})"
        return f"{name} if {name} is None else {text}" if buffer in plan.initial else text

    def joined(self, plan: Plan, buffer: Buffer) -> list[tuple[int, tuple[str, ...]]]:
        """(its position in the buffer's layout, what it stands for), for each dimension that stands for several."""
        groups = dict(plan.fused) | ({"H": ("H", *plan.folded)} if plan.folded else {})
        return [(i, groups[d]) for i, d in enumerate(buffer.layout) if d in groups]

    def split_lines(self, plan: Plan, given: dict[str, Buffer]) -> list[str]:
        """Results whose dims the stage has joined, by name, in the caller's shape again."""
        lines = []
        for name, buffer in given.items():
            if buffer.name not in dict(plan.views):
                continue
            text = name
            for i, parts in self.joined(plan, buffer):
                sizes = ", ".join("-1" if d == "H" else self.size(d) for d in parts)
                text += f".unflatten({i - len(buffer.layout)}, ({sizes}))"
            text = permuted(text, split_layout(plan, buffer), caller_layout(plan, buffer))
            is_optional = self.is_compiled and buffer in plan.final
            lines.append(f"{name} = {name} if {name} is None else {text}" if is_optional else f"{name} = {text}")
        return lines

    def result_name(self, buffer: Buffer) -> str:
        self.variables[buffer.name] = self.names.take(buffer.name)
        return self.variables[buffer.name]

    def return_lines(self, first: str, heads: str, dtype: str) -> list[str]:
        """Outputs and final state, without H where it came without."""
        lines, names = [], [self.variables[o.name] for o in self.rec.outputs]
        if len(names) == 1:
            result = names[0]
            lines += [f"{result} = _output({result}, {first})", f"if not {heads}:"]
            lines.append(f"    {result} = {result}.squeeze(2)")
        else:
            result = self.names.take("outputs")
            lines += [f"{result} = ({', '.join(f'_output({name}, {first})' for name in names)})", f"if not {heads}:"]
            lines.append(f"    {result} = tuple(x.squeeze(2) for x in {result})")
        final = self.names.take("final")
        lines += ["if not output_final_state:", f"    return {result}, None", f"{final} = {{"]
        for v in self.rec.states:
            lines.append(f'    "{v.name}": {self.variables[v.name + ".final"]},')
        for v in self.previous:
            kind = f"{dtype}.to_complex()" if v.is_complex else dtype
            lines.append(f'    "prev.{v.name}": {self.variables[v.name]}[:, -1].to({kind}),')
        for v in self.rec.states:
            if v.name in self.scale_of:
                lines.append(f'    "{v.name}.log_scale": {self.variables[self.scale_of[v.name] + ".final"]},')
        lines += ["}", f"if not {heads}:", f"    {final} = {{name: x.squeeze(1) for name, x in {final}.items()}}"]
        state = f'{final}["{self.entries[0]}"]' if len(self.entries) == 1 else final
        return [*lines, f"return {result}, {state}"]
