"""Checks and times recur's operators beside the installed hand-written kernels, on this GPU.

\b
    python -m bench.compare --out bench/results --minutes 20
    python -m bench.compare --accuracy --minutes 8

Every contestant gets the same bfloat16 inputs. Outputs, final states and gradients are compared with the step-by-step
definition in float64 at a ragged length; recur is timed only where it passes. Times are medians, with fresh sets of
inputs in turn where one would stay in the cache, eager and as CUDA graphs. Work happens in child processes; the files
in --out are rewritten after every row, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import click

from .operators import OPERATORS, ROOT, SHORT_LIST, TIMED, Operator, Shape, operator
from .peers import peers_of
from .report import Findings, plot, write
from .worker import MARK, Task, check_key

WARMING = 0.45  # of the time, at most, where timing follows
CHECKING = 0.4  # of what is left then, at most
LEAST_SHARE = 15.0  # seconds that an operator's times may take at least
FIRST_CALLS = 0.2  # of the time, kept for them
WORKER = (sys.executable, "-m", "bench.compare.worker")
WORKERS = 4  # at once, of which one times and the others get ready
GRACE = 20.0  # seconds that a worker gets past its deadline to finish what it started
VERSIONS = ("torch", "triton", "fla-core", "mlstm-kernels", "accelerated-scan", "mamba-ssm")


@dataclass
class Session:
    """One run: what was asked for, when it must end, and what has been found so far."""

    out: Path
    device: str
    ends: float
    findings: Findings
    log: Path
    common: dict[str, Any] = field(default_factory=dict)
    saving: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self) -> float:
        return self.ends - time.time()

    def add(self, what: Operator, event: dict[str, Any]) -> None:
        with self.saving:
            self.findings.add(what.name, event)
            write(self.out, self.findings)

    def fail(self, what: Operator, running: dict[str, Any], why: str) -> None:
        with self.saving:
            self.findings.fail(what.name, running, why)
            write(self.out, self.findings)

    def save(self) -> None:
        with self.saving:
            write(self.out, self.findings)

    def work(self, task: Task, seconds: float, environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """What a worker tells, as it tells it; at last {"event": "end", "how": "done" | "crashed" | "stopped"}."""
        ends = time.time() + max(seconds, 1.0)
        with self.log.open("a") as log:
            child = subprocess.Popen(
                WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True, bufsize=1,
                env=os.environ | (environment or {}),
            )  # fmt: skip
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(asdict(task)))
            child.stdin.close()
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
            stopped = False
            while True:
                try:
                    line = lines.get(timeout=None if stopped else max(0.0, ends - time.time()))
                except queue.Empty:
                    stopped = True
                    child.kill()
                    continue
                if line is None:
                    break
                _, mark, told = line.partition(MARK)
                if mark:
                    yield json.loads(told)
            code = child.wait()
            how = "stopped" if stopped else "done" if code == 0 else "crashed"
            if how != "done":
                log.write(f"worker {how}: {task.kind} {task.operator} {task.contestants} (status {code})\n")
            yield {"event": "end", "how": how}

    def task(self, kind: str, **asked: Any) -> Task:
        return Task(kind, self.device, **(self.common | asked))


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


@click.command(help=__doc__)
@click.option("--ops", default="", help="Operators of the zoo, by commas and in this order. Default: the short list.")
@click.option("--shapes", default="", help="Such as B4,T2048,H16,D128;B2,T16384,H8,D128/256. Default: two an operator.")
@click.option("--all", "everything", is_flag=True, help="All operators and all shapes.")
@click.option("--peers", default="all", help="Parts of peers' or packages' names, by commas; all; none.")
@click.option("--strategies", default="auto", help="recur's strategies to compare, by commas.")
@click.option("--peer-times", type=click.Path(exists=True, path_type=Path), help="An earlier compare.json of the same "
              "GPU model: its peers' times stand in, marked, for peers that this run does not measure.")  # fmt: skip
@click.option("--accuracy", is_flag=True, help="Only the comparison with float64, for every operator with a peer.")
@click.option("--profile", "profiled", is_flag=True, help="GPU time by kernel, of recur's runs.")
@click.option(
    "--first-call",
    type=click.Choice(["last", "only", "off"]),
    default="last",
    help="recur's first call in a new process, caches empty and warm: after the times; alone; not at all.",
)
@click.option(
    "--warm",
    "warming",
    type=click.Choice(["first", "only", "off"]),
    default="first",
    help="Compile and tune everything in parallel: first, for part of the time; and stop there; not at all.",
)
@click.option("--minutes", default=20.0, help="Nothing is started after this long.")
@click.option("--jobs", default=max(2, (os.cpu_count() or 4) - 2), help="Processes that compile.")
@click.option("--check-tokens", default=1000, help="The length at which results are checked.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", help="cpu: a smoke test, without peers.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "bench" / "results")
def main(
    ops: str, shapes: str, everything: bool, peers: str, strategies: str, peer_times: Path | None, accuracy: bool,
    profiled: bool, first_call: str, warming: str, minutes: float, jobs: int, check_tokens: int, device: str,
    out: Path,
) -> None:  # fmt: skip
    started = time.time()
    name = "accuracy" if accuracy else "first_call" if first_call == "only" else "compare"
    session = begin(out, device, name, check_tokens, profiled)
    whole = started + 60 * minutes
    session.ends = whole - (FIRST_CALLS * 60 * minutes if name == "compare" and first_call == "last" else 0)
    if peer_times is not None:
        session.findings.take_peer_times(peer_times)
    plan = make_plan(ops, shapes, everything, accuracy, () if device == "cpu" else tuple(peers.split(",")), strategies)
    with tempfile.NamedTemporaryFile(prefix="tuning") as lock:
        session.common["lock"] = lock.name
        if accuracy:
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(lambda row: compare(session, row[0], row[1], row[2], session.left), plan))
        elif name == "compare":
            wanted = warming != "off" and device == "cuda"
            cold = warm(session, plan, jobs, session.left * (1 if warming == "only" else WARMING)) if wanted else set()
            if warming == "only":
                return
            time_in_turn(session, plan, cold, jobs)
    if first_call != "off" and not accuracy:
        session.ends = whole
        for what, sizes, _ in plan:
            time_first_call(session, what, sizes[0])
    session.save()
    if not accuracy:
        plot(out, session.findings)
    click.echo(f"{time.time() - started:.0f} s; {out / session.findings.name}.md")


def begin(out: Path, device: str, name: str, check_tokens: int, profiled: bool) -> Session:
    """A session that knows its device and what that does at best."""
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what one process tunes, the others find
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{name}.log"
    log.write_text("")
    session = Session(out, device, time.time() + 120, Findings(name, about()), log)
    session.common = {"check_tokens": check_tokens, "timed": name == "compare", "profiled": profiled}
    for event in session.work(session.task("machine"), session.left):
        if event["event"] == "machine":
            session.findings.about |= {k: event[k] for k in ("device", "copy", "matmul")}
            session.common |= {k: event[k] for k in ("copy", "matmul")}
    if "device" not in session.findings.about:
        raise click.ClickException(f"nothing runs on {device}; see {log}")
    return session


def about() -> dict[str, Any]:
    versions = {}
    for package in VERSIONS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    command = " ".join(["python -m bench.compare", *sys.argv[1:]])
    return {"command": command, "python": platform.python_version(), "versions": versions}


Plan = list[tuple[Operator, tuple[Shape, ...], tuple[str, ...]]]


def make_plan(
    ops: str, shapes: str, everything: bool, accuracy: bool, peers: tuple[str, ...], strategies: str
) -> Plan:  # fmt: skip
    """Operators with their shapes and their contestants, recur first."""
    mine = tuple("recur" if s == "auto" else f"recur {s}" for s in strategies.split(","))
    chosen = OPERATORS if everything or accuracy else OPERATORS[:TIMED]
    plan: Plan = []
    for what in map(operator, ops.split(",")) if ops else chosen:
        sizes = what.shapes if everything else what.shapes[: 1 if accuracy else SHORT_LIST]
        sizes = tuple(map(Shape.parse, shapes.split(";"))) if shapes else sizes
        beside = tuple(p.name for p in peers_of(what.name, peers))
        if beside or not accuracy or ops:
            plan.append((what, sizes, (*mine, *beside)))
    return plan


def warm(session: Session, plan: Plan, jobs: int, seconds: float) -> set[tuple[str, str]]:
    """Compiles and tunes everything in parallel; gives the peers that did not get through in time."""
    ends = time.time() + seconds
    pairs = [(what, sizes, n) for what, sizes, names in plan for n in names]
    pairs.sort(key=lambda pair: pair[2].startswith("recur"))  # peers, whose tuning is long, first
    cold: set[tuple[str, str]] = set()

    def one(pair: tuple[Operator, tuple[Shape, ...], str]) -> str:
        what, sizes, name = pair
        start, left = time.time(), ends - time.time()
        if left < 5:
            cold.add((what.name, name))
            return f"{what.name}: {name}: not begun"
        task = session.task("warm", operator=what.name, shapes=labels(sizes), contestants=(name,))
        end = list(session.work(task, left))[-1]
        if end["how"] == "stopped" and not name.startswith("recur"):
            cold.add((what.name, name))
        return f"{what.name}: {name}: compiled in {time.time() - start:.0f} s ({end['how']})"

    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(one, pairs):
            click.echo(line)
    return {pair for pair in cold if not pair[1].startswith("recur")}


def labels(sizes: tuple[Shape, ...]) -> tuple[str, ...]:
    return tuple(s.label for s in sizes)


def check_in_parallel(session: Session, plan: Plan, jobs: int, seconds: float) -> dict[str, dict[str, bool]]:
    """Whether each operator's contestants, by `check_key`, compute what the definition does."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda row: compare(session, row[0], row[1], row[2], seconds, timed=False), plan))
    passed: dict[str, dict[str, bool]] = {what.name: {} for what, _, _ in plan}
    for found in session.findings.checks:
        key = check_key(found["contestant"], Shape.parse(found["shape"]))
        passed[found["operator"]][key] = not found["off"] and not found["failed"]
    return passed


