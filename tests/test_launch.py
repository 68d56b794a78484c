"""Compiling and launching kernels, on a GPU that is a mock: what is compiled, what is launched, and what is kept."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from inputs import random_inputs
from mock_gpu import MockDriver, mock_gpu

import recur
from recur.codegen.triton_printer import launch_library
from recur.diagnostics import RecurError
from recur.ir.plain import to_plain
from recur.runtime import load, stored

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton was imported to interpret")

LINEAR = """
recurrence linear:
    dim    K, V
    input  q[K], k[K], v[V]
    state  S[K, V]
    S = S + outer(k, v)
    output o = q @ S
"""
SIZES = {"K": 16, "V": 16}


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockDriver]:
    monkeypatch.setenv("RECUR_CACHE_DIR", str(tmp_path))
    load._loaded.clear()
    with mock_gpu() as driver:
        yield driver


def draw(op: Any, T: int = 8, dtype: torch.dtype = torch.bfloat16, **options: Any) -> dict[str, torch.Tensor]:
    return random_inputs(op.recurrence, 2, T, 3, SIZES, dtype=dtype, **options)


def tables(op: Any) -> Any:
    """The passes' kernels of the only module that the op has compiled."""
    (compiled,) = op._compiled.values()
    module = sys.modules[compiled.function.__module__]
    return module.S_FORWARD, module.S_BACKWARD


