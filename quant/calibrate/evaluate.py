"""The float graph in float64 numpy: what every operator means, and how a graph that feeds back is run.

A value is (B, T, *dims).  An evaluator that remembers takes and leaves what it remembers in `memory`, under the node's
output, so that any number of steps may be run at once: a graph that feeds back is run one step after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isobit.quant.calibrate.rounding import rounded_to_codes
from isobit.quant.capture.graph import Floats, Graph, GraphNode
from isobit.quant.ops.interpolate import normal_cdf, tanh_gate

Memory = dict[str, Floats]
Probe = Callable[[str, Floats], None]
"""Called with what an evaluator computes inside, (B, T, *dims): `<recurrence>.state`, for one, at every step."""

Evaluator = Callable[[GraphNode, list[Floats], Memory, Probe], Floats]

FORWARD = ("previous", "recall")
"""Operators that read a node which may stand behind them: its value, or its state, one step ago."""


def evaluate(graph: Graph, x: Floats, probe: Probe | None = None) -> dict[str, Floats]:
    """Every value of the graph, (B, T, *dims), for samples x, (B, T, *dims of the input)."""
    tell, memory = probe or _ignore, Memory()
    values: dict[str, Floats] = {graph.input: x}
    first = 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start, end in (*regions(graph), (len(graph.nodes), len(graph.nodes))):
            for n in graph.nodes[first:start]:
                values[n.output] = _one(graph, n, values, memory, tell)
            values |= _stepwise(graph, graph.nodes[start:end], values, memory, tell)
            first = end
    return {k: values[k] for k in graph.dims}


def regions(graph: Graph) -> tuple[tuple[int, int], ...]:
    """Runs of nodes, [first, end), that are run step by step: from a reader of the past to the node that it reads."""
    place = {n.output: i for i, n in enumerate(graph.nodes)}
    merged: list[tuple[int, int]] = []
    for i, n in enumerate(graph.nodes):
        if n.op not in FORWARD:
            continue
        span = i, max(i, place[n.inputs[-1]]) + 1
        if merged and span[0] < merged[-1][1]:
            span = merged[-1][0], max(span[1], merged[-1][1])
            merged.pop()
        merged.append(span)
    return tuple(merged)


def _one(graph: Graph, n: GraphNode, values: dict[str, Floats], memory: Memory, probe: Probe) -> Floats:
    found = EVALUATORS[n.op]
    args = [graph.parameters[i] if i in graph.parameters else values[i] for i in n.inputs]
    return found(n, args, memory, probe)


def _stepwise(
    graph: Graph, nodes: Sequence[GraphNode], values: dict[str, Floats], memory: Memory, probe: Probe
) -> dict[str, Floats]:
    if not nodes:
        return {}
    lead = values[graph.input].shape[:2]
    rows: dict[str, list[Floats]] = {n.output: [] for n in nodes}
    for t in range(lead[1]):
        now = {k: v[:, t : t + 1] for k, v in values.items()}
        for n in nodes:
            if n.op in FORWARD:
                now[n.output] = _read_back(graph, n, now, memory, lead[0])
            else:
                now[n.output] = _one(graph, n, now, memory, probe)
            rows[n.output].append(now[n.output])
        for n in nodes:
            if n.op == "previous":
                memory[n.output] = now[n.inputs[-1]]
    return {k: np.concatenate(v, axis=1) for k, v in rows.items()}


def _read_back(graph: Graph, n: GraphNode, now: dict[str, Floats], memory: Memory, batch: int) -> Floats:
    if n.op == "previous":
        shape = (batch, 1, *graph.dims[n.output])
        return memory.get(n.output, np.full(shape, n.number("initial")))
    key, source, shape = now[n.inputs[0]], n.inputs[1], (batch, 1, *graph.dims[n.output])
    if source not in memory:
        return np.zeros(shape)
    repeated = np.repeat(key[:, 0], memory[source].shape[1] // key.shape[2], axis=1)
    return np.asarray(np.einsum("bhvk,bhk->bhv", memory[source], repeated)).reshape(shape)


def _ignore(name: str, array: Floats) -> None:
    pass


def _axes(n: GraphNode) -> tuple[int, ...]:
    return tuple(a + 2 for a in n.integers("axes"))


def _linear(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, *bias = args
    axes = n.integer("contracted")
    y = np.tensordot(x, weight, (tuple(range(x.ndim - axes, x.ndim)), tuple(range(weight.ndim - axes, weight.ndim))))
    return np.asarray(y + bias[0] if bias else y)


def _grouped_linear(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, *bias = args
    y = np.einsum("...gk,gnk->...gn", x, weight)
    return np.asarray(y + bias[0] if bias else y)


def _conv2d(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, *bias = args
    (top, bottom, left, right), stride, dilation = n.integers("padding"), n.integers("stride"), n.integers("dilation")
    padded = np.pad(x, [(0, 0)] * 3 + [(top, bottom), (left, right)])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[-2:], strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, (3, 4))
    views = views[:, :, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
    index = "btcyxij,cij->btcyx" if weight.ndim == 3 else "btcyxij,ncij->btnyx"
    y = np.einsum(index, views, weight, optimize=True)
    return np.asarray(y + bias[0][:, None, None] if bias else y)


def _past(n: GraphNode, x: Floats, steps: int, memory: Memory) -> Floats:
    """x with the `steps` values before it, which are then those before the next step."""
    before = memory.get(n.output, np.zeros((len(x), steps, *x.shape[2:])))
    padded = np.concatenate([before, x], axis=1)
    memory[n.output] = padded[:, x.shape[1] :]
    return padded


def _causal_conv1d(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, bias = args
    kernel, padded = weight.shape[1], _past(n, x, weight.shape[1] - 1, memory)
    return np.asarray(sum(padded[:, j : j + x.shape[1]] * weight[:, j] for j in range(kernel)) + bias)


def _causal_fir(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, bias = args
    kernel, padded = weight.shape[2], _past(n, x, weight.shape[2] - 1, memory)
    return np.asarray(sum(padded[:, j : j + x.shape[1]] @ weight[:, :, j].T for j in range(kernel)) + bias)


def _history(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, length = args[0], n.integer("length")
    padded = _past(n, x, length - 1, memory)
    return np.stack([padded[:, j : j + x.shape[1]] for j in range(length)], axis=2)


def _count(n: GraphNode, steps: int, memory: Memory) -> Floats:
    """1, 2, ... for the steps of this call, (T,)."""
    before = float(memory.get(n.output, np.zeros(1))[0])
    memory[n.output] = np.array([before + steps])
    return np.arange(before + 1, before + steps + 1, dtype=np.float64)


def _rotation(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    """cos or sin of theta times the number of the step, from 0."""
    x, theta = args
    angles = (_count(n, x.shape[1], memory) - 1)[:, None] * theta
    turned = np.cos(angles) if n.text("how") == "cos" else np.sin(angles)
    return np.asarray(np.broadcast_to(turned, (len(x), *angles.shape)), np.float64)


def _running_mean(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x = args[0]
    before = memory.get(n.output, np.zeros((len(x), 1, *x.shape[2:])))
    counted = Memory({n.output: memory[f"{n.output}.count"]}) if f"{n.output}.count" in memory else Memory()
    count = _count(n, x.shape[1], counted)
    total = before + np.cumsum(x, axis=1)
    memory[n.output], memory[f"{n.output}.count"] = total[:, -1:], counted[n.output]
    return np.asarray(total / count.reshape(1, -1, *[1] * (x.ndim - 2)))


def _scan(
    n: GraphNode, memory: Memory, probe: Probe, steps: int, shape: tuple[int, ...],
    update: Callable[[Floats, int], Floats], read: Callable[[Floats, Floats, int], Floats],
) -> Floats:  # fmt: skip
    """The recurrence of states (B, *shape): update(state, t), read(old, new, t) -> (B, ...)."""
    state, rows = memory.get(n.output, np.zeros(shape)), []
    for t in range(steps):
        new = update(state, t)
        probe(f"{n.output}.state", new[:, None])
        rows.append(read(state, new, t))
        state = new
    memory[n.output] = state
    return np.stack(rows, axis=1)


def _selective_recurrence(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    u, dt, b, c, a = args
    if n.attr.get("inner"):
        flat = [z.reshape(-1, *z.shape[2:]) for z in (u, dt, b, c)]
        inside = GraphNode(n.op, n.inputs, n.output, (), n.loc)
        return _selective_recurrence(inside, [*flat, a], Memory(), probe).reshape(u.shape)
    v = dt * u
    probe(f"{n.output}.v", v)

    def update(state: Floats, t: int) -> Floats:
        return np.asarray(np.exp(dt[:, t, :, None] * a) * state + v[:, t, :, None] * b[:, t, None, :])

    shape = (len(u), *a.shape)
    return _scan(n, memory, probe, u.shape[1], shape, update, lambda _, new, t: (new @ c[:, t, :, None])[..., 0])


def _per_head(x: Floats, heads: int) -> Floats:
    """(B, T, G, K) -> (B, T, heads, K)."""
    return np.repeat(x, heads // x.shape[2], axis=2)


def _state_decay(decay: Floats) -> Floats:
    """(H,), (B, T, H) or (B, T, H, K) as a factor of states (B, T, H, V, K)."""
    if decay.ndim == 1:
        return decay[None, None, :, None, None]
    return decay[..., None, None] if decay.ndim == 3 else decay[..., None, :]


def _linear_recurrence(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    """States (B, H, V, K).  Inputs: q, k, v, then, of a delta update, b and u, then the decay, if there is one.

    v may be (B, T, G, R, V), with R heads for every one of G groups, whose q and k they share.
    """
    q, k, v, *rest = args
    if v.ndim == 5:
        groups, shared = v.shape[2:4]
        flat = [v.reshape(*v.shape[:2], groups * shared, -1)]
        flat += [r.reshape(-1) if r.ndim < 3 else r.reshape(*r.shape[:2], groups * shared, *r.shape[4:]) for r in rest]
        return _linear_recurrence(n, [q, k, *flat], memory, probe).reshape(v.shape)
    heads = v.shape[2]
    q, k = _per_head(q, heads), _per_head(k, heads)
    drive = v[..., :, None] * k[..., None, :]
    if n.op == "delta_update":
        b, u, *rest = rest
        drive = drive + u[..., :, None] * b[..., None, :]
    decay = np.broadcast_to(_state_decay(rest[0] if rest else np.ones(heads)), (*drive.shape[:3], 1, drive.shape[4]))
    old = bool(n.attr.get("reads_old"))
    return _scan(
        n, memory, probe, v.shape[1], (len(v), *drive.shape[2:]),
        lambda state, t: decay[:, t % decay.shape[1]] * state + drive[:, t],
        lambda before, new, t: np.einsum("bhvk,bhk->bhv", before if old else new, q[:, t]),
    )  # fmt: skip


def _diagonal_recurrence(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    decay, x = args
    decay = np.broadcast_to(decay, x.shape)
    return _scan(
        n, memory, probe, x.shape[1], (len(x), *x.shape[2:]), lambda h, t: decay[:, t] * h + x[:, t], lambda _, h, t: h
    )


def _convex_recurrence(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    gate, x = args
    gate = np.broadcast_to(gate, x.shape)
    return _scan(
        n, memory, probe, x.shape[1], (len(x), *x.shape[2:]),
        lambda h, t: h + gate[:, t] * (x[:, t] - h), lambda _, h, t: h,
    )  # fmt: skip


def _norm(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    """rms_norm, layer_norm and l2norm over the last axis, or the last `over` axes."""
    x, *affine = args
    axes = tuple(range(x.ndim - n.integer("over"), x.ndim))
    if n.op == "layer_norm":
        x = x - x.mean(axes, keepdims=True)
    power = (x * x).sum(axes, keepdims=True) if n.op == "l2norm" else (x * x).mean(axes, keepdims=True)
    y = x / np.sqrt(power + n.number("eps"))
    if affine:
        y = y * affine[0]
    return np.asarray(y + affine[1] if len(affine) > 1 else y)


def _inverse_rms(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x = args[0]
    axes = tuple(range(x.ndim - n.integer("over"), x.ndim))
    return np.asarray(1 / np.sqrt((x * x).mean(axes, keepdims=True) + n.number("eps")))


def _softmax(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    """`masked`: the last axis is a history, of which the slots before the first step do not count."""
    x = args[0]
    if n.attr.get("masked"):
        valid = np.arange(x.shape[-1]) >= x.shape[-1] - _count(n, x.shape[1], memory)[:, None]
        x = np.where(valid.reshape(1, x.shape[1], *[1] * (x.ndim - 3), x.shape[-1]), x, -np.inf)
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _reduce(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, how, axes, keep = args[0], n.text("how"), _axes(n), bool(n.attr["keep"])
    if how == "max":
        return np.asarray(x.max(axes, keepdims=keep))
    return np.asarray(x.mean(axes, keepdims=keep) if how == "mean" else x.sum(axes, keepdims=keep))


def _einsum(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    operands, _, output = n.text("index").partition("->")
    index = ",".join(f"...{k}" for k in operands.split(",")) + f"->...{output}"
    return np.asarray(np.einsum(index, *args, optimize=True))


def _top_k(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    """1 for the k largest of the last axis; of equal ones the earlier."""
    order = np.argsort(-args[0], axis=-1, kind="stable")[..., : n.integer("k")]
    mask = np.zeros_like(args[0])
    np.put_along_axis(mask, order, 1.0, axis=-1)
    return mask


def _heaviside(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, threshold = args[0], n.number("threshold")
    above = x >= threshold if n.attr.get("at_least") else x > threshold
    return np.asarray((above ^ bool(n.attr.get("negated"))).astype(float))


def _positions_conv1d(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, weight, bias = args
    length = x.shape[2] - weight.shape[1] + 1
    return np.asarray(sum(x[:, :, j : j + length] * weight[:, j] for j in range(weight.shape[1])) + bias)


def _slice(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    index = n.integer("start") + n.integer("step") * np.arange(n.integer("size"))
    return np.take(args[0], index, axis=n.integer("axis") + 2)


def _reshape(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    return args[0].reshape(*args[0].shape[:2], *n.integers("dims"))


def _permute(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    return args[0].transpose(0, 1, *(a + 2 for a in n.integers("order")))


def _concat(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    return np.concatenate(args, axis=n.integer("axis") + 2)


def _pad(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    widths = [(0, 0)] * args[0].ndim
    widths[n.integer("axis") + 2] = n.integer("before"), n.integer("after")
    return np.pad(args[0], widths)


def _fake_quantize(n: GraphNode, args: list[Floats], memory: Memory, probe: Probe) -> Floats:
    x, gain, shift = args
    return (rounded_to_codes(n, x * gain + shift) - n.integer("zero")) * n.number("scale")


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x) without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1 + e))


_normal_cdf = np.vectorize(normal_cdf, otypes=[np.float64])
_tanh_gate = np.vectorize(tanh_gate, otypes=[np.float64])


def _function(f: Callable[[Floats], Floats]) -> Evaluator:
    """An evaluator of one operand and nothing else."""
    return lambda n, args, memory, probe: np.asarray(f(args[0]))


def _of_two(f: Callable[[Floats, Floats], Floats]) -> Evaluator:
    return lambda n, args, memory, probe: np.asarray(f(args[0], args[1]))


EVALUATORS: dict[str, Evaluator] = {
    "linear": _linear,
    "grouped_linear": _grouped_linear,
    "conv2d": _conv2d,
    "causal_conv1d": _causal_conv1d,
    "causal_fir": _causal_fir,
    "positions_conv1d": _positions_conv1d,
    "embedding": lambda n, args, memory, probe: args[1][args[0].astype(np.int64)],
    "add": _of_two(lambda a, b: a + b),
    "sub": _of_two(lambda a, b: a - b),
    "mul": _of_two(lambda a, b: a * b),
    "div": _of_two(lambda a, b: a / b),
    "maximum": _of_two(np.maximum),
    "scale": _of_two(lambda x, p: x * p),
    "offset": _of_two(lambda x, p: x + p),
    "prelu": _of_two(lambda x, p: np.where(x < 0, p * x, x)),
    "rotate": lambda n, args, memory, probe: (
        args[0] * args[-2] + args[1] * args[-1] + (args[2] if len(args) > 4 else 0)
    ),
    "fake_quantize": _fake_quantize,
    "clamp": lambda n, args, memory, probe: np.clip(args[0], n.number("lo"), n.number("hi")),
    "heaviside": _heaviside,
    "silu": _function(lambda x: x * sigmoid(x)),
    "sigmoid": _function(sigmoid),
    "tanh": _function(np.tanh),
    "gelu": _function(lambda x: x * _normal_cdf(x)),
    "gelu_tanh": _function(lambda x: x * _tanh_gate(x)),
    "hardswish": _function(lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "elu": _function(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "softplus": _function(lambda x: np.logaddexp(0.0, x)),
    "log_sigmoid": _function(lambda x: -np.logaddexp(0.0, -x)),
    "exp": _function(np.exp),
    "abs": _function(np.abs),
    "sign": _function(np.sign),
    "sqrt": _function(np.sqrt),
    "rsqrt": lambda n, args, memory, probe: np.asarray(1 / np.sqrt(args[0] + n.number("eps"))),
    "rms_norm": _norm,
    "layer_norm": _norm,
    "l2norm": _norm,
    "inverse_rms": _inverse_rms,
    "softmax": _softmax,
    "reduce": _reduce,
    "einsum": _einsum,
    "top_k": _top_k,
    "slice": _slice,
    "reshape": _reshape,
    "permute": _permute,
    "concat": _concat,
    "pad": _pad,
    "shift": lambda n, args, memory, probe: _past(n, args[0], 1, memory)[:, :-1],
    "history": _history,
    "rotation": _rotation,
    "running_mean": _running_mean,
    "selective_recurrence": _selective_recurrence,
    "linear_recurrence": _linear_recurrence,
    "delta_update": _linear_recurrence,
    "diagonal_recurrence": _diagonal_recurrence,
    "convex_recurrence": _convex_recurrence,
}
