"""Values of the last step only: the last element of a sequence, its mean, a layer's final state, and what follows.

In the graph they are values of every step, of which the last one is the module's: so a classifier of whole sequences
has an answer after every step.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    from isobit.quant.capture.capture import Capture

FINAL_STATE = "isobit.cell_final_state.default"


def take(c: Capture, n: fx.Node, op: str) -> bool:
    """Makes the value of `n` where it is one of the last step only, and says whether it is."""
    if op == FINAL_STATE:
        final_state(c, n, c.value(n, 0), str(n.args[1]))
        return True
    if any(i in c.finals for i in n.all_input_nodes):
        if other := [i.name for i in n.all_input_nodes if i in c.values and i not in c.finals]:
            raise c.error(n, f"{op} of a value of the last step and of one of all steps, {other[0]}, is not supported")
        after = copy.copy(c)
        after.one_step, after.timed, after.lead = True, False, c.lead[:1]
        after.make(n)
    elif op == "aten.select.int" and _along_time(c, n, n.args[1]) and _is_last(n):
        c.values[n] = c.value(n, 0)
    elif op == "aten.mean.dim" and _mean_over_time(c, n):
        x = c.value(n, 0)
        c.add(n, "running_mean", (x,), "mean", c.dims[x], {})
    else:
        return False
    if n in c.values:
        c.finals.add(n)
    return True


def _along_time(c: Capture, n: fx.Node, dim: object) -> bool:
    source = n.args[0]
    assert isinstance(source, fx.Node)
    assert isinstance(dim, int)
    rank: int = source.meta["val"].ndim
    return source in c.values and dim % rank == c.time_axis(source)


def _is_last(n: fx.Node) -> bool:
    source, dim, index = n.args
    assert isinstance(source, fx.Node)
    assert isinstance(dim, int)
    size = source.meta["val"].shape[dim]
    return isinstance(index, int) and (index == -1 or (isinstance(size, int) and index == size - 1))


def _mean_over_time(c: Capture, n: fx.Node) -> bool:
    axes, keep = c.argument(n, 1, "dim"), c.argument(n, 2, "keepdim", False)
    return isinstance(axes, list | tuple) and len(axes) == 1 and not keep and _along_time(c, n, axes[0])


def final_state(c: Capture, n: fx.Node, y: str, which: str) -> None:
    """(layers, B, size) of an nn.LSTM or nn.GRU with output y: "hidden" of the last layer is the last step's output."""
    layers = n.meta["val"].shape[0]
    for user in n.users:
        picked = user.args[2] if str(user.target) == "aten.select.int" and user.args[1] == 0 else None
        alone = str(user.target) == "aten.squeeze.dim" and user.args[1] == 0 and layers == 1
        if which == "hidden" and (alone or picked in (-1, layers - 1)):
            c.values[user] = y
            c.finals.add(user)
        else:
            c.unusable[user] = (
                "of the final states of a recurrent layer only the last layer's h is supported, as h[-1] or "
                "h.squeeze(0): or take the last step of its output"
            )
    c.unusable[n] = "a layer's final state is no value of a step"
