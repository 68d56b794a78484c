"""Verified tuning: the search, what is stored, the child process, the checks. No GPU: what needs one is a stand-in."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from mock_gpu import mock_gpu

import recur
from recur.cli.main import cli
from recur.compiler import compile_program
from recur.inspection import print_source
from recur.ir.normal import Program
from recur.ir.plan import Plan
from recur.runtime import build, load
from recur.runtime.arguments import bind_arguments
from recur.runtime.tuning import autotune, records, trial, tune
from recur.runtime.tuning.records import Case, Failure
from recur.runtime.tuning.search import Outcome, TuningError, search
from recur.runtime.tuning.space import EFFORTS, Change, Effort, default_configs, from_plain, launches, to_plain
from recur.runtime.tuning.worker import Poisoned, Worker
from recur.strategies.select import select

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton was imported to interpret")

LINEAR = """
recurrence linear:
    dim    K, V
    input  q[K], k[K], v[V]
    input  g in (-inf, 0]
    state  S[K, V]
    S = exp(g) * S + outer(k, v)
    output o = q @ S
"""
RENAMED = """
recurrence memory:
    "The same, in other words."
    dim    D, E
    input  a[D], b[D], c[E]
    input  gate in (-inf, 0]
    state  M[D, E]
    M = exp(gate) * M + outer(b, c)
    output found = a @ M
"""
SUMS = """
recurrence sums:
    dim    D
    input  x[D], f[D] in (0, 1)
    state  s[D]
    s = f * s + x
    output o = s
