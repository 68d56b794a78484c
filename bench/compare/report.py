"""Findings as JSON, Markdown and a plot."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = {"forward": "forward", "both": "forward + backward"}
WRONG = 0.1  # an output this far off computes something else, and is no peer to be compared with
CLOSER = 1.05  # errors within 5 % count as equal
Row = dict[str, Any]


@dataclass
class Findings:
    """Everything found so far. Rows are one contestant at one shape; the latest finding of a kind stands."""

    name: str
    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    checks: list[Row] = field(default_factory=list)
    floors: list[Row] = field(default_factory=list)
    first_calls: list[Row] = field(default_factory=list)
    profiles: list[Row] = field(default_factory=list)
    notes: list[Row] = field(default_factory=list)
    earlier: list[Row] = field(default_factory=list)

    def add(self, operator: str, event: dict[str, Any]) -> None:
        """One event of a worker."""
        kinds = {
            "row": self.rows,
            "check": self.checks,
            "floors": self.floors,
            "first_call": self.first_calls,
            "profile": self.profiles,
        }
        found = {"operator": operator} | {k: v for k, v in event.items() if k != "event"}
        kept = kinds.get(event["event"], self.notes)
        if kept is not self.notes:
            kept[:] = [r for r in kept if _key(r) != _key(found)]
        kept.append(found)

    def fail(self, operator: str, running: Row, why: str) -> None:
        """A contestant took its worker down; times that it has already stay."""
        row = {"contestant": running["contestant"], "shape": running["shape"]}
        had = next((r for r in self.rows if _key(r) == _key({"operator": operator} | row)), row)
        failed = "forward_graph_failed" if running["stage"] == "capture" else "skipped"
        self.add(operator, {"event": "row"} | had | {failed: why})

    def take_peer_times(self, path: Path) -> None:
        """The peers' rows of an earlier file, if it was written on the same GPU model."""
        found = json.loads(path.read_text())
        if found["about"].get("device") == self.about.get("device"):
            source = f"{path.name}: {found['about']['command']}"
            rows = [r for r in found["rows"] if not is_recur(r) and "forward_ms" in r]
            self.earlier = [r | {"earlier": source} for r in rows]

    def rows_of(self, operator: str, shape: str) -> list[Row]:
        """This run's rows, then those of an earlier run that it does not replace."""
        mine = [r for r in self.rows if (r["operator"], r["shape"]) == (operator, shape)]
        timed = {r["contestant"] for r in mine if "forward_ms" in r}
        kept = [r for r in mine if "forward_ms" in r or not self._earlier(operator, shape, r["contestant"])]
        older = [r for r in self._earlier(operator, shape) if r["contestant"] not in timed]
        return sorted(kept, key=lambda r: not is_recur(r)) + older

    def _earlier(self, operator: str, shape: str, contestant: str | None = None) -> list[Row]:
        return [
            r
            for r in self.earlier
            if (r["operator"], r["shape"]) == (operator, shape) and contestant in (None, r["contestant"])
        ]

    def check_of(self, row: Row) -> Row | None:
        """The check of a row's contestant: the one at its head dims."""
        same = [c for c in self.checks if (c["operator"], c["contestant"]) == (row["operator"], row["contestant"])]
        return next((c for c in same if _per_token(c["shape"]) == _per_token(row["shape"])), None)

    def floors_of(self, operator: str, shape: str) -> Row | None:
        return next((f for f in self.floors if (f["operator"], f["shape"]) == (operator, shape)), None)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("operator", "contestant", "shape", "stage", "cache"))


def _per_token(shape: str) -> str:
    return shape.partition(" H")[2]


def is_recur(row: Row) -> bool:
    return str(row["contestant"]).split()[0] == "recur"


# --- comparison -------------------------------------------------------------------------------------------------------


def best(rows: list[Row], quantity: str, findings: Findings) -> Row | None:
    """The row with the least of a quantity, among peers that compute the same function."""
    fit = [r for r in rows if not is_recur(r) and not is_yardstick(r) and _same(r, findings)]
    fit = [r for r in fit if r.get(quantity) is not None]
    return min(fit, key=lambda r: r[quantity], default=None)


def is_yardstick(row: Row) -> bool:
    return row["contestant"] == "torch attention"


def _same(row: Row, findings: Findings) -> bool:
    check = findings.check_of(row)
    return check is None or check["errors"].get("output", math.inf) < WRONG


