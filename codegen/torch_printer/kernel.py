"""A kernel's statements as lines of torch code, loops taken apart (see loops.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from recur.codegen.torch_printer.function import Function
from recur.codegen.torch_printer.loops import defines, inline_loops, share, split, uses
from recur.codegen.torch_printer.memory import Place, time_part
from recur.codegen.torch_printer.operations import operation, whole
from recur.codegen.torch_printer.tensors import BATCH, CHUNK, HEAD, LEADS, STEP, TOKENS, Tensor, aligned, bare
from recur.ir.tile import Carry, Kernel, Let, Loop, Statement, Store, Value
from recur.operators import OPERATORS

SIGNS = {"add": "+", "sub": "-", "mul": "*"}
SCANS = ("scan", "prescan", "maxprescan", "resume", "maxresume")
WITH_SHAPES = ("contract", "weigh", *SCANS, "inverse", "cumsum")


@dataclass
class Core:
    """The loop that is being printed: its dimension and index, and the lists taken apart along it."""

    dim: str
    index: str
    unbound: dict[str, str] = field(default_factory=dict)


@dataclass
class KernelPrinter:
    """Prints one kernel into a function; also what operations ask for (`operations.Sizes`)."""

    function: Function
    kernel: Kernel
    env: dict[str, Tensor] = field(default_factory=dict)
    count: Counter[str] = field(default_factory=Counter)
    padded: set[str] = field(default_factory=set)
    owned: dict[str, Core | None] = field(default_factory=dict)
    core: Core | None = None
    place: Place = field(default_factory=Place)

    def run(self) -> None:
        body = share(inline_loops(self.kernel.body, self.function.plan.chunk or 1))
        self.count = Counter(v.name for s in body for v in uses(s))
        self.place = Place("chunk" in self.kernel.grid)
        self.statements(body)

    # what operations ask for

    @property
    def dtype(self) -> str:
        return self.function.dtype

    @property
    def device(self) -> str:
        return self.function.device

    def size(self, dim: str) -> str:
        if dim == STEP and self.place.on_grid:
            return self.function.structural("C")
        if dim == TOKENS:
            return self.function.structural("T")
        if dim in LEADS:
            return self.function.lead(dim)
        axis = next((a for a in self.kernel.axes if a.name == dim), None)
        if axis is None:
            return self.function.dimension(dim)
        return self.function.structural("C") if axis.kind == "rows" else self.function.dimension(axis.extent)

    @property
    def steps(self) -> int:
        return self.function.plan.steps

    def is_rows(self, axis: str) -> bool:
        return any(a.name == axis and a.kind == "rows" for a in self.kernel.axes)

    def inside(self, axis: str) -> Tensor:
        counts = ", ".join(self.function.structural(letter) for letter in "TNC")
        text = f"_inside({counts}, {self.device})"
        if self.core is None:
            text = self.function.assign("inside", text)
        return self.current(Tensor(text, (CHUNK, axis), is_bool=True))

    # statements

    def statements(self, body: Iterable[Statement]) -> None:
        body = tuple(body)
        here = Counter(v.name for s in body if isinstance(s, Let) for v in s.args)
        for statement in body:
            if isinstance(statement, Let):
                self.let(statement, {n for n in here if here[n] == self.count[n] == 1})
            elif isinstance(statement, Store):
                self.store(statement)
            else:
                self.loop(statement)

    def get(self, value: Value) -> Tensor:
        """The value where it stands; what was computed in this body for this one use is spare."""
        x = self.current(self.env[value.name])
        if not x.text.isidentifier():
            return x
        is_owned = value.name in self.owned and self.owned[value.name] is self.core
        return replace(x, is_spare=is_owned and self.count[value.name] == 1)

    def current(self, x: Tensor) -> Tensor:
        """x, or inside a loop its entry of this iteration."""
        if self.core is None or self.core.dim not in x.dims:
            return x
        key = f"{bare(x.text)}.unbind({x.dims.index(self.core.dim)})"
        if key not in self.core.unbound:
            wanted = x.text if x.text.isidentifier() else "x"
            self.core.unbound[key] = self.function.unique(f"{wanted}_{self.core.index}")
        dims = tuple(d for d in x.dims if d != self.core.dim)
        return Tensor(f"{self.core.unbound[key]}[{self.core.index}]", dims, x.is_complex, x.is_bool)

    def let(self, let: Let, inlined: set[str], target: Tensor | None = None) -> None:
        """One operation: a line, or part of the line that uses it. ``target``: the variable to assign anew."""
        if let.op == "load" and let.access is not None:
            self.env[let.out.name] = self.function.load(let.access, self.place, let.out.name)
            if any(entry == "time" for entry in let.access.index):
                self.padded.add(let.out.name)
            return
        if let.op == "valid" and let.args[0].name in self.padded and let.attr("fill") == 0:
            self.env[let.out.name] = self.get(let.args[0])
            return
        if let.op == "valid" and let.attr("fill") == 0:
            self.padded.add(let.out.name)
        args = tuple(self.get(a) for a in let.args)
        result = operation(let, args, self)
        overwritten = [a.text for a in args if a.text.isidentifier() and is_overwritten(a.text, result.text)]
        is_name = target is None and (result.is_number or result.text.isidentifier())
        if len(let.outs) > 1:
            self.bind_all(let, result)
        elif is_name or (target is None and not overwritten and self.is_inlined(let, result, inlined)):
            self.env[let.out.name] = result
            if any(a.is_spare and a.text == result.text for a in args):
                self.owned[let.out.name] = self.core
        elif target is None and overwritten and stem(let.out.name) == stem(overwritten[0]):
            self.overwrite(let, result, overwritten[0])
        else:
            self.bind(let, result, target)
        for name in overwritten:
            self.function.forget(name)

    def is_inlined(self, let: Let, result: Tensor, inlined: set[str]) -> bool:
        if result.after is not None:
            return True  # most often the mask itself is not needed
        is_small = let.op in OPERATORS or let.op in ("last", "index", "rename", "expand")
        return is_small and let.out.name in inlined and not let.comment and len(result.text) <= 48

    def bind(self, let: Let, result: Tensor, target: Tensor | None) -> None:
        note = self.note(let, result)
        if target is None:
            indent, is_new = (1, False) if self.core is None else (2, True)
            name = self.function.assign(let.out.name, result.text, note, indent, is_new)
            if self.function.own(name, (self.kernel.name, let.out.name)) and result.is_spare:
                self.owned[let.out.name] = self.core
            self.env[let.out.name] = replace(result, text=name, is_spare=False, factors=None)
        else:
            text = aligned(whole(result, target.dims, self), target.dims)
            self.function.line(f"{target.text} = {bare(text)}", note, 2)
            self.env[let.out.name] = target

    def overwrite(self, let: Let, result: Tensor, name: str) -> None:
        """``name.mul_(x)`` as a statement of its own: the variable is the new value from here on."""
        call = re.fullmatch(rf"{name}\.(add|sub|mul)_\((.*)\)", result.text)
        text = f"{name} {SIGNS[call[1]]}= {call[2]}" if call else result.text
        self.function.line(text, self.note(let, result), 1 if self.core is None else 2)
        self.function.owners[name] = (self.kernel.name, let.out.name)
        if self.function.own(name, (self.kernel.name, let.out.name)):
            self.owned[let.out.name] = self.core
        self.env[let.out.name] = replace(result, text=name, is_spare=False, factors=None)

    def bind_all(self, let: Let, result: Tensor) -> None:
        """Several results along an axis, or along its runs; those after its last row lack it."""
        names = [self.function.unique(v.name) for v in let.outs]
        self.function.line(f"{', '.join(names)} = {result.text}", self.note(let, result), 1 if self.core is None else 2)
        along = dict(let.attrs).get("runs", let.attr("axis"))
        without = tuple(d for d in result.dims if d != along)
        for value, name in zip(let.outs, names, strict=True):
            dims = result.dims if along in value.axes else without
            self.env[value.name] = Tensor(name, dims, result.is_complex)

    def note(self, let: Let, result: Tensor) -> str:
        used = dict(self.function.sizes)
        shape = f"[{', '.join(self.size(d) for d in result.dims)}]"
        self.function.sizes = used  # a comment defines no variable
        parts = [shape] if let.op in WITH_SHAPES and self.core is None else []
        return " ".join(parts + [let.comment] * bool(let.comment))

    def store(self, store: Store) -> None:
        dims = self.place.dims(store.access)
        value = whole(self.get(store.value), dims, self)
        text = aligned(value, dims)
        is_rows = time_part(self.place.form(store.access)) in ("rows", "chunk_step")
        if is_rows and store.access.buffer in self.function.loaded and store.value.name not in self.padded:
            # What is read back is zero past the last token.
            at = dims.index(CHUNK)
            text = f"_filled({bare(text)}, {self.size(TOKENS)}, {at}, {at + 1})"
        text = self.function.assign(store.access.buffer, text)
        if store.comment:
            self.function.lines[-1] += f"  # {store.comment}" if "#" not in self.function.lines[-1] else ""
        self.function.store(store.access, self.place, text)

    # loops

    def loop(self, loop: Loop) -> None:
        if self.core is not None or self.place.loop is not None:
            raise ValueError(f"{self.kernel.name}: a loop over {loop.over} inside another")
        parts, outer = split(loop), self.place
        self.place = Place(outer.on_grid, loop.over)
        self.statements(parts.before)
        stacked = self.recurrence(loop, parts.core, {v.name for s in parts.after for v in uses(s)})
        final = {c.phi.name: self.env[c.phi.name] for c in loop.carries}
        self.env.update(stacked)
        self.statements(parts.after)
        self.env.update(final)
        self.place = outer

    def recurrence(self, loop: Loop, body: tuple[Statement, ...], wanted: set[str]) -> dict[str, Tensor]:
        """The loop itself. Gives, for all iterations at once, the values that are wanted after it."""
        if not loop.carries:
            return {}
        function = self.function
        dim = CHUNK if loop.over == "chunks" else STEP
        core = Core(dim, function.spelled[dim])
        self.start(loop.carries)
        lists = self.lists(loop, body, wanted, core)
        at = len(function.lines)
        self.core = core
        targets = self.targets(loop, body)
        for carry in loop.carries:
            if carry.phi.name in lists and not shares_list(carry, lists):
                function.line(f"{lists[carry.phi.name]}.append({self.env[carry.phi.name].text})", indent=2)
        # A list of values before and after each step holds them all in the carried value's order.
        shared = {c.next.name: self.env[c.phi.name].dims for c in loop.carries if shares_list(c, lists)}
        here = Counter(v.name for s in body if isinstance(s, Let) for v in s.args)
        once = {n for n in here if here[n] == self.count[n] == 1 and n not in lists}
        for statement in body:
            if not isinstance(statement, Let):
                raise ValueError(f"{self.kernel.name}: a loop inside a loop over {loop.over}")
            self.let(statement, once, targets.get(statement.out.name))
            for name in defines(statement):
                if name in lists:
                    function.line(f"{lists[name]}.append({self.get_text(name, shared.get(name))})", indent=2)
        self.advance(loop, targets)
        self.core = None
        order = f"range({self.size(dim)})"
        order = f"reversed({order})" if loop.reverse else order
        head = [f"    {name} = {text}" for text, name in core.unbound.items()]
        head += [f"    {name} = {self.first(loop, phi, lists)}" for phi, name in unique_items(lists)]
        function.lines[at:at] = [*head, f"    for {core.index} in {order}:"]
        return self.stack(loop, lists, dim)

    def get_text(self, name: str, dims: tuple[str, ...] | None = None) -> str:
        """The value's text, laid out as ``dims`` where they are given."""
        value = self.current(self.env[name])
        return bare(value.text if dims is None else aligned(whole(value, dims, self), dims))

    def start(self, carries: tuple[Carry, ...]) -> None:
        """The carried values' variables, holding the initial ones."""
        for carry in carries:
            leads = (BATCH, HEAD, CHUNK) if self.place.on_grid else (BATCH, HEAD)
            dims = leads + carry.phi.axes
            init = whole(Tensor(**{**vars(self.get(carry.init)), "is_complex": carry.phi.is_complex}), dims, self)
            text = aligned(init, dims)
            name = self.function.assign(carry.phi.name, text, is_new=True)
            self.env[carry.phi.name] = Tensor(name, dims, carry.phi.is_complex)

    def lists(self, loop: Loop, body: tuple[Statement, ...], wanted: set[str], core: Core) -> dict[str, str]:
        """The list for each value that is wanted of all iterations; a carried value shares its next one's."""
        names: dict[str, str] = {}
        for carry in loop.carries:
            if carry.phi.name in wanted:
                names[carry.phi.name] = self.function.unique(f"{carry.phi.name}_{core.index}")
                if carry.next.name in wanted and any(carry.next.name in defines(s) for s in body):
                    names[carry.next.name] = names[carry.phi.name]
        for statement in body:
            for name in defines(statement):
                if name in wanted and name not in names:
                    names[name] = self.function.unique(f"{name}_{core.index}")
        return names

    def first(self, loop: Loop, name: str, lists: dict[str, str]) -> str:
        """What a list starts with: the initial value where it holds values before and after each step."""
        carry = next((c for c in loop.carries if c.phi.name == name), None)
        shared = carry is not None and shares_list(carry, lists)
        return f"[{self.env[name].text}]" if shared else "[]"

    def targets(self, loop: Loop, body: tuple[Statement, ...]) -> dict[str, Tensor]:
        """The next values that may overwrite the carried variable: nothing reads the old value after them."""
        found: dict[str, Tensor] = {}
        if self.place.on_grid and loop.over == "steps":
            return found
        for carry in loop.carries:
            reads = [i for i, s in enumerate(body) if any(v.name == carry.phi.name for v in uses(s))]
            sets = [i for i, s in enumerate(body) if isinstance(s, Let) and defines(s) == (carry.next.name,)]
            elsewhere = any(c.next.name == carry.phi.name for c in loop.carries)
            if sets and all(i <= sets[0] for i in reads) and not elsewhere and carry.next.name not in found:
                found[carry.next.name] = self.env[carry.phi.name]
        return found

    def advance(self, loop: Loop, targets: dict[str, Tensor]) -> None:
        """The end of the body: carried variables take their next values."""
        moved = [(self.env[c.phi.name], self.get(c.next), c) for c in loop.carries]
        moved = [(old, new, c) for old, new, c in moved if targets.get(c.next.name) != old]
        texts = []
        for old, new, _ in moved:
            text = bare(aligned(whole(new, old.dims, self), old.dims))
            if self.place.on_grid and loop.over == "steps":
                inside = self.current(self.inside_steps())
                text = f"torch.where({aligned(inside, old.dims)}, {text}, {old.text})"
            texts.append(text)
        if moved:
            self.function.line(f"{', '.join(old.text for old, _, _ in moved)} = {', '.join(texts)}", indent=2)
        for carry in loop.carries:
            self.function.forget(self.env[carry.phi.name].text)

    def inside_steps(self) -> Tensor:
        function = self.function
        counts = ", ".join(function.structural(letter) for letter in "TNC")
        return Tensor(f"_inside({counts}, {self.device})", (CHUNK, STEP), is_bool=True)

    def stack(self, loop: Loop, lists: dict[str, str], dim: str) -> dict[str, Tensor]:
        """The lists as tensors along the loop's dimension; before and after a step are two views of one."""
        found: dict[str, Tensor] = {}
        for name, listed in unique_items(lists):
            element = self.env[name]
            at = sum(d in LEADS for d in element.dims)
            items = f"{listed}[::-1]" if loop.reverse else listed
            self.function.line(f"{listed} = torch.stack({items}, {at})")
            dims = (*element.dims[:at], dim, *element.dims[at:])
            found[name] = Tensor(listed, dims, element.is_complex, element.is_bool)
        for carry in loop.carries:
            if shares_list(carry, lists):
                stacked = found[carry.phi.name]
                at = stacked.dims.index(dim)
                first, second = ("1:", ":-1") if loop.reverse else (":-1", "1:")
                colons = ":, " * at
                found[carry.phi.name] = Tensor(f"{stacked.text}[{colons}{first}]", stacked.dims, stacked.is_complex)
                found[carry.next.name] = Tensor(f"{stacked.text}[{colons}{second}]", stacked.dims, stacked.is_complex)
        return found


def is_overwritten(name: str, text: str) -> bool:
    """Whether ``text`` calls a method on the variable that changes it."""
    return re.search(rf"\b{name}(\.mT|\.transpose\([-\d, ]+\)|\.permute\([\d, ]+\))?\.[a-z0-9]+_\(", text) is not None


def stem(name: str) -> str:
    """A value's name without the number that tells it from others."""
    return re.sub(r"(_\d+)+$", "", name)


def shares_list(carry: Carry, lists: dict[str, str]) -> bool:
    """Whether one list holds the carried value before and after each step."""
    phi, following = carry.phi.name, carry.next.name
    return phi in lists and phi != following and lists.get(following) == lists[phi]


def unique_items(lists: dict[str, str]) -> list[tuple[str, str]]:
    """(value, list), each list once, under the first value that it holds."""
    seen: dict[str, str] = {}
    for value, listed in lists.items():
        seen.setdefault(listed, value)
    return [(value, listed) for listed, value in seen.items()]
