"""Programs for tests: one Mamba block with random integer weights, at any size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isobit.quant.program import Constant, Input, Node, Program, State, TensorType, constant, int_type


class Builder:
    """Collects the parts of a Program; every name starts with the program's."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.rng = name, np.random.default_rng(seed)
        self.constants: list[Constant] = []
        self.states: list[State] = []
        self.nodes: list[Node] = []

    def constant(self, name: str, low: int, high: int, shape: tuple[int, ...], elem: str) -> str:
        self.constants.append(constant(f"{self.name}.{name}", self.rng.integers(low, high, shape), int_type(elem)))
        return self.constants[-1].name

    def state(self, name: str, shape: tuple[int, ...], elem: str) -> str:
        self.states.append(State(f"{self.name}.{name}", TensorType(shape, int_type(elem))))
        return self.states[-1].name

    def node(self, op: str, index: str, inputs: list[str], out: str, state: str | None = None, **params: int) -> str:
        loc, _, _ = out.rpartition(".")
        self.nodes.append(
            Node(
                op,
                tuple(sorted(params.items())),
                tuple(inputs),
                f"{self.name}.{out}",
                index,
                f"{self.name}.{loc}",
                state,
            )
        )
        return self.nodes[-1].output

    def dense(self, x: str, rows: int, columns: int, out: str, limit: int, shift: int, end: str) -> str:
        """matmul and requantize_per_channel to +-limit."""
        weight = self.constant(f"{out}.weight", -127, 128, (rows, columns), "i8")
        bias = self.constant(f"{out}.bias", -2000, 2000, (rows,), "i32")
        acc = self.node("matmul", f"tk,{end}k,{end}->t{end}", [x, weight, bias], f"{out}.acc", acc=32)
        m = self.constant(f"{out}.multiplier", 1 << 29, 1 << 30, (rows,), "i32")
        return self.node(
            "requantize_per_channel", f"t{end},{end}->t{end}", [acc, m], f"{out}.y", s=shift, lo=-limit, hi=limit
        )


def mamba_block(
    d_model: int = 8,
    d_inner: int = 16,
    d_state: int = 4,
    kernel: int = 4,
    rank: int = 2,
    seed: int = 0,
    extra_op: tuple[str, Mapping[str, int]] | None = None,
) -> Program:
    """Input `x` (T, d_model) i16; `extra_op` is a pointwise op put after the first projection."""
    b = Builder("block", seed)
    x = Input("x", TensorType(("T", d_model), int_type("i16")))
    squares = b.node("sum_squares", "tk->t", ["x"], "norm.squares", acc=64)
    inverse = b.node("rsqrt", "t->t", [squares], "norm.inverse", up=0, eps=7, least=1, width=36)
    gain = b.constant("norm.gain", 6000, 9000, (d_model,), "i16")
    h = b.node("rmsnorm_scale", "td,t,d->td", ["x", inverse, gain], "norm.y", pre=17, s=18, lo=-127, hi=127)
    u = b.dense(h, d_inner, d_model, "in_proj_x", 127, 38, "c")
    if extra_op:
        u = b.node(extra_op[0], "tc->tc", [u], "in_proj_x.extra", None, **extra_op[1])
    z = b.dense(h, d_inner, d_model, "in_proj_z", 32767, 31, "c")
    weight = b.constant("conv.weight", -127, 128, (d_inner, kernel), "i8")
    bias = b.constant("conv.bias", -500, 500, (d_inner,), "i32")
    ring = b.state("conv.ring", (kernel - 1, d_inner), "i8")
    acc = b.node("causal_conv1d", "tc,cj,c->tc", [u, weight, bias], "conv.acc", ring, acc=32)
    m = b.constant("conv.multiplier", 1 << 29, 1 << 30, (d_inner,), "i32")
    pre = b.node("requantize_per_channel", "tc,c->tc", [acc, m], "conv.y", s=31, lo=-32767, hi=32767)
    u = b.node("silu", "tc->tc", [pre], "act.y", mx=23637, sx=14, m=19000, s=32, lo=-127, hi=127)
    low = b.dense(u, rank, d_inner, "dt_low", 127, 38, "r")
    key = b.dense(u, d_state, d_inner, "key", 127, 38, "n")
    query = b.dense(u, d_state, d_inner, "query", 127, 38, "n")
    wide = b.dense(low, d_inner, rank, "dt_proj", 32767, 31, "c")
    dt = b.node("softplus", "tc->tc", [wide], "dt_proj.dt", mx=5909, sx=12, m=1 << 30, s=37, hi=32767)
    rate = b.constant("ssm.rate", 20, 2000, (d_inner, d_state), "u15")
    decay = b.node("decay", "tc,cn->tcn", [dt, rate], "ssm.decay", s=12)
    v = b.node("multiply", "tc,tc->tc", [dt, u], "ssm.v", m=19661, s=18, lo=-32767, hi=32767)
    s = b.state("ssm.state", (d_inner, d_state), "i16")
    o = b.node(
        "linear_recurrence",
        "tcn,tc,tn,tn->tc|cn",
        [decay, v, key, query],
        "ssm.o",
        s,
        up=6,
        acc=32,
        lo=-32768,
        hi=32767,
    )
    skip = b.constant("ssm.skip", 1 << 17, 1 << 18, (d_inner,), "i32")
    y = b.node("add_per_channel", "tc,c,tc->tc", [o, skip, u], "ssm.y", mx=(1 << 30) - 9, s=26, lo=-32767, hi=32767)
    gate = b.node("silu", "tc->tc", [z], "gate.z", mx=23637, sx=14, m=(1 << 31) - 9, s=46, lo=-32767, hi=32767)
    gated = b.node("multiply", "tc,tc->tc", [y, gate], "gate.y", m=24001, s=34, lo=-127, hi=127)
    weight = b.constant("out_proj.weight", -127, 128, (d_model, d_inner), "i8")
    bias = b.constant("out_proj.bias", -900, 900, (d_model,), "i32")
    acc = b.node("matmul", "tk,dk,d->td", [gated, weight, bias], "out_proj.acc", acc=32)
    m = b.constant("out_proj.multiplier", 1 << 26, 1 << 27, (d_model,), "i32")
    out = b.node(
        "add_per_channel", "td,d,td->td", [acc, m, "x"], "out_proj.y", mx=(1 << 28) - 12345, s=28, lo=-32767, hi=32767
    )
    return Program(b.name, (x,), tuple(b.constants), tuple(b.states), tuple(b.nodes), (out,))
