"""Index signatures: which ones the loops of a structure understand."""

from __future__ import annotations

from collections.abc import Callable

from isobit.quant.errors import CheckError
from isobit.quant.ops import Op, Structure
from isobit.quant.program import Labels, Node


def check_index(n: Node) -> None:
    """Axes are letters, each once in an operand, and all known to the structure; else a CheckError."""
    labels, spec = n.labels, n.spec
    if spec.operands not in (None, len(n.inputs)):
        raise CheckError(f"expected {spec.operands} operands, got {len(n.inputs)}")
    if why := _malformed(n) or _misplaced_axes(labels, spec):
        raise CheckError(f"index '{n.index}': {why}")
    owns = spec.structure.is_stateful and not labels.scanned
    if owns != (n.state is not None):
        raise CheckError(f"{n.op} {'needs a state' if owns else 'has no state'}, got {n.state}")
    rule = _RULES.get(spec.structure)
    if why := rule(labels, spec) if rule else "":
        raise CheckError(f"index '{n.index}': {why}")


def _malformed(n: Node) -> str:
    labels = n.labels
    if len(n.inputs) != len(labels.inputs) or (not n.inputs and not n.index.startswith("->")):
        return f"it is for {len(labels.inputs) or 'some'} operands, the node has {len(n.inputs)}"
    for each in (*labels.inputs, labels.output, labels.state):
        if each and not (each.isascii() and each.isalpha()):
            return f"'{each}' is not made of letters"
        if "b" in each:
            return "b is the batch, which is implied"
        if len(set(each)) < len(each):
            return f"it names an axis twice in '{each}'"
        if "t" in each[1:]:
            return "t is time, and comes first"
    if not labels.output.startswith("t") or "t" in labels.state:
        return "an output has time first, a state has none"
    return ""


def _misplaced_axes(labels: Labels, spec: Op) -> str:
    structure = spec.structure
    makes_axes = structure in (Structure.LAYOUT, Structure.CONVOLUTION, Structure.HISTORY)
    if not makes_axes and (unknown := set(labels.output) - set("t" + "".join(labels.inputs) + labels.state)):
        return f"no operand has {', '.join(sorted(unknown))}"
    if labels.state and structure is not Structure.RECURRENCE:
        return "only a recurrence has axes of a state"
    steps_alone = structure is Structure.RECURRENCE and not labels.scanned
    if not steps_alone and not any("t" in k for k in labels.inputs):
        return "no operand has time"
    return ""


def _pointwise(labels: Labels, spec: Op) -> str:
    surplus = set("".join(labels.inputs)) - set(labels.output)
    return "a pointwise output has every axis of its operands" if surplus else ""


def _summed(labels: Labels, spec: Op) -> str:
    """What starts an accumulator: of its axes, those that the output has, and none of its own."""
    if not spec.start:
        return ""
    *terms, start = labels.inputs
    if set(start) - set(labels.output):
        return f"the sum starts from '{start}', which has an axis that the output lacks"
    made = {v for _, v, _ in labels.slides}
    alone = set(labels.output) - set("".join(terms)) - made
    return f"of the summed operands, none has {', '.join(sorted(alone))}" if alone else ""


def _window(labels: Labels, spec: Op) -> str:
    x, w, start = labels.inputs
    channels = x[1:]
    fits = x[:1] == "t" and len(channels) <= 1 and w[-1:] == "j" and "j" not in channels + start
    fits = fits and labels.output == "t" + start
    fits = fits and w[:-1] in (channels, start + channels) and (w[:-1] != channels or start in (channels, ""))
    return "" if fits else "a window is tc,cj,c->tc or tc,ncj,n->tn"


def _history(labels: Labels, spec: Op) -> str:
    x, out = labels.inputs[0], labels.output
    fits = len(out) == len(x) + 1 and x == "t" + out[2:] and out[1] not in x
    return "" if fits else "a history puts its new axis after time, as in tc->twc"


def _recurrence(labels: Labels, spec: Op) -> str:
    inner = "".join(k for k in labels.state if k not in labels.output)
    kept = "".join(k for k in labels.output if k not in labels.scanned and k != "t")
    every = set("t" + labels.state + labels.scanned)
    if set("".join(labels.inputs)) - every or kept + inner != labels.state:
        return "a recurrence's state has all axes but the scanned one, those of the output first"
    if inner and not spec.readout:
        return f"without a readout the output is the state, and lacks no axis of it: {', '.join(inner)}"
    if len(labels.scanned) > 1:
        return "a recurrence scans one axis"
    if labels.scanned and (unknown := set(labels.state) - set("".join(labels.inputs))):
        return f"no operand has {', '.join(sorted(unknown))}"
    return ""


def _convolution(labels: Labels, spec: Op) -> str:
    if not labels.slides or not labels.inputs[0].startswith("t"):
        return "a convolution slides along axes that operand, output and kernel each name, as in tyxc,nijc,n->tvun"
    return _summed(labels, spec)


def _gather(labels: Labels, spec: Op) -> str:
    index, rows = labels.inputs
    fits = "t" in index and "t" not in rows and labels.output == index + rows[1:]
    return "" if fits and rows[:1] not in index else "a gather is t,vc->tc: an index and a table"


_RULES: dict[Structure, Callable[[Labels, Op], str]] = {
    Structure.POINTWISE: _pointwise,
    Structure.CONTRACTION: _summed,
    Structure.WINDOW: _window,
    Structure.HISTORY: _history,
    Structure.RECURRENCE: _recurrence,
    Structure.CONVOLUTION: _convolution,
    Structure.GATHER: _gather,
}
"""By structure: what is wrong with an index signature, or nothing."""