"""
SIZES = {"K": 32, "V": 32}
SMALL = Effort(chunks=(32, 64), warps=(4,), stages=(2, 3), widths=(32,), rounds=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path))
    load._loaded.clear()
    records.fingerprint.cache_clear()
    yield tmp_path
    records.fingerprint.cache_clear()


def program_of(text: str) -> Program:
    return compile_program(recur.loads(text).recurrence)


def plans_of(program: Program, sizes: dict[str, int]) -> tuple[Plan, ...]:
    return tuple(s.plan for s in select(program, sizes))


def case(**changes: Any) -> Case:
    bf16 = ("bfloat16",) * 4
    return replace(Case((32, 32), bf16, 5, 14, "NVIDIA H100", "3.6.0"), **changes)


# --- the space and the search -----------------------------------------------------------------------------------------


def test_plain_values_have_no_names() -> None:
    mine, other = program_of(LINEAR), program_of(RENAMED)
    configs = default_configs(plans_of(mine, SIZES), SIZES)
    plain = json.loads(json.dumps(to_plain(configs)))
    assert from_plain(plain, plans_of(mine, SIZES), SIZES) == configs
    sizes = {"D": 32, "E": 32}
    assert from_plain(plain, plans_of(other, sizes), sizes) == default_configs(plans_of(other, sizes), sizes)
    with pytest.raises(ValueError):
        from_plain([*plain, *plain], plans_of(mine, SIZES), SIZES)


def test_launches_are_all_that_there_are() -> None:
    plans = plans_of(program_of(LINEAR), SIZES)
    (config,) = default_configs(plans, SIZES)
    for kernel in plans[0].forward + plans[0].backward:
        found = list(launches(kernel, config, EFFORTS["full"]))
        assert len(set(found)) == len(found) >= 10
        ways = {(launch.num_warps, launch.num_stages) for launch in found}
        assert ways == set(itertools.product(EFFORTS["full"].warps, EFFORTS["full"].stages))


class Bench:
    """Every configuration takes a second, less what its launches save; some are refused, some fail."""

    def __init__(self, seconds: Callable[[Change], float], refused: Callable[[Change], bool] = lambda _: False) -> None:
        self.seconds, self.refused = seconds, refused
        self.measured: list[Change] = []

    def compile(self, changes: Sequence[Change]) -> list[str]:
        return ["too large" if self.refused(change) else "" for change in changes]

    def measure(self, change: Change) -> Outcome:
        self.measured.append(change)
        seconds = self.seconds(change)
        return Outcome(seconds / 3, seconds) if seconds > 0 else Outcome(failure="wrong")


def saved(change: Change) -> float:
    """The best: chunks of 32, three stages everywhere."""
    (config,) = change.configs
    deep = sum(launch.num_stages == 3 for _, launch in config.launches)
    return 1.0 - 0.3 * (config.chunk == 32) - 0.05 * deep


def test_the_search_finds_the_best() -> None:
    plans = plans_of(program_of(LINEAR), SIZES)
    result = search(plans, SIZES, SMALL, Bench(saved))
    (config,) = result.configs
    assert config.chunk == 32 and all(launch.num_stages == 3 for _, launch in config.launches)
    assert result.best.seconds < result.default.seconds and result.tried[0].change.what == "default"


def test_what_is_refused_or_fails_is_not_taken() -> None:
    plans = plans_of(program_of(LINEAR), SIZES)
    (default,) = default_configs(plans, SIZES)
    bench = Bench(
        lambda c: saved(c) if c.configs[0].chunk == default.chunk else -1.0,
        refused=lambda c: c.configs[0].chunk == default.chunk,
    )
    result = search(plans, SIZES, SMALL, bench)
    assert result.configs == (default,)
    assert {t.outcome.failure for t in result.tried} == {"", "wrong", "too large"}
    assert not any(bench.refused(change) for change in bench.measured[1:])  # the default is measured whatever it is


def test_noise_is_no_gain() -> None:
    plans = plans_of(program_of(LINEAR), SIZES)
    result = search(plans, SIZES, SMALL, Bench(lambda c: 1.0 if c.what == "default" else 0.995))
    assert result.configs == default_configs(plans, SIZES)


def test_a_default_that_fails_ends_the_search() -> None:
    with pytest.raises(TuningError, match="the default configuration fails: wrong"):
        search(plans_of(program_of(LINEAR), SIZES), SIZES, SMALL, Bench(lambda _: -1.0))


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_renamed_recurrence_has_the_same_key() -> None:
    mine, other = program_of(LINEAR), program_of(RENAMED)
    keys = [records.make_key(p, plans_of(p, s), case()) for p, s in ((mine, SIZES), (other, {"D": 32, "E": 32}))]
    assert keys[0] == keys[1]
    different = program_of(LINEAR.replace("exp(g) * S", "S"))
    assert records.make_key(different, plans_of(different, SIZES), case()) != keys[0]
    assert records.make_key(mine, plans_of(mine, SIZES), case(device="another")) != keys[0]
    assert [records.bucket(n) for n in (1, 2, 3, 4, 16383, 16384)] == [0, 1, 1, 2, 13, 14]


def store(program: Program, kept: Case, chunk: int = 32) -> Path:
    plans = plans_of(program, SIZES)
    plain = to_plain(default_configs(plans, SIZES))
    plain[0]["chunk"] = chunk
    return records.keep(records.make_key(program, plans, kept), plain, {"name": "linear"})


def test_results_are_found_again() -> None:
    program = program_of(LINEAR)
    plans = plans_of(program, SIZES)
    assert records.fingerprint() == "" and records.find(program, plans, SIZES, case()) is None
    store(program, case())
    assert records.fingerprint() != ""
    found = records.find(program, plans, SIZES, case())
    assert found is not None and found[0].chunk == 32
    assert records.find(program, plans, SIZES, case(tokens=13)) is None
    assert [entry["name"] for entry in records.entries()] == ["linear"]


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"version": 99}', '{"version": 1}', '{"version": 1, "stages": [{"chunk": 32}]}']
)
def test_a_damaged_result_is_a_miss_with_a_warning(damage: str) -> None:
    program = program_of(LINEAR)
    store(program, case()).write_text(damage)
    with pytest.warns(UserWarning, match="not used"):
        assert records.find(program, plans_of(program, SIZES), SIZES, case()) is None


def test_the_package_can_bring_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(LINEAR)
    entry = json.loads(store(program, case()).read_text())
    shipped = tmp_path / "shipped.json"
    shipped.write_text(json.dumps({"entries": [entry]}))
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path / "another"))
    monkeypatch.setattr(records, "SHIPPED", shipped)
    records.fingerprint.cache_clear()
    found = records.find(program, plans_of(program, SIZES), SIZES, case())
    assert records.fingerprint() != "" and found is not None and found[0].chunk == 32
    store(program, case(), chunk=16)
    own = records.find(program, plans_of(program, SIZES), SIZES, case())
    assert own is not None and own[0].chunk == 16  # the user's own come first


def test_failures_are_remembered() -> None:
    failure = Failure("NVIDIA H100", "3.6.0", "walk", "abc", "num_warps=4", "the process ended with -11")
    records.quarantine(failure)
    assert records.find_failure("NVIDIA H100", "3.6.0", "abc", "num_warps=4") == failure
    assert records.find_failure("NVIDIA H100", "3.7.1", "abc", "num_warps=4") is None
    assert records.failures() == [failure]


def test_a_stored_result_is_what_a_call_runs() -> None:
    op = recur.loads(LINEAR)
    x = [torch.randn(1, 8, 2, *dims, dtype=torch.bfloat16) for dims in ((32,), (32,), (32,), ())]
    kept = records.case_of(SIZES, [t.dtype for t in x], 2, 8, torch.device("cpu"))
    with mock_gpu() as gpu:
        op(*x)
        store(op.program, kept, chunk=16)
        op(*x)
        op(*[t.repeat(1, 2, *[1] * (t.ndim - 2)) for t in x])  # T = 16 is another case
    chunks = [arguments[-2] for name, arguments in gpu.launches if name == "S_forward_kernel"]
    assert chunks[1] == 16 and chunks[0] == chunks[2] != 16


def test_autotune_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in ((None, "off"), ("quick", "quick"), ("full", "full")):
        autotune.effort.cache_clear()
        if value is not None:
            monkeypatch.setenv("RECUR_AUTOTUNE", value)
        assert autotune.effort() == expected
    monkeypatch.setenv("RECUR_AUTOTUNE", "maybe")
    autotune.effort.cache_clear()
    with pytest.raises(ValueError, match="off, quick, full"):
        autotune.effort()
    monkeypatch.delenv("RECUR_AUTOTUNE")
    autotune.effort.cache_clear()


# --- the child process ------------------------------------------------------------------------------------------------


class Victim:
    """What the tests' child does: each request says how it ends."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, request: str) -> int:
        if request == "crash":
            os._exit(3)
        if request == "raise":
            raise ValueError("no good")
        if request == "poison":
            raise Poisoned("an illegal memory access")
        if request == "hang":
            time.sleep(60)
        return self.factor * os.getpid()


