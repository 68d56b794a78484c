"""The command line: output, exit status, and no traceback for any input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from recur import zoo
from recur.cli.main import cli
from recur.inspection import STAGES, TARGETS
from recur.runtime.tuning import records

SPEC = """\
recurrence ema:
    "An average."
    dim K
    input x[K], a in (0, 1)
    state s[K]
    s = a * s + x
    output o = s
"""
BAD = """\
recurrence bad:
    dim K
    input x[K]
    state s[K]
    s = s + y
    output o = zz
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ema.rec").write_text(SPEC)
    (tmp_path / "bad.rec").write_text(BAD)
    (tmp_path / "two.rec").write_text(SPEC + SPEC.replace("ema", "second"))
    (tmp_path / "binary.rec").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "empty.rec").write_text("")
    deep = "(" * 10_000 + "s" + ")" * 10_000
    (tmp_path / "deep.rec").write_text(f"recurrence d:\n    state s\n    s = {deep}\n")
    (tmp_path / "folder.rec").mkdir()
    return tmp_path


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli, list(args))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("check", "explain", "inspect", "emit", "build", "tune", "bench", "demo", "zoo", "cache"):
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0
    assert run("--version").stdout.startswith("recur, version ")


def test_check_says_nothing_of_good_files() -> None:
    for file in ("ema.rec", "two.rec", "gla"):
        result = run("check", file)
        assert (result.exit_code, result.output) == (0, "")


def test_check_prints_all_diagnostics_on_stderr() -> None:
    result = run("check", "bad.rec", "ema.rec", "missing.rec")
    assert result.exit_code == 1 and result.stdout == ""
    assert "bad.rec:5:13: error[R201]" in result.stderr and "bad.rec:6:" in result.stderr
    assert "missing.rec:1:1: error[R001]" in result.stderr


@pytest.mark.parametrize("command", [("check",), ("explain",), ("inspect", "--stage", "ir"), ("emit", "-o", "x.py")])
@pytest.mark.parametrize(
    "file", ["missing.rec", "folder.rec", "binary.rec", "empty.rec", "deep.rec", "bad.rec", "a\0b", "", "é.rec"]
)
def test_bad_files_end_with_1(command: tuple[str, ...], file: str) -> None:
    result = run(command[0], file, *command[1:])
    assert result.exit_code == 1
    assert "error[R" in result.stderr and result.stdout == ""


def test_several_recurrences_in_one_file() -> None:
    assert run("explain", "two.rec").exit_code == 1
    assert run("explain", "two.rec", "--name", "second").stdout.startswith("second")
    assert "did you mean" in run("explain", "two.rec", "--name", "secnd").stderr


def test_explain_in_words() -> None:
    result = run("explain", "gated_delta_net")
    assert result.exit_code == 0
    assert result.stdout.startswith("gated_delta_net  (K = 64, V = 64)")
    assert "chunkwise" in result.stdout and "newton: " in result.stdout
    assert "(K = 32, V = 48)" in run("explain", "gated_delta_net", "--dims", "K=32, V=48").stdout


def test_explain_as_json() -> None:
    result = run("explain", "gated_slot_attention", "--json")
    found = json.loads(result.stdout)
    assert list(found) == ["name", "stages"] and found["name"] == "gated_slot_attention"
    assert len(found["stages"]) == 2
    for stage in found["stages"]:
        assert list(stage) == ["states", "structure", "strategy", "rejected"]
        assert set(stage["rejected"]) == {"associative_scan", "chunkwise", "tiled", "sequential", "newton"} - {
            stage["strategy"]
        }
        assert all(isinstance(reason, str) and reason for reason in stage["rejected"].values())


