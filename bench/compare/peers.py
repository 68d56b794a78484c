"""The peers: a table from a zoo recurrence to the hand-written kernels that compute it.

A peer gets the zoo's tensors. ``prepare`` lays them out and computes the coefficients its kernel wants ready-made (a
normalised key, a decay from its parameters); ``kernel`` is what is timed; ``finish`` undoes the layout and applies what
the recurrence does to the readout. Only the kernel is timed, with its inputs ready: generous to the peer, since recur
evaluates coefficients inside. Vectors are given in bfloat16; coefficients of a prepared decay in ``derived``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
Prepare = Callable[[Tensors, torch.dtype], Tensors]
Kernel = Callable[[Tensors, bool], tuple[Tensor, Any]]

GUARDED = "its package refuses this gradient on Hopper under Triton 3.4 to 3.7.0; timed past the guard"


@dataclass(frozen=True)
class Peer:
    """One kernel for one recurrence.

    states: the final state by the recurrence's names, or None where it has another form. multiple: what T must be a
    multiple of. guarded: the package refuses its gradient on Hopper under Triton 3.4 to 3.7.0. yardstick: computes
    something else, and is timed for scale only.
    """

    name: str
    package: str
    recurrence: str
    prepare: Prepare
    kernel: Kernel
    finish: Callable[[Tensor, Tensors], Tensor] = lambda o, x: o
    states: Callable[[Any, Tensors], Tensors | None] = lambda final, x: None
    derived: torch.dtype = torch.float32
    multiple: int = 1
    guarded: bool = False
    yardstick: bool = False
    note: str = ""


def peers_of(recurrence: str, chosen: tuple[str, ...]) -> list[Peer]:
    """The installed peers of a recurrence whose package or name contains one of ``chosen`` ("all": every one).

    "none" is in no name.
    """
    return [
        p
        for p in PEERS
        if p.recurrence == recurrence
        and ("all" in chosen or any(c in p.name or c in p.package for c in chosen))
        and (p.package == "torch" or importlib.util.find_spec(p.package) is not None)
    ]


# --- packages ---------------------------------------------------------------------------------------------------------


def fla(module: str, function: str, **fixed: Any) -> Kernel:
    """A function of fla-core that takes the prepared tensors by name."""

    def call(x: Tensors, final: bool) -> tuple[Tensor, Any]:
        return _fla(module, function)(**x, **fixed, output_final_state=final)

    return call


@functools.cache
def _fla(module: str, function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{module}"), function)
    guard = sys.modules.get("fla.ops.common.chunk_o")
    if guard is not None:
        guard.TRITON_ABOVE_3_7_1 = True  # type: ignore[attr-defined]  # its gated backward refuses to run otherwise
    return found


def mlstm(kernel: str, **fixed: Any) -> Kernel:
    """A chunkwise kernel of mlstm-kernels at the chunk size its authors report."""

    def call(x: Tensors, final: bool) -> tuple[Tensor, Any]:
        options = fixed | {"chunk_size": 128, "autocast_kernel_dtype": torch.bfloat16}
        found = _mlstm(kernel)(**x, **options, return_last_states=final)
        return found if final else (found, None)

    return call


@functools.cache
def _mlstm(kernel: str) -> Callable[..., Any]:
    found: Callable[..., Any] = importlib.import_module("mlstm_kernels.torch.chunkwise").registry[kernel]
    return found


def mamba_ssd(x: Tensors, final: bool) -> tuple[Tensor, Any]:
    """mamba-ssm's Triton kernels for state space duality."""
    found = _mamba()(**x, chunk_size=256, dt_softplus=True, return_final_states=final)
    return found if final else (found, None)


@functools.cache
def _mamba() -> Callable[..., Any]:
    if "mamba_ssm" not in sys.modules:  # importing the package itself needs its compiled extension
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None and spec.submodule_search_locations is not None
        package = types.ModuleType("mamba_ssm")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        sys.modules["mamba_ssm"] = package
    found: Callable[..., Any] = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    return found


def accelerated_scan(x: Tensors, final: bool) -> tuple[Tensor, Any]:
    return _accelerated_scan()(x["forget"], x["inputs"]), None


@functools.cache
def _accelerated_scan() -> Callable[..., Any]:
    found: Callable[..., Any] = importlib.import_module("accelerated_scan.scalar").scan
    return found


def attention(x: Tensors, final: bool) -> tuple[Tensor, Any]:
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True), None


# --- layouts and coefficients -----------------------------------------------------------------------------------------


def take(*names: str, **renamed: str) -> Prepare:
    """The recurrence's own tensors, some of them under the peer's names."""
    return lambda x, derived: {n: x[n] for n in names} | {new: x[old] for new, old in renamed.items()}


