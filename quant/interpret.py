"""The reference: every definition called on numpy int64 arrays, axes aligned by the node's index signature.

It is written to be read.  Every target must give the same integers.
"""

from __future__ import annotations

import numpy as np

from isobit.quant.check import Checked, check
from isobit.quant.errors import InputError
from isobit.quant.ops import Structure
from isobit.quant.ops.matmul import product
from isobit.quant.program import Array, Arrays, Node, Program

FLOAT64_EXACT = 1 << 53
"""Sums of products below this are exact in float64, where BLAS makes them fast."""


def interpret(
    program: Program, inputs: Arrays, states: Arrays | None = None, taps: Arrays | None = None
) -> tuple[Arrays, Arrays]:
    """Run the time that `inputs` hold, from `states` (reset states if None).  Returns (outputs, new states).

    Inputs and outputs: name -> int64 (B, T, *shape), T >= 1; states: name -> int64 (B, *shape).  A step is T = 1.
    `taps`, where given, receives the output of every node.
    """
    checked = check(program)
    values = checked_inputs(program, inputs)
    batch, steps = next(iter(values.values())).shape[:2]
    new = program.initial_states(batch) if states is None else checked_states(program, states, batch)
    values |= {c.name: c.array for c in program.constants}
    for n in program.nodes:
        values[n.output] = _run(n, checked, [values[i] for i in n.inputs], new, steps)
        if taps is not None:
            taps[n.output] = values[n.output]
    return {o: values[o] for o in program.outputs}, new


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
        case Structure.WINDOW:
            return _window(n, args, states)
        case Structure.RECURRENCE:
            return _recurrence(n, args, states, steps)


def _contraction(n: Node, c: Checked, args: list[Array]) -> Array:
    labels, out, reduced = n.labels.inputs, n.labels.output, n.labels.reduced
    terms = len(args) - n.spec.start
    known = c.ranges[n.output]
    if n.spec.start:
        known = known - c.ranges[n.inputs[-1]]
    if n.spec.define is product and max(abs(known.lo), abs(known.hi)) < FLOAT64_EXACT:
        index = ",".join("b" + k if "t" in k else k for k in labels[:terms]) + "->b" + out
        total = np.einsum(index, *(a.astype(np.float64) for a in args[:terms]), optimize=True).astype(np.int64)
    else:
        operands = [align(a, k, out + reduced) for a, k in zip(args[:terms], labels[:terms], strict=True)]
        total = np.asarray(n.spec.define(*operands)).sum(tuple(range(-len(reduced), 0)))
    return np.asarray(total + align(args[-1], labels[-1], out) if n.spec.start else total)


def _window(n: Node, args: list[Array], states: Arrays) -> Array:
    """x (B, T, C), weight (C, K), bias (C); ring (B, K-1, C), oldest first."""
    assert n.state is not None
    x, weight, bias = args
    padded = np.concatenate([states[n.state], x], axis=1)
    states[n.state] = padded[:, x.shape[1] :]
    taps = [n.spec.define(padded[:, j : j + x.shape[1]], weight[:, j]) for j in range(weight.shape[1])]
    return np.asarray(np.sum(taps, axis=0) + bias)


def _recurrence(n: Node, args: list[Array], states: Arrays, steps: int) -> Array:
    """One update and one readout per time step, in order: nothing may reassociate a rounded recurrence."""
    assert n.state is not None
    state, labels, rows = states[n.state], n.labels, []
    params = {k: v for k, v in n.params if k != "acc"}
    inner = tuple(i + 1 for i, k in enumerate(labels.state) if k not in labels.output)
    for t in range(steps):
        now = [
            align(a[:, t : t + 1] if "t" in k else a, k, "t" + labels.state)
            for a, k in zip(args, labels.inputs, strict=True)
        ]
        operands = [a[:, 0] if "t" in k else a[0] for a, k in zip(now, labels.inputs, strict=True)]
        if n.spec.readout is None:
            state = n.spec.define(state, *operands, **params)
            rows.append(state)
        else:
            state = n.spec.define(state, *operands[:-1], **params)
            rows.append(n.spec.readout(state, operands[-1]).sum(inner))
    states[n.state] = state
    return np.stack(rows, axis=1)