def summary(findings: Findings) -> list[Row]:
    """For every operator, shape and strategy of recur: ratios to the best peer and to the floors."""
    found = []
    for row in findings.rows:
        if not is_recur(row) or "forward_ms" not in row:
            continue
        rows = findings.rows_of(row["operator"], row["shape"])
        floor = findings.floors_of(row["operator"], row["shape"]) or {}
        line: Row = {k: row[k] for k in ("operator", "shape", "contestant")}
        for stage in STAGES:
            for quantity in (f"{stage}_ms", f"{stage}_graph_ms"):
                peer = best(rows, quantity, findings)
                if peer is not None and quantity in row:
                    line[quantity] = peer[quantity] / row[quantity]
                    line[f"{quantity} peer"] = peer["contestant"] + (" †" if "earlier" in peer else "")
            fastest = min(row.get(f"{stage}_ms", math.inf), row.get(f"{stage}_graph_ms", math.inf))
            for kind in ("memory", "arithmetic"):
                least = floor.get(f"{stage}_{kind}")
                if least and math.isfinite(fastest):
                    line[f"{stage}_{kind}"] = fastest / least
        lean = best(rows, "peak_mb", findings)
        if lean is not None and row.get("peak_mb"):
            line["memory"] = lean["peak_mb"] / row["peak_mb"]
        found.append(line)
    return found


def accuracy(findings: Findings) -> list[Row]:
    """Quantity by quantity, recur's error beside the most accurate peer's."""
    found = []
    for mine in (c for c in findings.checks if is_recur(c)):
        beside = [
            c
            for c in findings.checks
            if not is_recur(c) and (c["operator"], c["shape"]) == (mine["operator"], mine["shape"])
        ]
        for quantity, error in mine["errors"].items():
            fit = [c for c in beside if quantity in c["errors"]]
            peer = min(fit, key=lambda c: _finite(c["errors"][quantity]), default=None)
            line: Row = {"operator": mine["operator"], "shape": mine["shape"], "contestant": mine["contestant"]}
            line |= {"quantity": quantity, "recur": error}
            if peer is not None:
                other = peer["errors"][quantity]
                closer = "recur" if error * CLOSER < other or other != other else "peer"
                equal = error <= other * CLOSER and other <= error * CLOSER
                line |= {"peer": peer["contestant"], "error": other, "closer": "equal" if equal else closer}
            found.append(line)
    return found


def _finite(x: float) -> float:
    return x if math.isfinite(x) else math.inf


# --- writing ----------------------------------------------------------------------------------------------------------


def write(folder: Path, findings: Findings) -> None:
    """NAME.json and NAME.md."""
    content = {k: v for k, v in vars(findings).items() if k not in ("name", "earlier")}
    content |= {"earlier": findings.earlier, "summary": summary(findings), "accuracy": accuracy(findings)}
    _replace(folder / f"{findings.name}.json", json.dumps(content, indent=1) + "\n")
    _replace(folder / f"{findings.name}.md", markdown(findings))


def _replace(path: Path, text: str) -> None:
    """At once, so that a run that is killed leaves a whole file."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def markdown(findings: Findings) -> str:
    parts = [heading(findings)]
    if findings.rows:
        parts += [summary_table(findings), times_table(findings)]
    if findings.checks:
        parts += [accuracy_table(findings), checks_table(findings)]
    if findings.first_calls:
        parts.append(first_call_table(findings))
    parts += [profile_table(p) for p in findings.profiles]
    if findings.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {n['operator']}: {n.get('text', n)}" for n in findings.notes))
    return "\n\n".join(parts) + "\n"


def heading(findings: Findings) -> str:
    about = findings.about
    versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
    titles = {"accuracy": "recur and its peers against float64", "first_call": "recur's first call"}
    lines = [f"# {titles.get(findings.name, 'recur beside its peers')}", ""]
    lines += [f"`{about['command']}`", "", f"{about.get('device', 'no device')}; Python {about['python']}, {versions}."]
    if "copy" in about:
        copy, matmul = about["copy"] / 1e12, about["matmul"] / 1e12
        lines.append(f"Copies {copy:.2f} TB/s, multiplies bfloat16 at {matmul:.0f} TFLOP/s.")
    lines += [
        "",
        "bfloat16 inputs, the same for all. recur evaluates a recurrence's coefficients inside its kernels; a peer "
        "gets them ready, and only its kernels are timed. A dash: not measured. †: from an earlier run on the same GPU "
        "model.",
    ]
    return "\n".join(lines)


def summary_table(findings: Findings) -> str:
    """Ratios above 1 are recur's advantage over the peers, and its distance from the floors."""
    titles = ["operator", "shape", "recur"]
    titles += [f"{s}: times faster than the best peer, eager (graph)" for s in STAGES.values()]
    titles += [f"{s}: times the memory (arithmetic) floor" for s in STAGES.values()] + ["memory: leanest peer / recur"]
    rows = []
    for line in summary(findings):
        cells = [line["operator"], line["shape"], _strategy(line)]
        for stage in STAGES:
            eager, graph = _number(line.get(f"{stage}_ms")), _number(line.get(f"{stage}_graph_ms"))
            cells.append(f"{eager} ({graph}) {line.get(f'{stage}_ms peer', '')}".strip())
        for stage in STAGES:
            cells.append(f"{_number(line.get(f'{stage}_memory'))} ({_number(line.get(f'{stage}_arithmetic'))})")
        rows.append([*cells, _number(line.get("memory"))])
    return "## Ratios\n\n" + table(titles, rows)