def l2norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def normalised(x: Tensors, derived: torch.dtype) -> Tensors:
    """Delta rules whose spec normalises q and k; other tensors as they are."""
    return x | {"q": l2norm(x["q"]), "k": l2norm(x["k"])}


def like(x: Tensor, wide: Tensor) -> Tensor:
    """A computed vector in the inputs' dtype."""
    return wide.to(x.dtype)


def only(name: str) -> Callable[[Any, Tensors], Tensors]:
    """A single final state [B, H, K, V]."""
    return lambda final, x: {name: final}


def transposed(name: str) -> Callable[[Any, Tensors], Tensors]:
    """A single final state [B, H, V, K] of a peer that keeps [B, H, K, V], or the other way round."""
    return lambda final, x: {name: final.transpose(-1, -2)}


def decay_of_mamba(x: Tensors) -> tuple[Tensor, Tensor]:
    delta = F.softplus(x["dt"].float() + x["dt_bias"].float())
    return delta, -delta * x["A_log"].float().exp()


def mamba2_as_attention(x: Tensors, derived: torch.dtype) -> Tensors:
    delta, g = decay_of_mamba(x)
    return {"q": x["C"], "k": x["B"], "v": like(x["x"], delta[..., None] * x["x"].float()), "g": g.to(derived)}


def mamba2_as_ssd(x: Tensors, derived: torch.dtype) -> Tensors:
    params = {"A": -x["A_log"].float().exp(), "D": x["skip"].float(), "dt_bias": x["dt_bias"].float()}
    return {"x": x["x"], "dt": x["dt"], "B": x["B"], "C": x["C"]} | params


def rwkv7_as_dplr(x: Tensors, derived: torch.dtype) -> Tensors:
    removal = l2norm(x["kappa"])
    w = -0.6065306597126334 * x["w"].float().sigmoid()
    b = like(x["k"], removal.float() * x["a"].float())
    return {"r": x["r"], "w": w.to(derived), "k": x["k"], "v": x["v"], "a": -removal, "b": b}


def delta_net_negative(x: Tensors, derived: torch.dtype) -> Tensors:
    q, k = l2norm(F.silu(x["q"].float())), l2norm(F.silu(x["k"].float()))
    beta = (2 * x["b"].float().sigmoid()).to(derived)
    return {"q": like(x["q"], q), "k": like(x["k"], k), "v": x["v"], "beta": beta}


def efla_as_delta(x: Tensors, derived: torch.dtype) -> Tensors:
    size = x["k"].float().square().sum(-1)
    beta = (-torch.expm1(-x["beta"].float() * size) / size).to(derived)
    return {"q": x["q"], "k": x["k"], "v": x["v"], "beta": beta}


def comba_prepared(x: Tensors, derived: torch.dtype) -> Tensors:
    key = l2norm(x["k"])
    q = l2norm(x["q"]).float() - x["d"].float()[:, None] * key.float()
    p = like(key, x["b"].float().sigmoid()[:, None] * key.float())
    return {"q": like(key, q), "k": key, "v": x["v"], "p": p, "g": x["g"], "beta": x["beta"]}


def families_as_steps(x: Tensors, derived: torch.dtype) -> Tensors:
    """k, v [B, T, H, n, *] and beta [B, T, H, n] with the n corrections of a token in a row of T * n."""
    found = {n: x[n].movedim(3, 2).flatten(1, 2).contiguous() for n in ("k", "v", "beta")}
    return {n: x[n] for n in ("q", "g") if n in x} | found


def slots(x: Tensors, derived: torch.dtype) -> Tensors:
    s = like(x["k"], -torch.expm1(x["g"].float()))
    return {"q": x["q"], "k": x["k"], "v": x["v"], "s": s, "g": x["g"]}


def heads_first(*vectors: str, gates: tuple[str, ...] = ()) -> Prepare:
    """[B, H, T, *] as mlstm-kernels and PyTorch's attention want them."""
    return lambda x, derived: {n: x[n].transpose(1, 2).contiguous() for n in (*vectors, *gates)}


def tokens_first(o: Tensor, x: Tensors) -> Tensor:
    return o.transpose(1, 2)


def mlstm_states(final: Any, x: Tensors) -> Tensors:
    """C and n with their scale multiplied in; recur keeps the key's factor inside them."""
    c, n, m = final
    scale = m.reshape(*c.shape[:2], 1).exp() * c.shape[-2] ** -0.5
    return {"C": c * scale[..., None], "n": n * scale}


