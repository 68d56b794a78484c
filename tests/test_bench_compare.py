"""bench/compare: its table of peers, its checks and its reports, as far as they go without a GPU and without peers."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import decode
from bench.compare import __main__ as command
from bench.compare import check, measure, report, worker
from bench.compare.operators import OPERATORS, Operator, Shape, draw, load, operator
from bench.compare.peers import PEERS, Peer, recur_itself

TINY = Shape(1, 9, 2, 4)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a worker tells, as its parent reads it."""
    events: list[dict[str, Any]] = []

    def tell(event: str, **found: Any) -> None:
        events.append(json.loads(json.dumps({"event": event, **found})))

    monkeypatch.setattr(worker, "tell", tell)
    return events


def small(what: Operator) -> Operator:
    return Operator(what.name, what.products, what.gates, tuple((d, min(n, 4)) for d, n in what.sizes))


@pytest.mark.parametrize("text", ["B4,T2048,H16,D128", "B4 T2048 H8 D128/256"])
def test_shapes_read_back(text: str) -> None:
    assert Shape.parse(text).label == text.replace(",", " ")


def test_every_peer_has_an_operator_and_every_gate_is_an_input() -> None:
    assert {p.recurrence for p in PEERS} <= {o.name for o in OPERATORS}
    for what in OPERATORS:
        assert set(what.gates) <= {v.name for v in load(what).recurrence.inputs}, what.name


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: f"{p.recurrence}-{p.name}")
def test_peers_get_their_tensors_ready(peer: Peer) -> None:
    what = small(operator(peer.recurrence))
    inputs = draw(load(what), what, TINY, "cpu")
    prepared = list(peer.prepare(inputs, peer.derived).values())
    assert all(torch.isfinite(x).all() and x.dtype in (torch.bfloat16, torch.float32) for x in prepared)


@pytest.mark.parametrize("name", ["hgrn", "mingru", "minlstm", "gateloop_real"])
def test_scans_get_the_recurrences_own_coefficients(name: str) -> None:
    what = operator(name)
    op = load(what)
    inputs = {n: x.double() for n, x in draw(op, what, TINY, "cpu").items()}
    (peer,) = (p for p in PEERS if (p.recurrence, p.name) == (name, "accelerated-scan, f32"))
    prepared = peer.prepare(inputs, torch.float64)
    h, states = torch.zeros_like(prepared["inputs"][..., 0]), []
    for forget, added in zip(prepared["forget"].unbind(-1), prepared["inputs"].unbind(-1), strict=True):
        h = forget * h + added
        states.append(h)
    output = peer.finish(torch.stack(states, -1), inputs)
    assert check.rms_ratio(output, op.reference(**inputs)[0]) < 1e-6  # coefficients are computed in float32


def test_long_inputs_repeat_the_drawn_tokens() -> None:
    what = operator("simple_gla")
    long = draw(load(what), what, Shape(1, 2100, 1, 4), "cpu")
    assert long["g"].shape == (1, 2100, 1) and long["q"].is_contiguous()
    assert torch.equal(long["q"][:, :1024], long["q"][:, 1024:2048])


def test_a_worker_checks_and_times(told: list[dict[str, Any]]) -> None:
    task = worker.Task(
        "measure", "cpu", operator="gated_delta_net", shapes=("B1 T9 H3 D4",), contestants=("recur",), check_tokens=7,
        budget=1.0,
    )  # fmt: skip
    worker.measure(task)
    (checked,) = (e for e in told if e["event"] == "check")
    (row,) = (e for e in told if e["event"] == "row")
    assert checked["off"] == [] and {"output", "state S", "gradient g"} <= checked["errors"].keys()
    assert row["forward_ms"] > 0 and row["both_ms"] > 0


