"""What the values of a kernel are called where it reads them: aligned, widened, masked, and carried round loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recur.codegen.triton_printer.complex_numbers import Pair
from recur.codegen.triton_printer.layout import Layout, align
from recur.codegen.triton_printer.padding import Fill, Fills
from recur.ir.tile import Loop, Value


@dataclass(frozen=True)
class Tile:
    """A printed value: its parts, its axes in layout order, and whether it is a number known at compile time.

    ``op``: the operation whose text stands for the value, where it has no name of its own.
    """

    parts: Pair
    axes: tuple[str, ...]
    is_number: bool = False
    op: str = ""


class Values:
    """The printed values of one kernel, by name; all state is what has been bound so far."""

    def __init__(self, layout: Layout, names: Mapping[str, str], padding: Mapping[str, Fills]) -> None:
        self.layout, self.names, self.padding = layout, names, padding
        self.tiles: dict[str, Tile] = {}

    # reading and naming

    def tile(self, value: Value) -> Tile:
        return self.tiles[value.name]

    def aligned(self, value: Value, axes: tuple[str, ...]) -> Pair:
        tile = self.tile(value)
        return tile.parts.map(lambda part: align(part, tile.axes, axes))

    def expanded(self, value: Value, axes: tuple[str, ...]) -> Pair:
        """The value in the full shape of ``axes``."""
        tile = self.tile(value)
        if tile.axes == axes and not tile.is_number:
            return tile.parts
        shape = self.layout.shape(axes)
        if not tile.axes:
            return tile.parts.map(lambda part: f"tl.full({shape}, {part}, tl.float32)")
        return self.aligned(value, axes).map(lambda part: f"tl.broadcast_to({part}, {shape})")

    def masked(self, value: Value, over: tuple[str, ...], fill: str = "0.0") -> Pair:
        """The value with ``fill`` on the padding of the axes ``over``."""
        tile = self.tile(value)
        masks = [align(self.layout.axes[a].mask, (a,), tile.axes) for a in tile.axes if a in over]
        if not masks:
            return tile.parts
        return tile.parts.map(lambda part: f"tl.where({' & '.join(masks)}, {part}, {fill})")

    def unclean(self, value: Value, over: tuple[str, ...], least: Fill = Fill.ZERO) -> tuple[str, ...]:
        """Those of the axes ``over`` along which the value's padding is not known to be ``least`` or better."""
        fills = self.padding[value.name]
        return tuple(a for a in over if a in value.axes and self.layout.axes[a].padded and fills[a] < least)

    def summable(self, x: Value, y: Value, over: tuple[str, ...]) -> tuple[Pair, Pair]:
        """x and y such that on the padding of ``over`` one is zero and the other is finite."""
        masks: dict[str, list[str]] = {x.name: [], y.name: []}
        for axis in over:
            if not self.layout.axes[axis].padded:
                continue
            clean = [v for v in (x, y) if axis in v.axes and not self.unclean(v, (axis,))]
            wild = [v for v in (x, y) if self.unclean(v, (axis,), Fill.FINITE)]
            to_mask = wild if clean or len(wild) == 2 else wild or [x if axis in x.axes else y]
            for v in to_mask:
                masks[v.name].append(axis)
        return self.masked(x, tuple(masks[x.name])), self.masked(y, tuple(masks[y.name]))

    def bind(self, out: Value, parts: Pair) -> list[str]:
        """Assigns the parts to the value's variable."""
        name = self.names[out.name]
        axes = self.layout.order(out.axes)
        if out.is_complex:
            self.tiles[out.name] = Tile(Pair(f"{name}_re", f"{name}_im"), axes)
            return [f"{name}_re = {bare(parts.re)}", f"{name}_im = {bare(parts.im or '0.0')}"]
        self.tiles[out.name] = Tile(Pair(name), axes)
        return [f"{name} = {bare(parts.re)}"]

    def alias(self, out: Value, parts: Pair, is_number: bool = False) -> list[str]:
        """The value is another name of what is already there: nothing to print."""
        self.tiles[out.name] = Tile(parts, self.layout.order(out.axes), is_number)
        return []

    # carried values

    def start_carries(self, loop: Loop) -> list[str]:
        lines: list[str] = []
        for carry in loop.carries:
            start = self.expanded(carry.init, self.layout.order(carry.phi.axes))
            lines += self._rebind(
                carry.phi,
                start
                if carry.phi.axes or not self.tile(carry.init).is_number
                else start.map(lambda part: f"tl.full((), {part}, tl.float32)"),
            )
        return lines

    def end_carries(self, loop: Loop) -> list[str]:
        """All carried values move at once: a next may be another one's previous."""
        targets: list[str] = []
        sources: list[str] = []
        for carry in loop.carries:
            target = self.tile(carry.phi).parts.parts()
            source = self.expanded(carry.next, self.layout.order(carry.phi.axes)).parts()
            moved = [(t, s) for t, s in zip(target, (*source, "0.0"), strict=False) if t != s]
            targets += [t for t, _ in moved]
            sources += [s for _, s in moved]
        if set(targets) & set(sources):
            return [f"{', '.join(targets)} = {', '.join(sources)}"]
        return [f"{t} = {s}" for t, s in zip(targets, sources, strict=True)]

    def _rebind(self, phi: Value, parts: Pair) -> list[str]:
        lines = self.bind(phi, parts)
        if phi.is_complex and parts.im is None:
            lines[1] = f"{lines[1].split(' = ')[0]} = tl.zeros_like({lines[0].split(' = ')[0]})"
        return [line for line in lines if len(set(line.split(" = ", 1))) == 2]


def bare(text: str) -> str:
    """The expression without parentheses that surround all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for position, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0 and position < len(text) - 1:
            return text
    return text[1:-1]
