"""The reference: every definition called on numpy int64 arrays, axes aligned by the node's index signature.

It is written to be read.  Every target must give the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isobit.quant.check import Checked, check, term_parameters
from isobit.quant.errors import InputError
from isobit.quant.ops import Structure
from isobit.quant.ops.matmul import product
from isobit.quant.ops.moves import Affine, Place
from isobit.quant.program import Array, Arrays, Node, Program

FLOAT64_EXACT = 1 << 53
"""Sums of products below this are exact in float64, where BLAS makes them fast."""


def interpret(
    program: Program,
    inputs: Arrays,
    states: Arrays | None = None,
    taps: Arrays | None = None,
    forced: Arrays | None = None,
) -> tuple[Arrays, Arrays]:
    """Run the time that `inputs` hold, from `states` (reset states if None).  Returns (outputs, new states).

    Inputs and outputs: name -> int64 (B, T, *shape), T >= 1; states: name -> int64 (B, *shape).  A step is T = 1.
    `taps`, where given, receives the output of every node.  `forced`: outputs of stateless nodes, by name, that are
    taken as they are given.
    """
    checked = check(program)
    values = checked_inputs(program, inputs)
    batch, steps = next(iter(values.values())).shape[:2]
    given = checked_forced(checked, forced or {}, batch, steps)
    new = program.initial_states(batch) if states is None else checked_states(program, states, batch)
    constants = {c.name: c.array for c in program.constants}
    first = 0
    for start, end in (*program.regions, (len(program.nodes), len(program.nodes))):
        for n in program.nodes[first:start]:
            if n.output in given:
                values[n.output] = given[n.output]
            else:
                values[n.output] = _run(n, checked, [_operand(i, values, constants, new) for i in n.inputs], new, steps)
        values |= _region(program.nodes[start:end], checked, values, constants, new, steps, given)
        first = end
    if taps is not None:
        taps.update({n.output: values[n.output] for n in program.nodes})
    return {o: values[o] for o in program.outputs}, new


def run_node(c: Checked, n: Node, values: Arrays) -> Array | None:
    """What a node without a state makes of these values; None where an operand is a state."""
    known = values | {i: c.program.constant[i].array for i in n.inputs if i in c.program.constant}
    if not all(i in known for i in n.inputs):
        return None
    steps = next(values[i].shape[1] for i in n.inputs if i in values)
    return _run(n, c, [known[i] for i in n.inputs], {}, steps)


def _operand(name: str, values: Arrays, constants: Arrays, states: Arrays) -> Array:
    """A value, a constant, or a state as a value of one time step."""
    if name in values:
        return values[name]
    return constants[name] if name in constants else states[name][:, None]


def _region(
    nodes: Sequence[Node], c: Checked, values: Arrays, constants: Arrays, states: Arrays, steps: int, given: Arrays
) -> Arrays:
    """Nodes that feed back, one time step after the other."""
    rows: dict[str, list[Array]] = {n.output: [] for n in nodes}
    outside = {i for n in nodes for i in n.inputs if i in values}
    for t in range(steps if nodes else 0):
        now = {i: values[i][:, t : t + 1] for i in outside}
        for n in nodes:
            if n.output in given:
                now[n.output] = given[n.output][:, t : t + 1]
            else:
                now[n.output] = _run(n, c, [_operand(i, now, constants, states) for i in n.inputs], states, 1)
            rows[n.output].append(now[n.output])
    return {name: np.concatenate(made, axis=1) for name, made in rows.items() if made}


def checked_inputs(program: Program, inputs: Arrays) -> Arrays:
    """Inputs as int64, their names, shapes and ranges verified against the Program's."""
    if set(inputs) != {i.name for i in program.inputs}:
        raise InputError(f"{program.name}: expected inputs {[i.name for i in program.inputs]}, got {sorted(inputs)}")
    checked: Arrays = {}
    for i in program.inputs:
        x = np.asarray(inputs[i.name])
        if x.ndim != len(i.type.shape) + 1 or x.shape[2:] != i.type.dims or min(x.shape[:2]) < 1:
            expected = ", ".join(["B", *map(str, i.type.shape)])
            raise InputError(f"input {i.name}: expected shape ({expected}) with B, T >= 1, got {x.shape}")
        if not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"input {i.name}: expected integers, got {x.dtype}")
        if x.min() < i.type.elem.range.lo or x.max() > i.type.elem.range.hi:
            raise InputError(f"input {i.name}: expected values of {i.type.elem}, got [{x.min()}, {x.max()}]")
        checked[i.name] = x.astype(np.int64)
    if len({x.shape[:2] for x in checked.values()}) > 1:
        raise InputError(
            f"{program.name}: inputs differ in batch or time: { {k: x.shape for k, x in checked.items()} }"
        )
    return checked


