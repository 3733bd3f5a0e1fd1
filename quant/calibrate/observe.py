"""Samples, checked, and min-max ranges of all values of the float graph on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isobit.quant.calibrate.evaluate import FORWARD, evaluate
from isobit.quant.capture.graph import NEVER, Floats, Graph
from isobit.quant.errors import InputError

SEEN = 1 << 12
"""Elements of a value that are kept."""

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

    least, most: of every element, of the value's dims; of states too.  means, squares: the mean of every element, and
    that of its square.  seen: up to SEEN of its elements, evenly spaced.
    Every limit is rounded to float32, so that the order of a float sum does not reach the integers.
    """

    ranges: Mapping[str, Range]
    samples: int
    least: Mapping[str, Floats]
    most: Mapping[str, Floats]
    means: Mapping[str, Floats]
    squares: Mapping[str, Floats]
    seen: Mapping[str, Floats]

    def peaks(self, v: str) -> Floats:
        """The largest magnitude of every element of a value or a state."""
        return np.maximum(np.abs(self.least[v]), np.abs(self.most[v]))


def check_array(x: npt.ArrayLike, source: str) -> Floats:
    """x as float64, no size 0, all finite, of a shape that some model takes; otherwise an InputError names `source`.

    (samples, time, channels) for a sequence of real numbers, (samples, time) for one of integer identifiers,
    (samples, channels, height, width) for images.
    """
    array = np.asarray(x)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"{source}: expected an array of numbers, got {array.dtype}; convert it to float32")
    if array.ndim == 2 and not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{source}: expected shape (samples, time, channels), got {array.shape}; "
            "add the axis of samples with x[None], or give identifiers as integers, (samples, time)"
        )
    if array.ndim not in (2, 3, 4):
        raise InputError(
            f"{source}: expected shape (samples, time, channels), (samples, time) of integers, or "
            f"(samples, channels, height, width), got {array.shape}"
        )
    if array.size == 0:
        raise InputError(f"{source}: the array is empty, {array.shape}; give at least one sequence of one step")
    values = array.astype(np.float64)
    if bad := np.argwhere(~np.isfinite(values)).tolist():
        raise InputError(
            f"{source}: {len(bad)} of {values.size} values are NaN or infinite, the first at {tuple(bad[0])}; "
            "remove those samples"
        )
    return values


def check_samples(x: npt.ArrayLike, graph: Graph, source: str = "calibration") -> Floats:
    """x as float64 (B, T, *dims of the input), B, T >= 1, all finite; otherwise an InputError names `source`.

    An image model's samples have no time axis; here they get one of size 1.
    """
    values, dims = check_array(x, source), graph.dims[graph.input]
    lead = 2 if graph.timed else 1
    if values.shape[lead:] != dims:
        expected = ", ".join(["samples", *(["time"] if graph.timed else []), *map(str, dims)])
        raise InputError(f"{source}: expected shape ({expected}), got {values.shape}")
    if graph.vocabulary is not None and (values.min() < 0 or values.max() >= graph.vocabulary):
        raise InputError(
            f"{source}: identifiers in [{values.min():g}, {values.max():g}], "
            f"the model knows 0 to {graph.vocabulary - 1}"
        )
    return values if graph.timed else values[:, None]


def float_outputs(graph: Graph, x: Floats) -> Floats:
    """The model's outputs, (B, T, *dims), for samples x, (B, T, *dims)."""
    return np.concatenate([evaluate(graph, part)[graph.output] for part in _chunks(x)])


def observe(graph: Graph, x: Floats, progress: Callable[[float], None] | None = None) -> Calibration:
    """Ranges of all values, and of the recurrences' states and drives, over samples x, (B, T, *dims)."""
    seen: dict[str, Range] = {}
    least: dict[str, Floats] = {}
    most: dict[str, Floats] = {}
    means: dict[str, Floats] = {}
    squares: dict[str, Floats] = {}
    kept: dict[str, list[Floats]] = {}

    def record(name: str, array: Floats) -> None:
        happened = array[np.abs(array) < -NEVER / 2] if array.min() < NEVER / 2 else array
        if happened.size == 0:
            return
        known = Range(float(happened.min()), float(happened.max()))
        seen[name] = seen[name].join(known) if name in seen else known
        for moments, values in ((means, array), (squares, array * array)):
            share = values.mean((0, 1)) * (len(array) / len(x))
            moments[name] = moments[name] + share if name in moments else share
        wanted = max(1, SEEN * len(array) // len(x))
        kept.setdefault(name, []).append(array.ravel()[:: -(-array.size // wanted)])
        lo, hi = array.min((0, 1)), array.max((0, 1))
        least[name], most[name] = np.minimum(least.get(name, lo), lo), np.maximum(most.get(name, hi), hi)

    done = 0
    for part in _chunks(x):
        for name, array in evaluate(graph, part, record).items():
            record(name, array)
        done += len(part)
        if progress:
            progress(done / len(x))
    for n in graph.nodes:
        if n.op in FORWARD:
            continue
        if n.output not in seen or not np.isfinite(seen[n.output].absmax):
            raise InputError(f"{n.loc}: its {n.op} is not finite on the calibration data; the model diverges there")
    seen |= {n.output: seen[n.inputs[0]] for n in graph.nodes if n.op == "previous"}
    with np.errstate(over="ignore"):
        ranges = {k: Range(float(np.float32(r.lo)), float(np.float32(r.hi))) for k, r in seen.items()}
        least, most, means, squares = (
            {k: np.asarray(p, np.float32).astype(np.float64) for k, p in rows.items()}
            for rows in (least, most, means, squares)
        )
    return Calibration(ranges, len(x), least, most, means, squares, {k: np.concatenate(v) for k, v in kept.items()})


def _chunks(x: Floats) -> Iterator[Floats]:
    size = max(1, CHUNK // x.shape[1])
    for i in range(0, len(x), size):
        yield x[i : i + size]
