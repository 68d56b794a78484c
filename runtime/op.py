"""A compiled recurrence, called like a function of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from recur.codegen.setting import USUAL
from recur.ir.spec import Recurrence
from recur.runtime import arguments, states
from recur.runtime.arguments import Call
from recur.runtime.compiled import (
    Backend,
    Compiled,
    choose_backend,
    compile_for,
    explain_setting,
    print_for,
    setting_of,
)
from recur.runtime.load import hash_triton_early, triton_interprets
from recur.runtime.states import State, StateEntry
from recur.runtime.tuning import autotune, records

if TYPE_CHECKING:
    from recur.explain import Explanation
    from recur.ir.normal import Program
    from recur.runtime.tuning.search import Result
    from recur.strategies.select import Request

Outputs = Union[Tensor, tuple[Tensor, ...]]  # noqa: UP007 (an alias, evaluated on 3.10)
KNOWN_CALLS = 256  # sets of shapes, of which some programs have ever new ones
HERE = nullcontext()


class Op:
    """A recurrence that can be called, differentiated, stepped, explained and inspected.

    Made by `recur.load`, `recur.loads` and `recur.recurrence`. Shapes: inputs [B, T, H, *dims], params [H, *dims],
    states [B, H, *dims]; for one head all of them may leave H out. A call compiles once for each set of sizes.
    """

    def __init__(self, recurrence: Recurrence) -> None:
        self.recurrence = recurrence
        self.name = recurrence.name
        self.__name__ = recurrence.name
        self.__doc__ = recurrence.doc
        self._inputs = recurrence.inputs
        self._names = tuple(v.name for v in self._inputs)
        self._compiled: dict[tuple[object, ...], Compiled] = {}
        self._known: dict[tuple[object, ...], Compiled] = {}  # by all that a call's checks depend on
        hash_triton_early()

    def __reduce__(self) -> tuple[type[Op], tuple[Recurrence]]:
        """Copies and pickles as its recurrence; what was compiled stays behind."""
        return Op, (self.recurrence,)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{v.name}{arguments.show_axes(arguments.axes_of(v))}" for v in self.recurrence.inputs)
        outputs = ", ".join(o.name for o in self.recurrence.outputs)
        return f"<recurrence {self.name}({inputs}) -> {outputs}>"

    @cached_property
    def program(self) -> Program:
        """The step checked, split into stages and classified."""
        from recur.compiler import compile_program

        return compile_program(self.recurrence)

    @cached_property
    def states(self) -> dict[str, StateEntry]:
        """Every entry of the state by name, with dims and dtype: declared states, `prev.x`, `C.log_scale`."""
        return states.list_entries(self.program)

    def __call__(
        self,
        /,
        *args: Tensor,
        initial_state: State | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        strategy: Request = "auto",
        backend: str = "auto",
        debug: bool = False,
        **kwargs: Tensor,
    ) -> tuple[Outputs, State | None]:
        """Runs the recurrence over T tokens: (outputs, final).

        Arguments: inputs and params in the text's order, by position or by name. One output is a tensor, several a
        tuple. final is None unless ``output_final_state``. ``debug`` checks declared ranges and finite results.
        Raises TypeError and ValueError for arguments that do not fit, RecurError for a strategy or backend that cannot
        run this recurrence.
        """
        _refuse_packed(cu_seqlens, reset)
        given, compiled = self._prepare(args, kwargs, initial_state, strategy, backend)
        return self._run(compiled, given, initial_state, output_final_state, debug)

    def step(
        self,
        /,
        state: State | None = None,
        *args: Tensor,
        strategy: Request = "auto",
        backend: str = "auto",
        debug: bool = False,
        **kwargs: Tensor,
    ) -> tuple[Outputs, State]:
        """One token, for decoding: (outputs, new state), from inputs [B, H, *dims] and params [H, *dims].

        ``state``: what the last step or a call's final state gave; None starts a sequence. Errors as for a call.
        ``strategy``: "auto" is the sequential one here: there is nothing to run in parallel.
        """
        strategy = "sequential" if strategy == "auto" else strategy
        given, compiled = self._prepare(args, kwargs, state, strategy, backend, one_token=True)
        given = [x.unsqueeze(1) if v.role == "input" else x for v, x in zip(self._inputs, given, strict=True)]
        outputs, final = self._run(compiled, given, state, True, debug)
        assert final is not None
        return outputs.squeeze(1) if isinstance(outputs, Tensor) else tuple(x.squeeze(1) for x in outputs), final

    def reference(
        self,
        /,
        *args: Tensor,
        initial_state: State | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
        reset: Tensor | None = None,
        strategy: Request = "auto",
        backend: str = "auto",
        debug: bool = False,
        **kwargs: Tensor,
    ) -> tuple[Outputs, State | None]:
        """The same call by the definition, step by step, in the inputs' precision (use float64 to judge by it).

        Takes fewer heads, ``cu_seqlens`` and ``reset`` as well; ``strategy`` and ``backend`` do not matter here.
        """
        from recur.runtime.reference import run_reference

        tensors = arguments.match_tensors(self.recurrence, args, kwargs)
        if debug:
            arguments.check_ranges(self.recurrence, tensors)
        outputs, final = run_reference(
            self.recurrence,
            tensors,
            states.name_entries(self.states, initial_state),
            cu_seqlens=cu_seqlens,
            reset=reset,
            stabilised=states.gate_dims(self.program),
        )
        found = tuple(outputs.values())
        final_state = states.unwrap_state(final) if output_final_state else None
        return found[0] if len(found) == 1 else found, final_state

    def explain(
        self, /, *args: Tensor, strategy: Request = "auto", backend: str = "auto", **sizes: int | Tensor
    ) -> Explanation:
        """Structure, strategy and why each other strategy was not taken, for sizes such as K=128 (default 64).

        May also be given the tensors of a call. The result is text; its ``data`` holds the same as plain values.
        """
        from recur.explain import explain
        from recur.strategies.select import select

        call, bound = self._sizes(args, sizes)
        taken, _ = print_for(self.program, bound, strategy, self._backend(call, backend))
        remarks = [f"backend      {taken.name}: {taken.why}"]
        setting = setting_of(call) if call is not None and taken.name == "triton" else USUAL
        remarks += [f"launches     {x}" for x in explain_setting(self.program, bound, strategy, setting)]
        return explain(self.program, bound, select(self.program, bound, strategy), remarks)

    def source(
        self,
        /,
        stage: str,
        *args: Tensor,
        strategy: Request = "auto",
        target: str = "sm_90",
        **sizes: int | Tensor,
    ) -> str:
        """What the compiler has at a stage: "ir", "normal", "adjoint", "plan", "torch", "triton" or "ptx".

        For sizes such as K=128 (default 64) or a call's tensors; ``target`` is the architecture of "ptx".
        """
        from recur.inspection import print_stage

        _, bound = self._sizes(args, sizes)
        return print_stage(self.program, stage, bound, strategy, target)

    def tune(
        self,
        /,
        *args: Tensor,
        strategy: Request = "auto",
        effort: str = "quick",
        dtype: torch.dtype = torch.bfloat16,
        **kwargs: int | Tensor,
    ) -> Result:
        """Searches the fastest launches for a call's shape on this GPU, and stores them for this call and its like.

        Given a call's tensors, or sizes such as B=2, T=16384, H=16, K=128, V=128 and the inputs' dtype. ``effort``:
        "quick" or "full". Every candidate is checked against the reference before it is timed, in a process of its
        own. Raises TuningError (a RuntimeError) without a GPU, and where the default configuration fails.
        """
        from recur.runtime.tuning.tune import make_task, tune

        task = make_task(self, args, kwargs, dtype)
        result = tune(self.program, task, strategy, effort)
        self._compiled.clear()
        self._known.clear()
        return result

    # --- how a call runs ---------------------------------------------------------------------------------------------

    def _prepare(
        self,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        state: State | None,
        strategy: Request,
        backend: str,
        one_token: bool = False,
    ) -> tuple[Sequence[Tensor], Compiled]:
        """The tensors in the text's order and what runs them; what looks as in an earlier call was checked then."""
        given = args if not kwargs else (*args, *[kwargs[n] for n in self._names[len(args) :] if n in kwargs])
        if not len(given) == len(self._names) == len(args) + len(kwargs):
            arguments.bind_arguments(self.recurrence, args, kwargs, one_token)  # raises
        request = strategy if isinstance(strategy, str) else tuple(strategy)
        look = (*arguments.look_of(given), states.look_of(state), arguments.wants_gradients(given))
        key = (one_token, request, backend, records.fingerprint(), *look)
        compiled = self._known.get(key)
        if compiled is None:
            call = arguments.bind_arguments(self.recurrence, args, kwargs, one_token)
            if state is not None:
                states.check_state(self.states, state, call, "state" if one_token else "initial_state")
            compiled = self._compile(call, request, backend)
            if len(self._known) >= KNOWN_CALLS:
                self._known.clear()
            self._known[key] = compiled
        return given, compiled

    def _run(
        self, compiled: Compiled, given: Sequence[Tensor], state: State | None, with_final: bool, debug: bool
    ) -> tuple[Outputs, State | None]:
        if debug:
            arguments.check_ranges(self.recurrence, dict(zip(self._names, given, strict=True)))
        with _current(given[0].device):
            outputs, final = compiled.function(*given, initial_state=state, output_final_state=with_final)
        if debug:
            self._check_results(outputs, final)
        return outputs, final

    def _check_results(self, outputs: Outputs, final: State | None) -> None:
        several = (outputs,) if isinstance(outputs, Tensor) else outputs
        for output, x in zip(self.recurrence.outputs, several, strict=True):
            arguments.check_finite(f"output `{output.name}`", x)
        for name, x in states.name_entries(self.states, final).items():
            if self.states[name].kind != "log_scale":
                arguments.check_finite(f"the final state's `{name}`", x)

    def _compile(self, call: Call, request: Request, backend: str) -> Compiled:
        sizes = tuple(call.sizes.values())
        setting = setting_of(call)
        key: tuple[object, ...] = (sizes, request, backend, call.device.type, call.dtype, setting, triton_interprets())
        if records.fingerprint() or autotune.effort() != "off":
            key = (*key, *autotune.what_matters(call))
        if key not in self._compiled:
            taken = self._backend(call, backend)
            if taken.name == "triton" and call.device.type == "cuda":
                autotune.ensure_tuned(self, call, request)
            case = autotune.case_of(call) if taken.name == "triton" and records.fingerprint() else None
            setting = setting if taken.name == "triton" else USUAL
            self._compiled[key] = compile_for(
                self.recurrence, lambda: self.program, call.sizes, request, taken, case, setting
            )
        return self._compiled[key]

    def _backend(self, call: Call | None, requested: str) -> Backend:
        if call is not None:
            return choose_backend(self.recurrence, requested, call.device, call.dtype)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if requested == "auto":
            here = "a GPU is here" if device.type == "cuda" else "no GPU is here"
            return Backend("triton" if device.type == "cuda" else "torch", here, automatic=True)
        return choose_backend(self.recurrence, requested, device, torch.float32)

    def _sizes(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Call | None, dict[str, int]]:
        """The sizes for explain and source: from a call's tensors, or given one by one."""
        from recur.explain import default_sizes

        if args or any(isinstance(x, Tensor) for x in kwargs.values()):
            call = arguments.bind_arguments(self.recurrence, args, kwargs)
            return call, call.sizes
        return None, default_sizes(self.program, kwargs)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels are launched on the current GPU, which need not be the tensors'."""
    is_other = device.type == "cuda" and device.index != torch.cuda.current_device()
    return torch.cuda.device(device) if is_other else HERE


def _refuse_packed(cu_seqlens: Tensor | None, reset: Tensor | None) -> None:
    for name, value in (("cu_seqlens", cu_seqlens), ("reset", reset)):
        if value is not None:
            raise NotImplementedError(
                f"`{name}` is not supported yet by compiled recurrences; use op.reference, or call the op once a "
                f"sequence and pass the state on with initial_state and output_final_state"
            )
