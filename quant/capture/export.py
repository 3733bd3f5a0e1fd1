"""A module to an exported graph for any batch and any number of steps, or the reason why there is none."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram, export

from isobit.quant.capture.constants import changes_an_operand, check_finite, check_tensor
from isobit.quant.capture.loops.rolled import FEWEST, CannotRoll, roll
from isobit.quant.capture.whole_layers import whole_cells
from isobit.quant.errors import InputError

HOW_TO_GO_ON = (
    "write the layer with these operators and the modules of isobit.quant.nn (LinearRecurrence, DeltaRecurrence, "
    "CausalConv1d and their kin), which may replace a loop over time"
)

STEPS = (13, 11, 17, 19, 23, 29)
"""Of the example: the first of which no size of the model is a multiple, so that no other axis is as long as time."""

LONGEST = 32
"""Steps over which a loop is unrolled that may be as long as the samples, and no longer."""

ROLL = """write the loop over time as a step function, which has no fixed length:
    from torch._higher_order_ops.scan import scan
    def step(h, x_t):  # (B, ...) each; h is the state, and h_t may be the y_t
        h_t = ...
        return h_t, y_t
    _, y = scan(step, torch.zeros(x.shape[0], ...), x, dim=1)  # y: (B, T, ...)
or with a module of isobit.quant.nn: DiagonalRecurrence()(a, x) is h = a * h + x, ConvexRecurrence()(z, x) is
h = h + z * (x - h), LinearRecurrence()(q, k, v, decay) is S = decay * S + k v^T with o = S^T q"""


@dataclass(frozen=True)
class Traced:
    """An exported program, its graph with loops over time rolled up, and their step functions by name.

    fixed: the number of steps, where it was exported for these only: so it must be compared with its module; else None.
    """

    program: ExportedProgram
    graph: fx.Graph
    bodies: Mapping[str, fx.Graph]
    fixed: int | None = None


def export_module(module: nn.Module, shape: tuple[int, ...], ids: bool) -> Traced:
    """The graph of `module` in eval mode, on inputs like `shape`: (B, T, channels), (B, T) for `ids`, (B, C, H, W).

    Raises InputError where its parameters cannot be used, or it cannot be traced.
    """
    module = module.eval()
    for name, p in module.named_parameters():
        check_tensor(f"parameter {name}", p)
        check_finite(f"parameter {name}", p.detach())
    timed = len(shape) < 4
    steps = _steps(module, shape)
    try:
        return traced(_export(module, _example(module, shape, ids, steps), timed, fixed=False))
    except InputError:
        raise
    except Exception as e:
        failure = e
    lengths = (shape[1], steps) if FEWEST <= shape[1] <= LONGEST and _is_unlike(module, shape, shape[1]) else (steps,)
    for fixed in (*lengths, shape[1]) if timed else ():
        try:
            program = _export(module, _example(module, shape, ids, fixed), timed, fixed=True)
        except Exception:
            continue
        try:
            return traced(program)
        except CannotRoll as e:
            raise InputError(f"{type(module).__name__} loops over time, and {e}: {ROLL}") from e
    reason = next((line for line in str(failure).splitlines() if line.strip()), type(failure).__name__)
    taken = ["B", "T", *map(str, shape[2:])] if timed else ["B", *map(str, shape[1:])]
    raise InputError(
        f"torch.export cannot trace {type(module).__name__} on an input ({', '.join(taken)}): {reason}\n"
        "Its forward must take one tensor, with as many channels as the samples, work for any B and T, and not "
        f"loop over time or branch on values: {HOW_TO_GO_ON}"
    ) from failure


def traced(program: ExportedProgram) -> Traced:
    """A program without changes in place, with its loops over time, if its number of steps is fixed, rolled up.

    Raises CannotRoll.
    """
    if any(changes_an_operand(n) and n.target is not torch.ops.aten.copy_.default for n in program.graph.nodes):
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):
            program = program.run_decompositions({})
    if changed := [*program.graph_signature.buffers_to_mutate.values(), *program.graph_signature.user_inputs_to_mutate]:
        raise InputError(
            f"the model changes {', '.join(map(str, changed))} as it runs: call model.eval() before the export, or "
            "write what it remembers as the state of a loop over time"
        )
    bodies = {k: m.graph for k, m in program.graph_module.named_children() if isinstance(m, fx.GraphModule)}
    x = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs)
    value = x.meta.get("val")
    steps = value.shape[1] if isinstance(value, torch.Tensor) and value.ndim in (2, 3) else None
    if not isinstance(steps, int):
        return Traced(program, program.graph, bodies)
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, places))
    roll(graph, bodies, steps)
    return Traced(program, graph, bodies, steps)


def _steps(module: nn.Module, shape: tuple[int, ...]) -> int:
    return next((t for t in STEPS if _is_unlike(module, shape, t)), STEPS[-1])


def _is_unlike(module: nn.Module, shape: tuple[int, ...], steps: int) -> bool:
    """Whether no other axis can have as many elements as time."""
    sizes = {*shape[2:], *(d for p in [*module.parameters(), *module.buffers()] for d in p.shape)}
    return all(d % steps or d == 0 for d in sizes)


def _example(module: nn.Module, shape: tuple[int, ...], ids: bool, steps: int) -> torch.Tensor:
    dtype = torch.int64 if ids else next((p.dtype for p in module.parameters()), torch.float32)
    return torch.zeros((2, steps, *shape[2:]) if len(shape) < 4 else (2, *shape[1:]), dtype=dtype)


def _export(module: nn.Module, example: torch.Tensor, timed: bool, fixed: bool) -> ExportedProgram:
    dynamic = {0: Dim("B"), 1: Dim("T")} if timed and not fixed else {0: Dim("B")}
    with whole_cells(module):
        return export(module, (example,), dynamic_shapes=(dynamic,), strict=False)