def gated_sum(coefficients: Callable[[Tensors], tuple[Tensor, Tensor]]) -> Callable[[bool], Prepare]:
    """A prepare for h = a * h + x: log decay and input [B, T, C] for fla, decay and input [B, C, T] for the scan."""

    def choose(time_last: bool) -> Prepare:
        def prepare(x: Tensors, derived: torch.dtype) -> Tensors:
            decay, added = (y.flatten(2) for y in coefficients({n: y.float() for n, y in x.items()}))
            if time_last:
                given = {"forget": decay, "inputs": added}
                return {n: y.to(derived).transpose(1, 2).contiguous() for n, y in given.items()}
            return {"x": added.to(derived), "g": decay.log().to(derived)}

        return prepare

    return choose


def hgrn(x: Tensors) -> tuple[Tensor, Tensor]:
    forget = x["lower"] + (1 - x["lower"]) * x["f"].sigmoid()
    return forget, (1 - forget) * F.silu(x["c"])


def mingru(x: Tensors) -> tuple[Tensor, Tensor]:
    gate = x["z"].sigmoid()
    return 1 - gate, gate * torch.where(x["x"] >= 0, x["x"] + 0.5, x["x"].sigmoid())


def minlstm(x: Tensors) -> tuple[Tensor, Tensor]:
    forget, write = x["f"].sigmoid(), x["i"].sigmoid()
    return forget / (forget + write), write / (forget + write) * x["x"]


def gateloop(x: Tensors) -> tuple[Tensor, Tensor]:
    return x["a"].sigmoid(), x["k"] * x["v"]


def per_head(o: Tensor, x: Tensors) -> Tensor:
    """[B, T, H * D] as [B, T, H, D]; a readout gate q is applied here."""
    like_output = next(y for y in x.values() if y.dim() == 4)
    o = o.unflatten(2, like_output.shape[2:])
    return o * x["q"].to(o.dtype) if "q" in x else o


def scan_rows(name: str, coefficients: Callable[[Tensors], tuple[Tensor, Tensor]]) -> tuple[Peer, ...]:
    prepare = gated_sum(coefficients)
    half, full = torch.bfloat16, torch.float32
    state = lambda final, x: {"h": final.unflatten(1, next(y for y in x.values() if y.dim() == 4).shape[2:])}  # noqa: E731
    last = lambda o, x: per_head(o.transpose(1, 2), x)  # noqa: E731
    chunk, scan = prepare(False), prepare(True)
    ready = "decay and input ready in "
    return (
        Peer("fla chunk_hgrn", "fla", name, chunk, fla("hgrn", "chunk_hgrn"), per_head, state, half,
             note=ready + "bfloat16"),
        Peer("accelerated-scan, bf16", "accelerated_scan", name, scan, accelerated_scan, last, derived=half,
             note=ready + "bfloat16, time contiguous"),
        Peer("accelerated-scan, f32", "accelerated_scan", name, scan, accelerated_scan, last, derived=full,
             note=ready + "float32, time contiguous"),
    )  # fmt: skip


def rwkv4_prepared(x: Tensors, derived: torch.dtype) -> Tensors:
    k, v = x["k"].flatten(2), x["v"].flatten(2)
    state = k.new_zeros(k.shape[0], 3, 1, k.shape[2], dtype=torch.float32)
    state[:, 2] = -1e38
    return {"w": x["w"].float().log().flatten(), "u": x["u"].float().flatten(), "k": k, "v": v, "state": state}


def rwkv4_kernel(x: Tensors, final: bool) -> tuple[Tensor, Any]:
    return _fla("rwkv4.fused_recurrent", "fused_recurrent_rwkv4")(*x.values())


def taylor(module: str, function: str, **fixed: Any) -> Kernel:
    """fla's kernels for the second-order feature maps, which keep no state."""
    return lambda x, final: (_fla(module, function)(**x, **fixed), None)


def rebased_prepared(x: Tensors, derived: torch.dtype) -> Tensors:
    q = x["gamma_q"].float() * x["q"].float() + x["beta_q"].float()
    k = x["gamma_k"].float() * x["k"].float() + x["beta_k"].float()
    return {"q": like(x["q"], q), "k": like(x["k"], k), "v": x["v"]}


def silu(x: Tensor) -> Tensor:
    return like(x, F.silu(x.float()))


def elu_plus_one(x: Tensor) -> Tensor:
    return like(x, F.elu(x.float()) + 1)


def rmsnorm(o: Tensor, x: Tensors) -> Tensor:
    wide = o.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)


# --- the table --------------------------------------------------------------------------------------------------------

NORMALISED = "l2norm of q and k ready"
QKV = ("q", "k", "v")