def checked_forced(c: Checked, forced: Arrays, batch: int, steps: int) -> Arrays:
    """Outputs of nodes as int64, their names, shapes and ranges verified against what the nodes may make."""
    stateless = {n.output for n in c.program.nodes if not n.state}
    for name, given in forced.items():
        if name not in stateless:
            raise InputError(f"forced {name}: the Program has no node of this name that holds no state")
        x, known, shape = np.asarray(given), c.ranges[name], (batch, steps, *c.types[name].dims)
        if x.shape != shape or not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"forced {name}: expected integers {shape}, got {x.dtype} {x.shape}")
        if x.size and (x.min() < known.lo or x.max() > known.hi):
            raise InputError(f"forced {name}: expected values in {known}, got [{x.min()}, {x.max()}]")
    return {k: np.asarray(x).astype(np.int64) for k, x in forced.items()}


def checked_states(program: Program, states: Arrays, batch: int) -> Arrays:
    """States as int64, their names, shapes and ranges verified against the Program's."""
    if set(states) != set(program.state):
        raise InputError(f"{program.name}: expected states {sorted(program.state)}, got {sorted(states)}")
    for s in program.states:
        x, held = np.asarray(states[s.name]), s.type.elem.range
        if x.shape != (batch, *s.type.dims) or not np.issubdtype(x.dtype, np.integer):
            raise InputError(f"state {s.name}: expected integers {(batch, *s.type.dims)}, got {x.dtype} {x.shape}")
        if x.size and (x.min() < held.lo or x.max() > held.hi):
            raise InputError(f"state {s.name}: expected values of {s.type.elem}, got [{x.min()}, {x.max()}]")
    return {k: np.asarray(x).astype(np.int64) for k, x in states.items()}


def align(x: Array, labels: str, order: str) -> Array:
    """x with axes `labels` (batch first where they have t), made to broadcast along `b` + `order`."""
    have = "b" + labels if "t" in labels else labels
    want = "b" + order
    x = np.transpose(x, [have.index(k) for k in want if k in have])
    return np.expand_dims(x, [i for i, k in enumerate(want) if k not in have])


def _run(n: Node, c: Checked, args: list[Array], states: Arrays, steps: int) -> Array:
    match n.spec.structure:
        case Structure.POINTWISE:
            operands = [align(a, k, n.labels.output) for a, k in zip(args, n.labels.inputs, strict=True)]
            shape = np.broadcast_shapes(*(o.shape for o in operands))
            return np.broadcast_to(n.spec.define(*operands, **n.param), shape)
        case Structure.CONTRACTION:
            return _contraction(n, c, args)
        case Structure.CONVOLUTION:
            return _convolution(n, c, args)
        case Structure.WINDOW:
            return _window(n, args, states)
        case Structure.HISTORY:
            return _history(n, args, states)
        case Structure.RECURRENCE:
            return _scan(n, c, args) if n.labels.scanned else _recurrence(n, args, states, steps)
        case Structure.LAYOUT:
            return _layout(n, c, args)
        case Structure.GATHER:
            return np.asarray(n.spec.define(args[1][args[0]]))


def _products(n: Node, c: Checked, labels: tuple[str, ...], args: list[Array]) -> Array:
    """The terms of `args`, whose axes are `labels`, combined over what the output lacks; without the start."""
    out, reduced = n.labels.output, n.labels.reduced
    known = c.ranges[n.output]
    if n.spec.start:
        known = known - c.ranges[n.inputs[-1]]
    if n.spec.define is product and max(abs(known.lo), abs(known.hi)) < FLOAT64_EXACT:
        index = ",".join("b" + k if "t" in k else k for k in labels) + "->b" + out
        return np.asarray(np.einsum(index, *(a.astype(np.float64) for a in args), optimize=True).astype(np.int64))
    operands = [align(a, k, out + reduced) for a, k in zip(args, labels, strict=True)]
    terms, axes = np.asarray(n.spec.define(*operands, **term_parameters(n))), tuple(range(-len(reduced), 0))
    return np.asarray(terms.max(axes) if n.spec.combine == "max" else terms.sum(axes))


def _contraction(n: Node, c: Checked, args: list[Array]) -> Array:
    terms = len(args) - n.spec.start
    total = _products(n, c, n.labels.inputs[:terms], args[:terms])
    return np.asarray(total + align(args[-1], n.labels.inputs[-1], n.labels.output) if n.spec.start else total)


