"""Certificates: where the state of a stateful node stays although nothing stops it there.

They are found by `quant/certify.py`, travel with the Program, and are checked again by `quant/recheck.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from isobit.quant.errors import CheckError

Array = npt.NDArray[np.int64]

Kind = Literal["invariant", "ellipse", "steps", "holds", "saturates"]


@dataclass(frozen=True)
class Certificate:
    """Of the state of one node: every element stays in [lo, hi] from its initial value on, were there no clip.

    node: the output of the stateful node, also of one whose state does not outlive a step.
    kind: invariant, an update leads from the interval into it, for every code of `step` and every operand that can meet
    this code; ellipse, so of the ellipse with half-axes hi that two states span, the other being that of node `step`;
    steps, so for the first t_max steps; holds, the state is an operand, which no loop through the state pushes out;
    saturates, nothing is claimed.
    step: the value whose codes the operands share; empty where they are independent.
    axes: of the state, those along which lo and hi differ, in the order of the state; lo, hi: row-major.
    """

    node: str
    kind: Kind
    step: str = ""
    axes: str = ""
    lo: tuple[int, ...] = ()
    hi: tuple[int, ...] = ()
    t_max: int = 0

    def fits(self, labels: str, sizes: Mapping[str, int]) -> str:
        """What is wrong with its form, for a state with these axes; empty if nothing."""
        if "".join(k for k in labels if k in self.axes) != self.axes:
            return f"its bounds have axes '{self.axes}', the state has '{labels}'"
        count = 0 if self.kind == "saturates" else math.prod(sizes[k] for k in self.axes)
        if len(self.lo) != count or len(self.hi) != count:
            return f"it has {len(self.lo)} lower and {len(self.hi)} upper bounds, expected {count} of each"
        return ""

    def data(self) -> dict[str, Any]:
        """As it is stored: only what its kind has."""
        return {k: v for k, v in vars(self).items() if v not in ("", (), 0)}


FIELDS = {"node": str, "kind": str, "step": str, "axes": str, "lo": list, "hi": list, "t_max": int}


def from_data(data: object) -> Certificate:
    """The inverse of `data`; CheckError where it is none."""
    known: dict[str, Any] = data if isinstance(data, dict) else {}
    typed = {"node", "kind"} <= known.keys() and all(type(v) is FIELDS.get(k) for k, v in known.items())
    if not typed or known["kind"] not in get_args(Kind) or not all(type(v) is int for v in _bounds(known)):
        kinds = ", ".join(get_args(Kind))
        raise CheckError(f"expected a certificate: node, kind ({kinds}), step, axes, lo, hi, t_max; got {data}")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return Certificate(**fields)


def _bounds(known: dict[str, Any]) -> list[object]:
    return [*known.get("lo", ()), *known.get("hi", ())]


def differing(axes: str, lo: Array, hi: Array) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The axes along which bounds differ, and the bounds along these."""
    for i in reversed(range(len(axes))):
        if all((bound == bound.take([0], i)).all() for bound in (lo, hi)):
            axes, lo, hi = axes[:i] + axes[i + 1 :], lo.take([0], i).squeeze(i), hi.take([0], i).squeeze(i)
    return axes, tuple(lo.ravel().tolist()), tuple(hi.ravel().tolist())