def test_a_wrong_result_is_not_timed(told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = check.exact
    monkeypatch.setattr(check, "exact", lambda *args: check.Result(1.02 * exact(*args).output))
    worker.measure(worker.Task("measure", "cpu", operator="simple_gla", shapes=("B1 T9 H1 D4",), contestants=("recur",),
                               check_tokens=7))  # fmt: skip
    assert next(e for e in told if e["event"] == "check")["off"] == ["output"]
    assert [e["skipped"] for e in told if e["event"] == "row"] == ["fails its check"]


def test_the_definition_on_some_heads_judges_those_heads() -> None:
    what = operator("mamba2")  # has params, which have no time axis
    op = load(what)
    inputs = draw(op, what, Shape(1, 9, 3, 4), "cpu")
    found = check.run(recur_itself(op, "auto", "torch", "recur"), inputs)
    errors = check.errors(check.on_heads(found, op, [0, 2]), check.exact(op, inputs, [0, 2]))
    assert check.over_limit(errors, what) == []
    assert "gradient A_log" in errors and "state h" in errors


def test_limits_tell_gates_from_vectors() -> None:
    what = operator("simple_gla")
    found = {"output": 0.006, "gradient q": 0.01, "gradient g": 0.01, "state S": float("nan")}
    assert check.over_limit(found, what) == ["output", "gradient q", "state S"]


# --- child processes -----------------------------------------------------------------------------------------------

FAULTY = """
import json, sys, time
task = json.load(sys.stdin)
for name in task["contestants"]:
    print("noise")
    for event in ({"event": "begin", "stage": "time"}, {"event": "row", "forward_ms": 1.0}):
        if name == "crashes" and event["event"] == "row":
            sys.exit(3)
        if name == "hangs" and event["event"] == "row":
            time.sleep(60)
        print("@@ " + json.dumps(event | {"contestant": name, "shape": "B1 T9 H1 D4"}), flush=True)
"""


@pytest.mark.parametrize("culprit", ["crashes", "hangs"])
def test_a_contestant_that_takes_its_worker_down_costs_itself(
    culprit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "WORKER", (sys.executable, "-c", FAULTY))
    monkeypatch.setattr(command, "GRACE", 0.5)
    found = report.Findings("compare", {"command": "x", "python": "3"})
    session = command.Session(tmp_path, "cpu", time.time() + 60, found, tmp_path / "log")
    seconds = 2.0 if culprit == "hangs" else 30.0
    command.compare(session, operator("gla"), (Shape.parse("B1 T9 H1 D4"),), ("first", culprit, "last"), seconds)
    rows = {r["contestant"]: r for r in found.rows}
    assert rows["first"]["forward_ms"] == 1.0
    assert rows[culprit]["skipped"] == f"{'stopped' if culprit == 'hangs' else 'crashed'} during time"
    assert ("last" in rows) == (culprit == "crashes")
    assert (tmp_path / "compare.md").exists()


# --- reports ----------------------------------------------------------------------------------------------------------


def findings() -> report.Findings:
    found = report.Findings("compare", {"command": "x", "python": "3", "device": "H100", "copy": 3e12, "matmul": 7e14})
    shape = {"shape": "B4 T2048 H16 D128"}
    errors = {"output": 0.002, "gradient g": 0.003}
    for name, scale in (("recur", 1.0), ("fla chunk_simple_gla", 2.0), ("something else", 50.0)):
        checked = {k: scale * e for k, e in errors.items()}
        verdict = {"errors": checked, "off": [], "failed": ""}
        found.add("simple_gla", {"event": "check", "contestant": name, **shape, **verdict})
    times = {"forward_ms": 0.1, "both_ms": 0.4, "forward_graph_ms": 0.08, "peak_mb": 100.0}
    found.add("simple_gla", {"event": "row", "contestant": "recur", **shape, **times})
    found.add("simple_gla", {"event": "row", "contestant": "fla chunk_simple_gla", **shape, "forward_ms": 0.3})
    found.add("simple_gla", {"event": "row", "contestant": "something else", **shape, "forward_ms": 0.01})
    floors = {"forward_memory": 0.05, "both_memory": 0.1, "forward_arithmetic": 0.01, "both_arithmetic": 0.03}
    found.add("simple_gla", {"event": "floors", **shape, **floors})
    return found


def test_the_summary_compares_with_the_best_peer_that_computes_the_same() -> None:
    (line,) = report.summary(findings())
    assert line["forward_ms"] == pytest.approx(3.0) and line["forward_ms peer"] == "fla chunk_simple_gla"
    assert line["forward_memory"] == pytest.approx(1.6)
    assert "both_ms" not in line
    assert {a["closer"] for a in report.accuracy(findings())} == {"recur"}


def test_a_later_finding_replaces_the_earlier_one() -> None:
    found = findings()
    found.add("simple_gla", {"event": "row", "contestant": "recur", "shape": "B4 T2048 H16 D128", "skipped": "crashed"})
    assert [r.get("skipped") for r in found.rows if r["contestant"] == "recur"] == ["crashed"]


def test_a_fault_while_capturing_leaves_the_eager_times() -> None:
    found = findings()
    running = {"contestant": "recur", "shape": "B4 T2048 H16 D128", "stage": "capture"}
    found.fail("simple_gla", running, "crashed during capture")
    (row,) = (r for r in found.rows if r["contestant"] == "recur")
    assert row["forward_ms"] == 0.1 and row["forward_graph_failed"] == "crashed during capture"


def test_earlier_peer_times_stand_in_and_are_marked(tmp_path: Path) -> None:
    report.write(tmp_path, findings())
    later = report.Findings("compare", {"command": "y", "python": "3", "device": "H100"})
    later.take_peer_times(tmp_path / "compare.json")
    later.add("simple_gla", {"event": "row", "contestant": "recur", "shape": "B4 T2048 H16 D128", "forward_ms": 0.15})
    (line,) = report.summary(later)
    assert line["forward_ms peer"].endswith("†")
    other = report.Findings("compare", {"command": "y", "python": "3", "device": "H200"})
    other.take_peer_times(tmp_path / "compare.json")
    assert other.earlier == []


def test_reports_are_written_whole(tmp_path: Path) -> None:
    report.write(tmp_path, findings())
    assert {p.name for p in tmp_path.iterdir()} == {"compare.json", "compare.md"}
    text = (tmp_path / "compare.md").read_text()
    assert "| simple_gla | B4 T2048 H16 D128 | auto | 3.00 (-) fla chunk_simple_gla |" in text
    assert json.loads((tmp_path / "compare.json").read_text())["summary"]


def test_a_kernel_far_from_both_floors_waits() -> None:
    kernel = {"kernel": "k", "launches": 1, "memory": 10.0, "arithmetic": 4.0, "programs": 64, "steps": 32}
    assert report.limits(kernel | {"microseconds": 12.0}) == ["10.0", "4.0", "64", "32", "bytes"]
    assert report.limits(kernel | {"microseconds": 12.0, "arithmetic": 11.0})[-1] == "arithmetic"
    assert report.limits(kernel | {"microseconds": 40.0})[-1] == "latency"
    assert report.limits({"kernel": "of another library", "microseconds": 12.0}) == [""] * 5


@pytest.mark.parametrize("name", ["gla", "delta_net"])
def test_kernels_have_floors(name: str) -> None:
    op, what = load(operator(name)), operator(name)
    found = measure.kernel_floors(op, TINY, draw(op, what, TINY, "cpu"), measure.Machine(1e12, 1e14))
    assert found and all(k["memory"] > 0 and k["steps"] > 0 for k in found.values())


@pytest.mark.parametrize("name", ["gla", "mlstm_sig"])
def test_decoding_is_judged_by_output_and_state(name: str) -> None:
    op, what = load(operator(name)), operator(name)
    inputs = draw(op, what, Shape(4, 1, 2, 8), "cpu")
    per_token = {v.name for v in op.recurrence.inputs if v.role == "input"}
    token = {n: x.squeeze(1) if n in per_token else x for n, x in inputs.items()}
    with torch.no_grad():
        _, state = op.step(None, **token)
        output, final = op.step(state, **token)
    assert decode.judge(op, inputs, state, (output, final)) < decode.LIMIT
    wrong = {n: 1.1 * x for n, x in decode.entries(final).items()}
    assert decode.judge(op, inputs, state, (output, wrong if isinstance(final, dict) else wrong["state"])) > 0.05