def _convolution(n: Node, c: Checked, args: list[Array]) -> Array:
    """Every element of the kernel meets its own slice of the operand."""
    x, weight, start = args
    x_labels, w_labels, start_labels = n.labels.inputs
    sizes = c.sizes[n.output]
    windows, labels = x, "b" + x_labels
    for i, (slid, made, kernel) in enumerate(n.labels.slides):
        axis, (stride, dilation) = labels.index(slid), n.step(i)
        reach = dilation * (sizes[kernel] - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(windows, reach, axis)
        cut = [slice(None)] * windows.ndim
        cut[axis], cut[-1] = slice(None, None, stride), slice(None, None, dilation)
        windows, labels = windows[tuple(cut)], labels.replace(slid, made) + kernel
    total = _products(n, c, (labels.replace("b", ""), w_labels), [windows, weight])
    return np.asarray(total + align(start, start_labels, n.labels.output))


def _window(n: Node, args: list[Array], states: Arrays) -> Array:
    """x (B, T, C), weight (C, K) or (N, C, K), bias (C) or (N); ring (B, K-1, C), oldest first.  C and N may lack."""
    assert n.state is not None
    x, weight, bias = args
    padded = np.concatenate([states[n.state], x], axis=1)
    states[n.state] = padded[:, x.shape[1] :]
    channels, _, made = n.labels.inputs
    summed = tuple(range(-len(n.labels.reduced) + 1, 0)) if len(n.labels.reduced) > 1 else ()
    total = np.zeros((*x.shape[:2], *bias.shape), np.int64) + bias
    for j in range(weight.shape[-1]):
        now = align(padded[:, j : j + x.shape[1]], channels, "t" + (made if not summed else made + channels[1:]))
        total += n.spec.define(now, weight[..., j], **term_parameters(n)).sum(summed)
    return total


def _history(n: Node, args: list[Array], states: Arrays) -> Array:
    """x (B, T, ...) -> (B, T, K, ...), oldest first; ring (B, K-1, ...)."""
    assert n.state is not None
    x, length = args[0], n.param["length"]
    padded = np.concatenate([states[n.state], x], axis=1)
    states[n.state] = padded[:, x.shape[1] :]
    return np.stack([padded[:, j : j + x.shape[1]] for j in range(length)], axis=2)


def _layout(n: Node, c: Checked, args: list[Array]) -> Array:
    assert n.spec.moves is not None
    sizes = c.sizes[n.output]
    batch, steps = args[0].shape[:2]
    out = np.empty((batch, steps, *(sizes[k] for k in n.labels.output if k != "t")), np.int64)
    for move in n.spec.moves(n.labels, sizes, **n.param):
        grid = dict(zip((k for k, _ in move.loops), np.indices([size for _, size in move.loops]), strict=True))
        target = (slice(None), slice(None), *(position(p, grid) for p in move.target))
        if move.operand is None:
            out[target] = move.fill
        else:
            source = (slice(None), slice(None), *(position(p, grid) for p in move.source))
            out[target] = args[move.operand][source]
    return out


def position(place: Place, grid: Mapping[str, Array]) -> Array | int:
    """An index for every value of the loops' labels, given arrays of those."""
    if isinstance(place, Affine):
        return np.asarray(place.by + sum(coefficient * grid[k] for k, coefficient in place.terms))
    return place if isinstance(place, int) else grid[place]


def _recurrence(n: Node, args: list[Array], states: Arrays, steps: int) -> Array:
    """One update and one readout per time step, in order: nothing may reassociate a rounded recurrence."""
    assert n.state is not None
    rows = []
    for t in range(steps):
        now = [
            align(a[:, t : t + 1] if "t" in k else a, k, "t" + n.labels.state)[:, 0]
            for a, k in zip(args, n.labels.inputs, strict=True)
        ]
        states[n.state], row = _update(n, states[n.state], now)
        rows.append(row)
    return np.stack(rows, axis=1)


def _scan(n: Node, c: Checked, args: list[Array]) -> Array:
    """As `_recurrence`, along an axis inside each time step, from a state of zeros."""
    scanned, order = n.labels.scanned, "t" + n.labels.state
    sizes = c.sizes[n.output]
    batch, steps = np.broadcast_shapes(*(a.shape[:2] for a, k in zip(args, n.labels.inputs, strict=True) if "t" in k))
    state = np.zeros((batch, steps, *(sizes[k] for k in n.labels.state)), np.int64)
    rows = []
    for i in range(sizes[scanned]):
        now = []
        for a, k in zip(args, n.labels.inputs, strict=True):
            axis = ("b" + k if "t" in k else k).find(scanned)
            one = a if axis < 0 else np.take(a, i, axis)
            now.append(align(one, k.replace(scanned, ""), order))
        state, row = _update(n, state, now)
        rows.append(row)
    return np.stack(rows, axis=n.labels.output.index(scanned) + 1)


def _update(n: Node, state: Array, now: list[Array]) -> tuple[Array, Array]:
    """The new state, and the output of one step; operands broadcast along the state."""
    params = {k: v for k, v in n.params if k != "acc"}
    queries = n.spec.queries
    updates, asked = now[: len(now) - queries], now[len(now) - queries :]
    new = np.broadcast_to(n.spec.define(state, *updates, **params), state.shape)
    if n.spec.readout is None:
        return new, new
    inner = tuple(i - len(n.labels.state) for i, k in enumerate(n.labels.state) if k not in n.labels.output)
    return new, n.spec.readout(state if n.spec.reads_old else new, *asked).sum(inner)