def _strategy(row: Row) -> str:
    return str(row["contestant"]).removeprefix("recur").strip() or "auto"


def times_table(findings: Findings) -> str:
    titles = ["operator", "shape", "contestant", "forward ms", "graph", "fwd + bwd ms", "graph", "peak MiB", "remarks"]
    rows = []
    for operator, shape in dict.fromkeys((r["operator"], r["shape"]) for r in findings.rows):
        floor = findings.floors_of(operator, shape)
        if floor is not None:
            arithmetic = f"arithmetic {floor['forward_arithmetic']:.3f}, {floor['both_arithmetic']:.3f}"
            forward, both = _time(floor["forward_memory"]), _time(floor["both_memory"])
            rows.append([operator, shape, "*memory floor*", forward, "", both, "", "", arithmetic])
        for r in findings.rows_of(operator, shape):
            names = ("forward_ms", "forward_graph_ms", "both_ms", "both_graph_ms")
            peak = "-" if r.get("peak_mb") is None else f"{r['peak_mb']:.0f}"
            times = [_time(r.get(n)) for n in names]
            rows.append([operator, shape, r["contestant"], *times, peak, remarks(r, findings)])
    return "## Times\n\n" + table(titles, rows)


def remarks(row: Row, findings: Findings) -> str:
    from .peers import GUARDED, PEERS

    check = findings.check_of(row)
    found = [f"† {row['earlier']}"] if "earlier" in row else []
    found += [row["skipped"]] if "skipped" in row else []
    peer = next((p for p in PEERS if (p.recurrence, p.name) == (row["operator"], row["contestant"])), None)
    if peer is not None:
        found += [peer.note] if peer.note else []
        found += [GUARDED] if peer.guarded else []
    if check is not None and (check["off"] or check["failed"]):
        found.append(f"off in its check: {', '.join(check['off'])} {check['failed']}".strip())
    if is_recur(row):
        found += off_from_peers(row, findings)
    found += [f"no gradient: {row['no_gradient']}"] if "no_gradient" in row else []
    for stage in STAGES:
        if f"{stage}_graph_failed" in row:
            found.append(f"{STAGES[stage]} not captured: {row[f'{stage}_graph_failed']}")
    if row.get("apart"):
        worst = max(row["apart"].items(), key=lambda item: item[1])
        off = f", over the limit: {', '.join(row['apart_off'])}" if row["apart_off"] else ""
        found.append(f"at this shape at most {worst[1]:.1e} ({worst[0]}) from recur{off}")
    return "; ".join(found)


def off_from_peers(row: Row, findings: Findings) -> list[str]:
    """A remark where, at the timed shape, no peer that passed its check agrees with recur."""
    rows = [r for r in findings.rows_of(row["operator"], row["shape"]) if r.get("apart") and "earlier" not in r]
    checks = [(r, findings.check_of(r)) for r in rows]
    passed = [r for r, check in checks if check is not None and not check["off"] and not check["failed"]]
    return ["off from every peer at this shape"] if passed and all(r["apart_off"] for r in passed) else []


def accuracy_table(findings: Findings) -> str:
    titles = ["operator", "quantity", "recur's error", "most accurate peer", "its error", "closer"]
    lines = sorted(accuracy(findings), key=lambda a: a.get("closer") != "peer")  # what is to be explained, first
    rows = [
        [a["operator"] + _of_strategy(a), a["quantity"], _error(a["recur"]), a.get("peer", "-"), _error(a.get("error")),
         a.get("closer", "-")]
        for a in lines
    ]  # fmt: skip
    compared = [a for a in lines if "closer" in a]
    counts = {k: sum(a["closer"] == k for a in compared) for k in ("recur", "equal", "peer")}
    text = f"RMS(reference - found) / RMS(reference). Closer: {', '.join(f'{k} {n}' for k, n in counts.items())}."
    return f"## Errors against float64\n\n{text}\n\n" + table(titles, rows)