PEERS: tuple[Peer, ...] = (
    Peer("fla chunk_linear_attn", "fla", "linear_attention", take(*QKV),
         fla("linear_attn", "chunk_linear_attn", normalize=False), states=only("S")),
    Peer("fla fused_chunk_linear_attn", "fla", "linear_attention", take(*QKV),
         fla("linear_attn", "fused_chunk_linear_attn", normalize=False), states=only("S")),
    Peer("torch attention", "torch", "linear_attention", heads_first(*QKV), attention, tokens_first,
         yardstick=True, note="softmax attention: for scale, not the same function"),
    Peer("fla chunk_linear_attn", "fla", "linear_attention_normalised",
         lambda x, derived: {"q": elu_plus_one(x["q"]), "k": elu_plus_one(x["k"]), "v": x["v"]},
         fla("linear_attn", "chunk_linear_attn", normalize=True, scale=1.0),
         states=lambda final, x: {"S": final[0], "z": final[1].squeeze(1)}, note="elu + 1 ready"),
    Peer("fla chunk_simple_gla", "fla", "simple_gla", take(*QKV, "g"), fla("simple_gla", "chunk_simple_gla"),
         states=only("S"), guarded=True),
    Peer("fla fused_chunk_simple_gla", "fla", "simple_gla", take(*QKV, "g"),
         fla("simple_gla", "fused_chunk_simple_gla"), states=only("S")),
    Peer("fla chunk_simple_gla", "fla", "retnet",
         lambda x, derived: {n: x[n] for n in QKV} | {"g_gamma": x["gamma"].float().log()},
         fla("simple_gla", "chunk_simple_gla"), states=only("S"), note="no gradient of the decay"),
    Peer("fla chunk_simple_gla", "fla", "lightning",
         lambda x, derived: {"q": silu(x["q"]), "k": silu(x["k"]), "v": x["v"], "g_gamma": -x["slope"].float()},
         fla("simple_gla", "chunk_simple_gla", scale=1.0), rmsnorm, only("S"),
         note="silu ready, rmsnorm not timed, no gradient of the decay"),
    Peer("mamba-ssm SSD", "mamba_ssm", "mamba2", mamba2_as_ssd, mamba_ssd, states=only("h")),
    Peer("fla chunk_simple_gla", "fla", "mamba2", mamba2_as_attention,
         fla("simple_gla", "chunk_simple_gla", scale=1.0),
         lambda o, x: o.float() + x["skip"].float()[:, None] * x["x"].float(), transposed("h"), guarded=True,
         note="decay and step size ready, skip not timed"),
    Peer("fla chunk_gla", "fla", "gla", take(*QKV, "g"), fla("gla", "chunk_gla"), states=only("S")),
    Peer("fla chunk_gla", "fla", "hgrn2",
         lambda x, derived: {"q": x["q"], "k": like(x["q"], -torch.expm1(x["g"].float())), "v": x["v"], "g": x["g"]},
         fla("gla", "chunk_gla", scale=1.0), states=only("S"), note="key ready"),
    Peer("fla chunk_rwkv6", "fla", "rwkv6",
         lambda x, derived: {n: x[n] for n in ("r", "k", "v", "u")} | {"w": (-x["w"].float().exp()).to(derived)},
         fla("rwkv6", "chunk_rwkv6", scale=1.0), states=only("S"), note="log decay ready in float32"),
    Peer("fla chunk_lightnet", "fla", "lightnet",
         lambda x, derived: {"q": silu(x["q"]), "k": x["k"], "v": x["v"]},
         fla("lightnet.chunk", "chunk_lightnet", scale=1.0), note="silu of q ready"),
    Peer("fla chunk_delta_rule", "fla", "delta_net", normalised, fla("delta_rule", "chunk_delta_rule"),
         states=only("S"), note=NORMALISED),
    Peer("fla chunk_delta_rule", "fla", "delta_net_negative", delta_net_negative,
         fla("delta_rule", "chunk_delta_rule", scale=1.0), states=only("S"), note="keys, queries and rates ready"),
    Peer("fla chunk_delta_rule", "fla", "ttt_linear", take(*QKV, beta="eta"),
         fla("delta_rule", "chunk_delta_rule", scale=1.0), states=only("W")),
    Peer("fla chunk_delta_rule", "fla", "efla", efla_as_delta, fla("delta_rule", "chunk_delta_rule", scale=1.0),
         states=only("S"), note="rates ready"),
    Peer("fla chunk_gated_delta_rule", "fla", "gated_delta_net", take(*QKV, "g", "beta"),
         fla("gated_delta_rule", "chunk_gated_delta_rule"), states=only("S"), guarded=True),
    Peer("fla chunk_kda", "fla", "kda", normalised, fla("kda", "chunk_kda"), states=only("S"), note=NORMALISED),
    Peer("fla chunk_comba", "fla", "comba", comba_prepared, fla("comba", "chunk_comba"), states=only("S"),
         guarded=True, note="keys, queries and feedback ready"),
    Peer("fla chunk_gated_oja_rule", "fla", "gated_oja",
         lambda x, derived: {"q": x["q"], "k": x["k"], "v": l2norm(x["v"]), "gv": x["g"], "beta": x["beta"]},
         fla("gated_oja_rule", "chunk_gated_oja_rule", scale=1.0), states=only("S"), note="l2norm of v ready"),
    Peer("fla chunk_rwkv7", "fla", "rwkv7", rwkv7_as_dplr, fla("rwkv7", "chunk_rwkv7"), states=transposed("S"),
         note="log decay ready in float32, removal keys ready"),
    Peer("fla chunk_rwkv7, bounded", "fla", "rwkv7", rwkv7_as_dplr, fla("rwkv7", "chunk_rwkv7", lower_bound=-0.61),
         states=transposed("S"), note="as above, told the decay's bound"),
    Peer("fla chunk_dplr_delta_rule", "fla", "dplr", take(*QKV, "a", "b", gk="g"),
         fla("generalized_delta_rule", "chunk_dplr_delta_rule"), states=only("S")),
    Peer("fla chunk_gated_delta_product", "fla", "gated_delta_product", families_as_steps,
         fla("gated_delta_product", "chunk_gated_delta_product", num_householder=2), states=only("S")),
    Peer("fla chunk_gated_delta_product", "fla", "delta_product", families_as_steps,
         fla("gated_delta_product", "chunk_gated_delta_product", g=None, num_householder=2), states=only("S")),
    Peer("fla chunk_gsa", "fla", "gated_slot_attention", slots, fla("gsa", "chunk_gsa"),
         states=lambda final, x: {"R": final[0].transpose(-1, -2), "S": final[1]}, note="1 - exp(g) ready"),
    Peer("TFLA exp, chunk 128", "mlstm_kernels", "mlstm_exp", heads_first(*QKV, gates=("i", "f")),
         mlstm("triton_xl_chunk"), tokens_first, mlstm_states, multiple=128,
         note="heads before time; its gradient takes the normaliser as a constant"),
    Peer("TFLA sig, chunk 128", "mlstm_kernels", "mlstm_sig", heads_first(*QKV, gates=("i", "f")),
         mlstm("triton_xl_chunk_siging", normalize=False), tokens_first, lambda final, x: {"C": final[0]},
         multiple=128, note="heads before time"),
    Peer("fla chunk_simple_gla", "fla", "mlstm_sig",
         lambda x, derived: {"q": x["q"], "k": x["k"], "v": like(x["v"], x["i"].float().sigmoid()[..., None] * x["v"]),
                             "g": F.logsigmoid(x["f"].float()).to(derived)},
         fla("simple_gla", "chunk_simple_gla"), states=only("C"), guarded=True, note="gates and gated values ready"),
    Peer("fla fused_chunk_based", "fla", "based", take(*QKV), taylor("based", "fused_chunk_based")),
    Peer("fla parallel_based", "fla", "based", take(*QKV), taylor("based", "parallel_based")),
    Peer("fla parallel_rebased", "fla", "rebased", rebased_prepared,
         taylor("rebased", "parallel_rebased", use_scale=False, eps=1e-6), note="scaled and shifted q and k ready"),
    *scan_rows("hgrn", hgrn),
    *scan_rows("mingru", mingru),
    *scan_rows("minlstm", minlstm),
    *scan_rows("gateloop_real", gateloop),
    Peer("fla fused_recurrent_rwkv4", "fla", "rwkv4", rwkv4_prepared, rwkv4_kernel, per_head),
)  # fmt: skip


def recur_itself(op: Any, strategy: str, backend: str, name: str) -> Peer:
    """The recurrence as recur compiles it, in a peer's clothes."""
    from compare import true_states

    def kernel(x: Tensors, final: bool) -> tuple[Tensor, Any]:
        return op(**x, output_final_state=final, strategy=strategy, backend=backend)

    def states(final: Any, x: Mapping[str, Tensor]) -> Tensors:
        return true_states(op, final if isinstance(final, dict) else dict(zip(op.states, [final], strict=True)), {})

    return Peer(name, "recur", op.name, lambda x, derived: dict(x), kernel, states=states)