def time_in_turn(session: Session, plan: Plan, cold: set[tuple[str, str]], jobs: int) -> None:
    """Checks all at once; then times operator after operator, each for its part of the time and half as much again."""
    ready = [(what, sizes, tuple(n for n in names if (what.name, n) not in cold)) for what, sizes, names in plan]
    for what, sizes, names in plan:
        for name, shape in ((n, s) for n in names if (what.name, n) in cold for s in sizes):
            skipped = {"contestant": name, "shape": shape.label, "skipped": "not compiled in time"}
            session.add(what, {"event": "row"} | skipped)
    passed = check_in_parallel(session, ready, jobs, CHECKING * session.left)
    share = max(LEAST_SHARE, 1.5 * session.left / len(plan))
    with tempfile.NamedTemporaryFile(prefix="turn") as turn, ThreadPoolExecutor(WORKERS) as pool:

        def one(row: tuple[Operator, tuple[Shape, ...], tuple[str, ...]]) -> None:
            what, sizes, names = row
            compare(session, what, sizes, names, session.left, checked=passed[what.name], turn=turn.name, share=share)

        list(pool.map(one, ready))


def compare(
    session: Session, what: Operator, sizes: tuple[Shape, ...], names: tuple[str, ...], seconds: float, **asked: Any
) -> None:
    """One operator's rows. A contestant that takes its worker down is noted, and the others go on without it."""
    ends = min(time.time() + seconds, session.ends)
    if time.time() >= ends:
        session.add(what, {"event": "note", "text": "not begun: out of time"})
    while names and time.time() < ends:
        about = {"operator": what.name, "shapes": labels(sizes), "contestants": names, "deadline": ends}
        running: dict[str, Any] = {}
        for event in session.work(session.task("measure", **about, **asked), ends + GRACE - time.time()):
            if event["event"] == "begin":
                running = event
            elif event["event"] == "end":
                break
            else:
                running = {} if event["event"] in ("check", "row") else running
                session.add(what, event)
        if event["how"] == "done":
            return
        if not running:
            session.add(what, {"event": "note", "text": f"worker {event['how']}; see {session.log.name}"})
            return
        session.fail(what, running, f"{event['how']} during {running['stage']}")
        if running["stage"] == "capture":
            return
        names = tuple(n for n in names if n != running["contestant"]) if event["how"] == "crashed" else ()


def time_first_call(session: Session, what: Operator, shape: Shape) -> None:
    """A fresh process with every cache empty, then another one with what the first has left on disk."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"RECUR_CACHE_DIR": f"{folder}/recur", "TRITON_CACHE_DIR": f"{folder}/triton"}
        for cache in ("empty", "warm"):
            if session.left < 5:
                return
            task = session.task("first_call", operator=what.name, shapes=(shape.label,))
            start = time.time()
            for event in session.work(task, min(session.left, 120), caches):
                if event["event"] == "first_call":
                    total = time.time() - start - event["inputs"]
                    found = event | {"cache": cache, "shape": shape.label, "total": total}
                    session.add(what, found)


if __name__ == "__main__":
    main()