def _of_strategy(row: Row) -> str:
    return "" if _strategy(row) == "auto" else f" ({_strategy(row)})"


def checks_table(findings: Findings) -> str:
    titles = ["operator", "contestant", "tokens", "output", "worst state", "worst gradient", "verdict"]
    rows = []
    for c in findings.checks:
        worst = [_worst(c["errors"], kind) for kind in ("output", "state", "gradient")]
        verdict = "ok" if not c["off"] and not c["failed"] else f"off: {', '.join(c['off'])} {c['failed']}"
        rows.append([c["operator"], c["contestant"], c.get("tokens", "-"), *worst, verdict])
    return "## Checks\n\n" + table(titles, rows)


def _worst(errors: dict[str, float], kind: str) -> str:
    found = {n: e for n, e in errors.items() if n.split()[0] == kind}
    if not found:
        return "-"
    name = max(found, key=lambda n: _finite(found[n]))
    return f"{_error(found[name])} {name.partition(' ')[2]}".strip()


def first_call_table(findings: Findings) -> str:
    titles = ["operator", "caches", "seconds in all", "imports", "forward and backward"]
    rows = [
        [f["operator"], f["cache"], f"{f['total']:.1f}", f"{f['imports']:.1f}", f"{f['call']:.1f}"]
        for f in findings.first_calls
    ]
    text = "A fresh process, imports and the GPU's start counted, drawing the inputs not.\n\n"
    return "## First call\n\n" + text + table(titles, rows)


def profile_table(found: Row) -> str:
    title = f"## Kernels: {found['operator']}, {found['shape']}, {found['contestant']}, {STAGES[found['stage']]}"
    total = sum(k["microseconds"] for k in found["kernels"])
    rows = [
        [k["kernel"], k["launches"], f"{k['microseconds']:.1f}", f"{100 * k['microseconds'] / total:.0f} %", *limits(k)]
        for k in found["kernels"]
    ]
    titles = ["kernel", "launches", "microseconds", "of the GPU's time", "its memory floor", "its arithmetic floor",
              "programs", "steps", "what limits it"]  # fmt: skip
    return f"{title}\n\n" + table(titles, rows)


NEAR = 1.7  # times a floor: a kernel that takes no longer is limited by it


def limits(kernel: Row) -> list[str]:
    """Its floors, and the larger one where that is near: what takes much longer waits for its own steps."""
    if "memory" not in kernel:
        return [""] * 5
    floors = {"bytes": kernel["memory"], "arithmetic": kernel["arithmetic"]}
    name = max(floors, key=lambda n: floors[n])
    reason = name if kernel["microseconds"] <= NEAR * floors[name] else "latency"
    return [*(f"{x:.1f}" for x in floors.values()), f"{kernel['programs']}", f"{kernel['steps']}", reason]


def table(titles: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, rows)])


def _time(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _error(x: float | None) -> str:
    return "-" if x is None else f"{x:.1e}"


# --- the plot ---------------------------------------------------------------------------------------------------------


def plot(folder: Path, findings: Findings) -> None:
    """NAME.png: recur's advantage over the best peer, and its distance from the memory floor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = summary(findings)
    if not lines:
        return
    labels = [f"{x['operator']}{_of_strategy(x)}\n{x['shape']}" for x in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 1.5 + 0.45 * len(lines)), sharey=True)
    for offset, (stage, title) in zip((-0.2, 0.2), STAGES.items(), strict=True):
        places = [i + offset for i in range(len(lines))]
        left.barh(places, [x.get(f"{stage}_ms", 0.0) for x in lines], height=0.38, label=f"{title}, eager")
        graphs = [(i, x[f"{stage}_graph_ms"]) for i, x in zip(places, lines, strict=True) if f"{stage}_graph_ms" in x]
        left.plot([g for _, g in graphs], [i for i, _ in graphs], "k|", markersize=11, markeredgewidth=2)
        right.barh(places, [x.get(f"{stage}_memory", 0.0) for x in lines], height=0.38, label=title)
    left.set_yticks(range(len(lines)), labels, fontsize=8)
    left.invert_yaxis()
    for axes, title in ((left, "times faster than the best peer (bars: eager, marks: graphs)"),
                        (right, "times the memory floor")):  # fmt: skip
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / f"{findings.name}.png", dpi=110)
    plt.close(figure)