def test_a_launch_gets_addresses_counts_and_constants(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    x = draw(op)
    op(**x)
    ((name, arguments),) = gpu.launches
    assert name == "S_forward_kernel"
    addresses = [t.data_ptr() for t in x.values()]
    assert set(addresses) <= set(arguments) and None in arguments  # the initial state is absent
    ((kernel, types, options),) = tables(op)[0].rows
    counts = arguments[len([t for t in types if t.startswith("*")]) :]
    assert counts[:4] == (8, 3, 1, 1) and counts[4:7] == (16, 16, options["C"])  # T, H, one segment of one chunk
    assert kernel.arg_names[-1] == "DOT" and str(counts[-1]) == "bf16"


def test_kernels_that_do_not_fit_have_fewer_chunks_in_flight(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    op(**draw(op))
    ((kernel,),) = tables(op)[0].known.values()
    (whole,) = kernel.compiled.values()
    gpu.utils.get_device_properties = lambda device: {"max_shared_mem": whole.metadata.shared - 1}
    (less,) = (kernel.start(variant).result() for variant in list(kernel.compiled))
    assert less.metadata.num_stages < whole.metadata.num_stages
    assert less.metadata.shared < whole.metadata.shared


def test_kernels_are_kept_by_type_and_not_by_length(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    for T in (8, 9, 300):
        op(**draw(op, T))
    forward, backward = tables(op)
    assert len(forward.known) == 1 and not backward.known
    op(**draw(op, dtype=torch.float32))
    assert len(op._compiled) == 2 and len(gpu.launches) == 4
    x = draw(op)
    op(**{**x, "v": x["v"].float()})  # one input's type
    assert len(forward.known) == 3


def test_the_backward_kernels_are_compiled_beside_the_forward_ones(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    x = draw(op, requires_grad=True)
    o, _ = op(**x)
    forward, backward = tables(op)
    assert len(forward.known) == 1 and len(backward.known) == 1
    (kernels,) = backward.known.values()
    o.sum().backward()
    assert [name for name, _ in gpu.launches[1:]] == [k.kernel.__name__ for k in kernels]
    assert all(list(k.compiled) == list(k.started) for k in kernels)  # nothing was compiled again
    assert all(t.grad is not None and t.grad.shape == t.shape for t in x.values())


def test_an_address_that_is_not_aligned_gets_its_own_kernel(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    x = draw(op)
    op(**x)
    shifted = torch.empty(x["q"].numel() + 1, dtype=torch.bfloat16)[1:].view(x["q"].shape).copy_(x["q"])
    op(**{**x, "q": shifted})
    ((kernel,),) = tables(op)[0].known.values()
    aligned, other = kernel.compiled
    assert [a for a, b in zip(aligned, other, strict=True) if a != b] == [True] and False in other
    op(**{**x, "q": shifted})
    assert len(kernel.compiled) == 2
    divisible = [c.asm["ttir"].count("tt.divisibility") for c in kernel.compiled.values()]
    assert divisible[0] == divisible[1] + 1


def test_given_and_absent_states(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    x = draw(op)
    start = torch.zeros(2, 3, 16, 16)
    op(**x)
    op(**x, initial_state=start)
    op(**x, initial_state=start, output_final_state=True)
    assert [arguments.count(None) for _, arguments in gpu.launches] == [2, 1, 0]
    assert start.data_ptr() in gpu.launches[1][1]


def test_what_nobody_wants_is_neither_kept_nor_written(gpu: MockDriver) -> None:
    """Each of the ways to call has kernels of its own, also where other ways were taken before."""
    op = recur.loads(LINEAR)
    x, wanted = draw(op), draw(op, requires_grad=True)

    def absent(**options: Any) -> int:
        gpu.launches.clear()
        op(**options)
        return gpu.launches[0][1].count(None)

    for _ in range(2):
        assert absent(**x) == 2 and absent(**x, output_final_state=True) == 1
        assert absent(**wanted) == 2 and absent(**wanted, output_final_state=True) == 1
        o, final = op(**x, output_final_state=True)
        assert not o.requires_grad and final.shape == (2, 3, 16, 16)
        o, final = op(**wanted, output_final_state=True)
        assert o.requires_grad and final.requires_grad
        with torch.no_grad():
            assert not op(**wanted)[0].requires_grad
        assert op(**wanted)[1] is None


def test_the_gradient_of_an_absent_state_is_not_written(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    for start in (None, torch.zeros(2, 3, 16, 16, requires_grad=True)):
        o, _ = op(**draw(op, requires_grad=True), initial_state=start)
        gpu.launches.clear()
        o.sum().backward()
        (last,) = [arguments for name, arguments in gpu.launches if name == "S_write_gradients_kernel"]
        assert last.count(None) == (2 if start is None else 1)  # and of the final state there is no cotangent
        assert start is None or start.grad is not None


def test_calls_that_look_the_same_are_checked_once(gpu: MockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    op = recur.loads(LINEAR)
    x, start = draw(op), torch.zeros(2, 3, 16, 16)
    op(**x)
    op(**x, initial_state=start)
    known = len(op._known)
    monkeypatch.setattr("recur.runtime.arguments.bind_arguments", lambda *_, **__: pytest.fail("checked again"))
    op(**draw(op))
    op(*draw(op).values())
    op(**draw(op), initial_state=torch.ones(2, 3, 16, 16))
    assert len(op._known) == known
    monkeypatch.undo()
    with pytest.raises(ValueError, match="`initial_state`'s `S` must be"):
        op(**x, initial_state=start[:1])
    with pytest.raises(TypeError, match="must be a tensor"):
        op(**{**x, "q": 1.0})
    op(**draw(op, T=9))
    op(**draw(op), strategy="sequential")
    assert len(op._known) == known + 2


def test_threads_get_their_own_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives one module for all of a name that it has loaded before."""
    shared = ModuleType("__triton_launcher")

    def load_again(name: str, path: str) -> ModuleType:
        vars(shared)["launch"] = path
        time.sleep(0.001)
        return shared

    build = triton.runtime.build
    monkeypatch.delattr(build, "_turn_for_recur", raising=False)
    monkeypatch.setattr(build, "_load_module_from_path", load_again)
    launch_library._load_in_turn()
    launch_library._load_in_turn()
    paths = [str(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: build._load_module_from_path("__triton_launcher", path).launch, paths))
    assert found == paths
    monkeypatch.delattr(build, "_turn_for_recur")


def test_kernels_that_join_segments_are_compiled_where_there_are_several(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    op(**draw(op))
    module = sys.modules[next(iter(op._compiled.values())).function.__module__]
    assert not module.S_FORWARD_JOINS.known and len(gpu.launches) == 1
    o, _ = op(**draw(op, T=64 * 64, requires_grad=True))
    names = [row[0].__name__ for row in (*module.S_FORWARD_JOINS.rows, *module.S_FORWARD.rows)]
    assert len(names) == 3 and [name for name, _ in gpu.launches[1:]] == names
    o.sum().backward()
    passes = (module.S_FORWARD_JOINS, module.S_BACKWARD, module.S_BACKWARD_JOINS)
    for kernel in (k for table in passes for k in next(iter(table.known.values()))):
        assert list(kernel.compiled) == list(kernel.started)  # each was compiled once, as expected


def test_tensors_that_are_not_as_they_lie_in_memory(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    x = draw(op)
    strided = x["q"].transpose(1, 2).contiguous().transpose(1, 2)
    op(**{**x, "q": strided})
    assert strided.data_ptr() not in gpu.launches[0][1]


def test_a_type_that_the_kernels_do_not_take(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        op(**draw(op, dtype=torch.float64))


# --- modules of earlier processes -------------------------------------------------------------------------------------


def test_a_printed_module_is_found_again(gpu: MockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recur.loads(LINEAR)
    first(**draw(first))
    again = recur.loads(LINEAR)
    monkeypatch.setattr("recur.runtime.compiled.print_for", lambda *_: pytest.fail("printed again"))
    again(**draw(again))
    assert "program" not in vars(again)  # nothing was classified


def test_a_text_is_parsed_once(gpu: MockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recur.loads(LINEAR).recurrence
    (entry,) = (stored.entry_path("").parent.parent / "parsed").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(stored, "read", lambda *_: pytest.fail("parsed again"))
        again = recur.loads(LINEAR).recurrence
        assert again == first and to_plain(again) == to_plain(first)  # the places too
    for damage in ("", "3", '["Number", 1]', '["Recurrence"]', '["open", "/etc/passwd"]', '[["Number"]]', "[]"):
        entry.write_text(damage)
        assert recur.loads(LINEAR).recurrence == first
    with pytest.raises(RecurError):
        recur.loads(LINEAR.replace("S + outer", "T + outer"))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"module": 3, "function": 4}', "\udcff"])
def test_a_damaged_entry_is_a_miss(gpu: MockDriver, damage: str) -> None:
    op = recur.loads(LINEAR)
    op(**draw(op))
    (entry,) = stored.entry_path("").parent.iterdir()
    entry.write_bytes(damage.encode("utf-8", "surrogateescape"))
    again = recur.loads(LINEAR)
    again(**draw(again))
    assert '"function": "linear"' in entry.read_text()


def test_a_module_that_was_edited_is_a_miss(gpu: MockDriver) -> None:
    op = recur.loads(LINEAR)
    op(**draw(op))
    key = stored.entry_path("").parent.glob("*.json").__next__().stem
    assert stored.find(op.recurrence, key) is not None
    path = Path(next(iter(op._compiled.values())).function.__code__.co_filename)
    path.write_text(path.read_text() + "\n")
    assert stored.find(op.recurrence, key) is None


def test_the_key_holds_what_the_text_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rec, other = recur.loads(LINEAR).recurrence, recur.loads(LINEAR.replace("q @ S", "2 * (q @ S)")).recurrence
    keys = [
        stored.make_key(rec, SIZES, "auto", "triton"),
        stored.make_key(other, SIZES, "auto", "triton"),
        stored.make_key(rec, {"K": 16, "V": 32}, "auto", "triton"),
        stored.make_key(rec, SIZES, "tiled", "triton"),
        stored.make_key(rec, SIZES, ("tiled",), "triton"),
        stored.make_key(rec, SIZES, "auto", "torch"),
    ]
    monkeypatch.setattr(stored, "compiler_digest", lambda: "another compiler")
    keys.append(stored.make_key(rec, SIZES, "auto", "triton"))
    assert len(set(keys)) == len(keys)