def test_a_crash_costs_one_call() -> None:
    worker = Worker(f"{Victim.__module__}:Victim", (1,), patience=20.0)
    first, _ = worker("fine")
    assert worker("raise") == (None, "ValueError: no good")
    assert worker("fine") == (first, "")  # the same process
    assert worker("crash") == (None, "the process ended with 3")
    second, _ = worker("fine")
    assert second not in (None, first)
    assert worker("poison") == (None, "an illegal memory access")
    third, _ = worker("fine")
    assert third not in (None, first, second)
    worker.patience = 1.0
    assert worker("hang") == (None, "no answer in 1 seconds")
    worker.stop()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda x: x)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("triton.testing.do_bench", lambda f, **_: f() or 1.0)
    monkeypatch.setattr(trial, "CHECKED", ((1, 20, 1), (2, 3, 1)))


def test_a_module_is_checked_before_it_is_timed(on_the_cpu: None) -> None:
    op = recur.loads(LINEAR)
    task = trial.Task(op.recurrence, SIZES, 1, 40, 2, (torch.float32,) * 4)
    text = print_source(op.program, plans_of(op.program, SIZES), SIZES, "torch")
    check = trial.Trial(task, text, "linear")
    assert check(text) == (1e-3, 1e-3)
    wrong = text.replace("    o = _output(o, q)", "    o = _output(1.01 * o, q)")
    with pytest.raises(ArithmeticError, match=r"output o is off by 1\.0e-02"):
        check(wrong)
    infinite = wrong.replace("1.01 *", "float('nan') *")
    with pytest.raises(ArithmeticError, match="output o is off by nan"):
        check(infinite)
    late = wrong.replace("1.01 * o", "o * (1 + (o.shape[1] > 20))")
    with pytest.raises(ArithmeticError, match="differs from the default"):
        check(late)


# --- all of it, but for the GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Candidates are compiled for sm_90; the child is a stand-in that fails on two warps and likes three stages."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(tune.EFFORTS, "quick", Effort((32,), (2, 4), (2, 3), (32,), 1))

    def stand_in(worker: Worker, text: str) -> tuple[Any, str]:
        assert f"def {worker.arguments[-1]}(" in text
        options = text.count("num_warps=2"), text.count("num_stages=3")
        return (None, "the process ended with -11") if options[0] else ((0.1, 1.0 - 0.1 * options[1]), "")

    monkeypatch.setattr(Worker, "__call__", stand_in)
    records._name_of.cache_clear()
    yield
    records._name_of.cache_clear()


