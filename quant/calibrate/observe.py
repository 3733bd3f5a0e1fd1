"""The float graph in float64 numpy, and min-max ranges of all of its values on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.capture.graph import Floats, Graph, GraphNode
from isobit.quant.errors import InputError

Probe = Callable[[str, Floats], None]

CHUNK = 1 << 16
"""Time steps, over all sequences, that are evaluated at once."""


@dataclass(frozen=True)
class Range:
    """Least and largest value seen."""

    lo: float
    hi: float

    @property
    def absmax(self) -> float:
        return max(abs(self.lo), abs(self.hi))

    def join(self, other: Range) -> Range:
        return Range(min(self.lo, other.lo), max(self.hi, other.hi))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranges by value; a recurrence `r` adds `r.state`, its states, and `r.v`, dt * u.  samples: sequences seen.

    Every limit is rounded to float32, so that the order of a float sum does not reach the integers.
    """

    ranges: Mapping[str, Range]
    samples: int


def check_samples(x: npt.ArrayLike, graph: Graph, source: str = "calibration") -> Floats:
    """x as float64 (B, T, channels of the input), B, T >= 1, all finite; otherwise an InputError names `source`."""
    values, channels = check_array(x, source), graph.channels[graph.input]
    if values.shape[2] != channels:
        raise InputError(f"{source}: expected shape (samples, time, {channels}), got {values.shape}")
    return values


def check_array(x: npt.ArrayLike, source: str) -> Floats:
    """x as float64 (B, T, channels), no size 0, all finite; otherwise an InputError names `source`."""
    array = np.asarray(x)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{source}: expected an array of numbers, got {array.dtype}; convert it to float32")
    if array.ndim != 3:
        remedy = "; add the axis of samples with x[None]" if array.ndim == 2 else ""
        raise InputError(f"{source}: expected shape (samples, time, channels), got {array.shape}{remedy}")
    if array.size == 0:
        raise InputError(f"{source}: the array is empty, {array.shape}; give at least one sequence of one step")
    values = array.astype(np.float64)
    if bad := np.argwhere(~np.isfinite(values)).tolist():
        raise InputError(
            f"{source}: {len(bad)} of {values.size} values are NaN or infinite, the first at {tuple(bad[0])}; "
            "remove those samples"
        )
    return values


def evaluate(graph: Graph, x: Floats, probe: Probe | None = None) -> dict[str, Floats]:
    """Every value of the graph, (B, T, channels), for samples x, (B, T, channels).

    probe: called with `<recurrence>.state`, (B, C, N), at every step and with `<recurrence>.v`, (B, T, C).
    """
    values = {graph.input: x, **graph.parameters}
    with np.errstate(over="ignore", invalid="ignore"):
        for n in graph.nodes:
            values[n.output] = EVALUATORS[n.op](n, [values[i] for i in n.inputs], probe or _ignore)
    return {k: values[k] for k in graph.channels}


def float_outputs(graph: Graph, x: Floats) -> Floats:
    """The model's outputs, (B, T, channels), for samples x, (B, T, channels)."""
    return np.concatenate([evaluate(graph, part)[graph.output] for part in _chunks(x)])


def observe(graph: Graph, x: Floats, progress: Callable[[float], None] | None = None) -> Calibration:
    """Ranges of all values, and of the recurrences' states and drives, over samples x, (B, T, channels)."""
    seen: dict[str, Range] = {}

    def record(name: str, array: Floats) -> None:
        known = Range(float(array.min()), float(array.max()))
        seen[name] = seen[name].join(known) if name in seen else known

    done = 0
    for part in _chunks(x):
        for name, array in evaluate(graph, part, record).items():
            record(name, array)
        done += len(part)
        if progress:
            progress(done / len(x))
    for n in graph.nodes:
        if not np.isfinite(seen[n.output].absmax):
            raise InputError(f"{n.loc}: its {n.op} is not finite on the calibration data; the model diverges there")
    with np.errstate(over="ignore"):
        ranges = {k: Range(float(np.float32(r.lo)), float(np.float32(r.hi))) for k, r in seen.items()}
    return Calibration(ranges, len(x))


def _chunks(x: Floats) -> Iterator[Floats]:
    size = max(1, CHUNK // x.shape[1])
    for i in range(0, len(x), size):
        yield x[i : i + size]


def _ignore(name: str, array: Floats) -> None:
    pass


def _linear(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    x, weight, *bias = args
    y: Floats = x @ weight.T + (bias[0] if bias else 0.0)
    return y


def _causal_conv1d(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    x, weight, bias = args
    kernel = weight.shape[1]
    padded = np.pad(x, ((0, 0), (kernel - 1, 0), (0, 0)))
    taps = [padded[:, j : j + x.shape[1]] * weight[:, j] for j in range(kernel)]
    y: Floats = np.sum(taps, axis=0) + bias
    return y


def _rms_norm(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    x, weight = args
    y: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + n.attr["eps"]) * weight
    return y


def _silu(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    e = np.exp(-np.abs(args[0]))
    y: Floats = args[0] * np.where(args[0] < 0, e, 1.0) / (1 + e)
    return y


def _softplus(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    y: Floats = np.logaddexp(0.0, args[0])
    return y


def _selective_recurrence(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    u, dt, a, b, c = args
    v = dt * u
    probe(f"{n.output}.v", v)
    y, state = np.empty_like(u), np.zeros((len(u), *a.shape))
    for t in range(u.shape[1]):
        state = np.exp(dt[:, t, :, None] * a) * state + v[:, t, :, None] * b[:, t, None, :]
        probe(f"{n.output}.state", state)
        y[:, t] = (state @ c[:, t, :, None])[..., 0]
    return y


def _product(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    return args[0] * args[1]


def _add(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    return args[0] + args[1]


def _running_mean(n: GraphNode, args: list[Floats], probe: Probe) -> Floats:
    return np.cumsum(args[0], axis=1) / np.arange(1, args[0].shape[1] + 1)[:, None]


EVALUATORS: dict[str, Callable[[GraphNode, list[Floats], Probe], Floats]] = {
    "linear": _linear,
    "causal_conv1d": _causal_conv1d,
    "rms_norm": _rms_norm,
    "silu": _silu,
    "softplus": _softplus,
    "selective_recurrence": _selective_recurrence,
    "mul": _product,
    "scale": _product,
    "add": _add,
    "running_mean": _running_mean,
}