def test_explain_takes_a_strategy() -> None:
    found = json.loads(run("explain", "gla", "--strategy", "sequential", "--json").stdout)
    assert found["stages"][0]["strategy"] == "sequential"
    result = run("explain", "gla", "--strategy", "newton")
    assert result.exit_code == 1 and "error[R801]: strategy `newton` does not apply to `S`" in result.stderr
    assert "did you mean `chunkwise`?" in run("explain", "gla", "--strategy", "chunkwice").stderr
    assert run("explain", "gla", "--strategy", "chunkwise,sequential").exit_code == 1


BAD_DIMS = ["K", "K=", "=4", "K=x", "K=0", "K=-1", "K=1.5", "K=4,K=5", "Q=4", "", ",", "K=٤", "K=99999999999"]


@pytest.mark.parametrize("dims", BAD_DIMS)
def test_bad_dims_are_a_misuse(dims: str) -> None:
    result = run("explain", "gla", "--dims", dims)
    assert result.exit_code == 2 and "--dims" in result.stderr


MISUSES = [
    "", "bogus", "explain", "check", "inspect gla", "inspect gla --stage x", "emit gla", "build gla --target x",
    "zoo gal", "tune gla", "bench gla --shape B", "explain gla --nope",
]  # fmt: skip


@pytest.mark.parametrize("line", MISUSES)
def test_misuse_ends_with_2(line: str) -> None:
    assert run(*line.split()).exit_code == 2


@pytest.mark.parametrize("stage", [s for s in STAGES if s != "ptx"])
def test_inspect_prints_every_stage(stage: str) -> None:
    result = run("inspect", "ema.rec", "--stage", stage)
    assert result.exit_code == 0 and result.stderr == ""
    assert len(result.stdout.splitlines()) > 3
    assert run("inspect", "ema.rec", "--stage", stage).stdout == result.stdout


def test_inspect_ir_parses_back() -> None:
    Path("again.rec").write_text(run("inspect", "ema.rec", "--stage", "ir").stdout)
    assert run("inspect", "again.rec", "--stage", "ir").stdout == Path("again.rec").read_text()


def test_emit_writes_one_file(folder: Path) -> None:
    assert run("emit", "ema.rec", "-o", "kernels.py", "--backend", "torch").exit_code == 0
    text = Path("kernels.py").read_text()
    assert "import recur" not in text and "from recur" not in text
    compile(text, "kernels.py", "exec")
    assert run("emit", "ema.rec", "-o", "-", "--backend", "torch").stdout == text
    assert run("emit", "ema.rec", "-o", "missing/kernels.py").exit_code == 2
    assert not (folder / "cache").exists()


def test_zoo_prints_a_spec() -> None:
    """The spec alone, to redirect into a file; beside it the command that trains with it."""
    result = run("zoo", "gla")
    assert result.stdout == zoo.path("gla").read_text()
    assert "python -m recur.examples.language_model --recurrence gla\n" in result.stderr


@pytest.mark.slow
def test_zoo_lists_every_recurrence() -> None:
    rows = [line.split("\t") for line in run("zoo").stdout.splitlines()]
    assert [row[0] for row in rows] == zoo.names()
    assert all(len(row) == 6 and all(row) for row in rows)


def test_tune_and_bench_say_that_they_need_a_gpu() -> None:
    for command in ("tune", "bench"):
        result = run(command, "gla", "--shape", "B=1,T=8,H=1,K=16,V=16")
        assert result.exit_code == 1 and "GPU" in result.stderr


def test_cache_lists_what_tuning_has_found(folder: Path) -> None:
    assert run("cache").stdout == f"folder\t{folder / 'cache'}\n"
    key = {"device": "NVIDIA H100", "triton": "3.6.0", "strategies": ["chunkwise"]}
    records.keep(key, [], {"name": "gla", "shape": {"B": 1, "T": 64}, "both_us": 9.5, "default_both_us": 12.0})
    records.quarantine(records.Failure("NVIDIA H100", "3.6.0", "walk", "abc", "num_warps=4", "wrong"))
    _, tuned, quarantined = run("cache").stdout.splitlines()
    assert tuned == "tuned\tgla\tchunkwise\tB=1,T=64\tNVIDIA H100, Triton 3.6.0\t9.5 us, 12.0 us by default"
    assert quarantined == "quarantined\twalk\tabc\tnum_warps=4\tNVIDIA H100, Triton 3.6.0\twrong"


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "recur.cli.main", *args], capture_output=True, text=True, check=False)