def test_tuning_from_end_to_end(pretended_gpu: None) -> None:
    op = recur.loads(LINEAR)
    done: list[tuple[int, int]] = []
    task = tune.make_task(op, (), {"B": 2, "T": 16384, "H": 16, **SIZES}, torch.bfloat16)
    result = tune.tune(op.program, task, compiled=lambda *progress: done.append(progress))
    assert done and result.best.seconds < result.default.seconds
    (entry,) = records.entries()
    assert entry["shape"] == {"B": 2, "T": 16384, "H": 16, "K": 32, "V": 32} and entry["key"]["tokens"] == 14
    here = case(triton=records.triton_version())
    assert records.find(op.program, plans_of(op.program, SIZES), SIZES, here) == result.configs
    failed = records.failures()
    assert failed and all("num_warps=2" in f.launch and f.reason == "the process ended with -11" for f in failed)
    again = tune.tune(op.program, task)
    reasons = {t.outcome.failure for t in again.tried} - {t.outcome.failure for t in result.tried}
    assert reasons == {"quarantined: the process ended with -11"}


@pytest.mark.parametrize("T", (64, 4096))
def test_what_is_compiled_ahead_is_what_runs(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch, T: int) -> None:
    """The sources that pruning compiles and those of a call have the same hashes, with one segment and with several."""
    op = recur.loads(LINEAR)
    task = tune.make_task(op, (), {"B": 1, "T": T, "H": 2, **SIZES}, torch.bfloat16)
    plans = plans_of(op.program, SIZES)
    default = default_configs(plans, SIZES)
    bench = tune.GpuBench(op.program, plans, task, case(), default, lambda done, of: None)
    names = tuple(k.name for k in plans[0].forward + plans[0].backward)
    change = Change("default", 0, names, default)
    ahead = {
        kernel.__name__: build.kernel_source(kernel, types, options, "bf16", bench.absent(change)).hash()
        for kernel, types, options in bench.changed_rows(change)
    }
    module = bench.module(change.configs)
    x = [torch.randn(1, T, 2, *dims, dtype=torch.bfloat16, requires_grad=True) for dims in ((32,), (32,), (32,), ())]
    with mock_gpu():
        o, _ = module.linear(*x)
        o.sum().backward()
    tables = (table for name, table in vars(module).items() if name.startswith("S_") and hasattr(table, "known"))
    ran = {
        k.kernel.__name__: c.src.hash()
        for t in tables
        for kernels in t.known.values()
        for k in kernels
        for c in k.compiled.values()
    }
    assert len(ran) >= 4 and ran == {name: ahead[name] for name in ran}


def test_the_command_tells_what_it_tries(pretended_gpu: None, tmp_path: Path) -> None:
    (tmp_path / "sums.rec").write_text(SUMS)
    shape = "B=2,T=4096,H=16,D=32"
    result = CliRunner().invoke(cli, ["tune", str(tmp_path / "sums.rec"), "--shape", shape])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("default: 100000 us forward, ") and any("2 warps" in line for line in lines)
    assert lines[-1].startswith("forward and backward ") and lines[-1].endswith(" thrown out")
    assert "tuned\tsums\tassociative_scan\tB=2,T=4096,H=16,D=32" in CliRunner().invoke(cli, ["cache"]).stdout
    wrong = CliRunner().invoke(cli, ["tune", str(tmp_path / "sums.rec"), "--shape", "B=2,T=64,Q=3"])
    assert wrong.exit_code == 2 and "no dim Q" in wrong.output


def test_tuning_needs_a_gpu() -> None:
    with pytest.raises(TuningError, match="needs a GPU"):
        recur.loads(LINEAR).tune(B=1, T=64, H=1, **SIZES)


def test_autotune_tunes_a_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ops, as two processes would be: the first tunes, the second finds the result; another length tunes again."""
    monkeypatch.setattr(autotune, "effort", lambda: "quick")
    tuned: list[int] = []

    def stand_in(program: Program, task: trial.Task, strategy: Any, effort: str) -> None:
        tuned.append(task.tokens)
        kept = records.case_of(task.sizes, task.dtypes, task.batch * task.heads, task.tokens, torch.device("cpu"))
        store(program, kept)

    monkeypatch.setattr(tune, "tune", stand_in)
    for T in (8, 9, 64):
        op = recur.loads(LINEAR)
        x = [torch.randn(1, T, 2, *dims) for dims in ((32,), (32,), (32,), ())]
        for _ in range(2):
            call = bind_arguments(op.recurrence, x, {})
            autotune.ensure_tuned(op, call, "auto")
    assert tuned == [8, 64]