def test_the_installed_command_is_plain_without_a_terminal() -> None:
    result = command("explain", "ema.rec")
    assert result.returncode == 0 and result.stderr == "" and "\x1b" not in result.stdout
    result = command("check", "bad.rec")
    assert result.returncode == 1 and result.stdout == "" and "error[R201]" in result.stderr


def test_checking_loads_neither_torch_nor_sympy() -> None:
    code = (
        "import sys; from recur.cli.main import cli; cli(['check', 'ema.rec'], standalone_mode=False); "
        "print([m for m in ('torch', 'triton', 'sympy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


RUN_EMITTED = """
import sys
sys.modules["recur"] = None  # importing it fails
import torch
from kernels import {name}
torch.manual_seed(0)
x = [t.requires_grad_() for t in ({tensors})]
o, final = {name}(*x, output_final_state=True)
(o.sum() + final.sum()).backward()
print([round(float(t.grad.abs().sum()), 3) for t in x])
"""


@pytest.mark.parametrize(
    ("backend", "name", "tensors"),
    [
        ("torch", "ema", "torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2)"),
        ("triton", "ema", "torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2)"),
    ],
)
def test_an_emitted_file_runs_without_recur(folder: Path, backend: str, name: str, tensors: str) -> None:
    assert run("emit", f"{name}.rec", "-o", "kernels.py", "--backend", backend, "--dims", "K=16").exit_code == 0
    (folder / "run.py").write_text(RUN_EMITTED.format(name=name, tensors=tensors))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(folder)}
    result = subprocess.run([sys.executable, "run.py"], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr

    import torch

    from recur.api import load

    torch.manual_seed(0)
    x = [torch.randn(1, 20, 2, 16).requires_grad_(), torch.rand(1, 20, 2).requires_grad_()]
    o, final = load("ema.rec").reference(*x, output_final_state=True)
    (o.sum() + final.sum()).backward()
    found = json.loads(result.stdout)
    assert found == pytest.approx([float(t.grad.abs().sum()) for t in x], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_build_prints_a_row_for_each_kernel(target: str) -> None:
    from recur.cli.build import SPILL

    result = run("build", "ema.rec", "--target", target)
    head, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and head[0] == "kernel" and len(rows) >= 2
    assert all(len(row) == len(head) and int(row[3]) > 0 and int(row[4]) <= SPILL for row in rows)


def test_a_build_fails_where_a_kernel_spills_or_does_not_fit() -> None:
    from recur.cli.build import SPILL, find_problems
    from recur.runtime.build import KernelReport

    def report(stack: int, shared: int) -> KernelReport:
        return KernelReport("kernel", "sm_90", 4, 2, 255, stack, shared, 0, 1000)

    assert find_problems([report(0, 200 * 1024)], small=True) == []
    assert find_problems([report(SPILL, 0)], small=True) == []
    assert find_problems([report(SPILL + 8, 0)], small=True) == [f"kernel spills {SPILL + 8} bytes a thread"]
    assert find_problems([report(SPILL + 8, 0)], small=False) == []
    assert len(find_problems([report(0, 228 * 1024)], small=False)) == 1


def test_targets_that_no_compiler_knows_are_refused() -> None:
    for target in ("sm_12", "90", "sm_90x", "sm_999"):
        for args in (("build", "ema.rec"), ("inspect", "ema.rec", "--stage", "ptx")):
            result = run(*args, "--target", target)
            assert result.exit_code == 2 and TARGETS[0] in result.output
