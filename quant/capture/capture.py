"""torch.export -> Graph: the walk over the exported graph, and what its rules share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.capture import final, time_last
from isobit.quant.capture.constants import changes_an_operand, check_finite, check_tensor, fold, used
from isobit.quant.capture.export import HOW_TO_GO_ON, ROLL, Traced, export_module
from isobit.quant.capture.graph import Attribute, Dims, Floats, Graph, GraphNode, unrounded
from isobit.quant.capture.lines import user_line
from isobit.quant.capture.loops.recurrent import recognise
from isobit.quant.capture.program_file import ExportedModule
from isobit.quant.capture.rules import layout, quantizers, table
from isobit.quant.capture.simplify import simplify
from isobit.quant.errors import InputError

MAX_DISAGREEMENT = 1e-4
"""Largest max|graph - module| / max|module| of a faithful capture: a module in float32, the graph in float64."""

SEED, SAMPLES = 0, 3
"""Of random inputs."""


def capture(module: nn.Module, example_shape: Sequence[int], name: str = "model", ids: bool = False) -> Graph:
    """The float graph of `module` in eval mode, for any batch and any number of time steps.

    example_shape: (B, T, channels) of a sequence model, (B, T) of one that takes integer identifiers (`ids`), or
    (B, C, H, W) of an image model; only what is not B or T matters.  Parameters must be finite float32 or float64.
    Raises InputError, naming the user's layer and line, where the module uses anything outside RULES, or loops over
    time in a way that cannot be rolled up.
    """
    shape = tuple(example_shape)
    if len(shape) != (2 if ids else 3) and (ids or len(shape) != 4):
        raise InputError(
            f"example shape {shape}: expected three sizes, batch, time and channels; two, batch and time, for integer "
            "identifiers; or four for images, batch, channels, height and width"
        )
    if isinstance(module, ExportedModule):
        traced = module.traced(shape, ids)
    else:
        traced = export_module(module, shape, ids)
    graph = recognise(simplify(Capture(traced, name, len(shape) < 4).run()))
    if traced.fixed:
        _check_steps(graph, module, traced.fixed)
    return graph


def _check_steps(graph: Graph, module: nn.Module, fixed: int) -> None:
    """Compares with a module that was exported for `fixed` steps only, at other numbers too if it takes them."""
    for steps in (fixed, 2, *([2 * fixed + 1] if not graph.last else [])):
        x = random_inputs(graph, (SAMPLES, steps))
        try:
            if steps == fixed or _takes(graph, module, x):
                disagreement(graph, module, x, f"random inputs of {steps} steps")
        except InputError as e:
            raise InputError(
                f"{graph.name} is another for every number of steps, or its loop over time is not what it seems when "
                f"it is rolled up: {e}\nIf it loops over time, {ROLL}"
            ) from e


def _takes(graph: Graph, module: nn.Module, x: Floats) -> bool:
    """Whether a module runs on samples of so many steps, and gives a result for each."""
    try:
        made = _run(graph, module, x)
    except InputError:
        return False
    return graph.last or made.shape[1] == x.shape[1]


def random_inputs(graph: Graph, lead: tuple[int, int], like: Floats | None = None) -> Floats:
    """Seeded random samples (*lead, *dims): N(0, 1), or with the mean, deviation and limits of `like`; identifiers."""
    generator, dims = np.random.default_rng(SEED), graph.dims[graph.input]
    if graph.vocabulary is not None:
        return generator.integers(0, graph.vocabulary, (*lead, *dims)).astype(np.float64)
    x = generator.normal(size=(*lead, *dims))
    if like is not None:
        x = np.clip(x * like.std((0, 1)) + like.mean((0, 1)), like.min((0, 1)), like.max((0, 1)))
    return x.astype(np.float32).astype(np.float64)


def disagreement(graph: Graph, module: nn.Module, x: Floats, source: str = "the calibration data") -> float:
    """max|graph - module| / max|module| on samples x, (B, T, *dims); above MAX_DISAGREEMENT it is an InputError."""
    steps = module.steps if isinstance(module, ExportedModule) and graph.timed else None
    if steps is not None:
        x = np.take(x, np.arange(steps) % x.shape[1], axis=1)
    expected = _run(graph, module, x, source)
    if not np.isfinite(expected).all():
        raise InputError(f"{graph.name}: the module's output is not finite on {source}; it diverges there")
    made = float_outputs(unrounded(graph), x)
    made = made[:, -1] if graph.last or not graph.timed else made
    if made.shape != expected.shape:
        raise InputError(f"{graph.name}: the module gives {expected.shape} on {source}, and its graph {made.shape}")
    error = np.abs(made - expected).max()
    ratio = float(error / max(float(np.abs(expected).max()), 1e-30))
    if not ratio <= MAX_DISAGREEMENT:
        raise InputError(
            f"{graph.name}: the captured graph differs from the module on {source} by {ratio:.2e} of the largest "
            f"output, expected at most {MAX_DISAGREEMENT:.0e}; a forward that branches on its input, or on time, "
            "cannot be captured"
        )
    return ratio


def _run(graph: Graph, module: nn.Module, x: Floats, source: str = "samples") -> Floats:
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    given = torch.from_numpy(x if graph.timed else x[:, 0])
    try:
        with torch.no_grad():
            made: Floats = module.eval()(given.long() if graph.vocabulary else given.to(dtype)).double().numpy()
    except Exception as e:
        raise InputError(f"{graph.name}: the module fails on {source}, {x.shape}: {type(e).__name__}: {e}") from e
    return made


class Capture:
    """The walk over one exported graph, or over the step of a scan in it.

    tensors: what is known before any input, by node.  shaped: the same, where the shape has the batch or time in it.
    sizes: integers.  values: the graph value that a node became.  unusable: why a node has no value.
    finals: nodes that are values of the last step only.  padded: values with zeros before or after their steps.
    factors: of weights that are integer codes, what one of them is worth, by name and value.
    one_step: whether tensors have no time axis, though values have, as in a scan's step and after the last step.
    lead: the sizes with which every value's shape begins, the batch and, where tensors have it, time.
    """

    def __init__(self, traced: Traced, name: str, timed: bool) -> None:
        self.exported, self.graph, self.bodies = traced.program, traced.graph, traced.bodies
        self.name, self.timed = name, timed
        self.tensors: dict[fx.Node, tuple[str, Tensor]] = {}
        self.shaped: dict[fx.Node, Tensor] = {}
        self.sizes: dict[fx.Node, int] = {}
        self.values: dict[fx.Node, str] = {}
        self.unusable: dict[fx.Node, str] = {}
        self.nodes: dict[str, GraphNode] = {}
        self.dims: dict[str, Dims] = {}
        self.parameters: dict[str, Floats] = {}
        self.identifiers = {"y"}
        self.lead: tuple[str, ...] = ()
        self.inside: fx.Node | None = None
        self.one_step = False
        self.finals: set[fx.Node] = set()
        self.padded: dict[fx.Node, time_last.Padded] = {}
        self.factors: dict[fx.Node, tuple[str, Tensor]] = {}
        self.last = False
        self.vocabulary: int | None = None

    def run(self) -> Graph:
        output = self._output(self.walk(self.graph))
        if output not in self.nodes:
            raise InputError(f"{self.name}: the model returns its input unchanged; there is nothing to quantize")
        nodes = tuple(self.nodes.values())
        graph = Graph(
            self.name, self.input, output, nodes, self.dims, self.parameters, self.timed, self.vocabulary, self.last
        ).live()
        if not any(self.input in node.inputs for node in graph.nodes):
            raise InputError(f"{self.name}: the model's output does not depend on its input")
        return graph

    def walk(self, graph: fx.Graph) -> list[fx.Node]:
        """Takes every node, and returns the graph's results."""
        needed = used(graph)
        for n in graph.nodes:
            match n.op:
                case "placeholder" if self.inside is None:
                    self._placeholder(n)
                case "call_function" if n in needed:
                    self.call(n)
        returned: Any = graph.output_node().args[0]
        return list(returned) if isinstance(returned, tuple | list) else [returned]

    def _placeholder(self, n: fx.Node) -> None:
        signature = self.exported.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        if real := names.get(n.name):
            state = self.exported.state_dict
            tensor = state[real] if real in state else self.exported.constants[real]
            if not isinstance(tensor, Tensor):
                raise InputError(f"{self.name}: its constant {real} is a {type(tensor).__name__}, expected a tensor")
            if n.users:
                kind = "parameter" if n.name in signature.inputs_to_parameters else "buffer"
                check_tensor(f"{kind} {real}", tensor)
                check_finite(f"{kind} {real}", tensor)
            tensor = tensor.detach()
            self.tensors[n] = real, tensor.double() if tensor.is_floating_point() else tensor
            return
        value = n.meta.get("val")
        if self.dims or not isinstance(value, Tensor):
            raise InputError(f"{self.name}: its forward takes several inputs, expected one of shape (B, T, channels)")
        shape, rank = tuple(value.shape), 2 if self.timed else 1
        if not all(isinstance(d, int) for d in shape[rank:]):
            raise InputError(
                f"{self.name}: exported for inputs of shape {shape}; only the batch{' and time' * self.timed} may "
                "vary: export it again with fixed sizes for the others"
            )
        self.lead = tuple(map(str, shape[:rank]))
        self.values[n] = self.input = self.unique("x")
        self.dims["x"] = tuple(int(d) for d in shape[rank:])

    def _output(self, results: list[fx.Node]) -> str:
        expected = f"{self.name}: its forward returns"
        if len(results) != 1:
            raise InputError(f"{expected} {len(results)} values, expected one, (B, T, channels)")
        (result,) = results
        if result in self.unusable:
            raise self.error(result, self.unusable[result])
        if not isinstance(result, fx.Node) or result not in self.values:
            raise InputError(f"{expected} a constant, expected a value that depends on its input")
        if self.timed and result not in self.finals and self.time_axis(result) != 1:
            raise InputError(f"{expected} a value whose axis 1 is not time; expected (B, T, ...): transpose it back")
        self.last = result in self.finals
        return self.values[result]

    def call(self, n: fx.Node) -> None:
        """Makes what an exported node is: a value, a parameter, a size."""
        self.make(n)
        if len(n.args) > 1 and isinstance(n.args[1], fx.Node) and n.args[1] in self.factors:
            quantizers.scaled(self, n)

    def make(self, n: fx.Node) -> None:
        """As `call`, where a weight that is codes may still lack its scale."""
        op = "getitem" if getattr(n.target, "__name__", "") == "getitem" else str(n.target)
        if n in self.values or n in self.unusable or fold(self, n, op):
            return
        for i in n.all_input_nodes:
            if i in self.unusable:
                raise self.error(n, self.unusable[i])
        if changes_an_operand(n):
            raise self.error(n, f"{op} changes a tensor in place, which is not supported: assign the result to a name")
        moved = self.timed and any(self.time_axis(i) != 1 for i in n.all_input_nodes if i in self.values)
        if self._runs_along_time(op) and (self.one_step or moved):
            where = "of one step" if self.one_step else "whose axis 1 is not time"
            raise self.error(n, f"{op} on a value {where} is not supported: it runs along the time of (B, T, ...)")
        if self._runs_along_time(op) and not (self.timed or self.one_step or op in table.ALONG_POSITIONS):
            taken = " and ".join(table.ALONG_POSITIONS)
            raise self.error(n, f"{op} in an image model is not supported: along positions only {taken} are")
        if self.timed and (final.take(self, n, op) or time_last.take(self, n, op)):
            return
        if op in table.RULES:
            table.RULES[op](self, n)
        elif self.is_identity(op):
            self.values[n] = self.value(n, 0)
        elif op not in layout.PARTS:
            raise self.error(n, f"{op} is not supported; supported: {', '.join(table.SUPPORTED)}")

    def is_identity(self, op: str) -> bool:
        """Whether an operator changes nothing in eval mode."""
        return op in table.IDENTITIES

    def _runs_along_time(self, op: str) -> bool:
        return op.startswith("isobit.") and op not in table.ONE_STEP

    def error(self, n: fx.Node, message: str) -> InputError:
        """An InputError that names the user's layer and line, and how to go on."""
        line = user_line(n) or (user_line(self.inside) if self.inside else "")
        return InputError(f"{self.loc(n)}{f' ({line})' if line else ''}: {message}. Instead, {HOW_TO_GO_ON}")

    def loc(self, n: fx.Node) -> str:
        """The path of the user's module that called `n`; the model's name for the model itself."""
        stack = [str(path) for path, _ in (n.meta.get("nn_module_stack") or {}).values()]
        path = stack[-1].removeprefix("_export_root").removeprefix(".") if stack else ""
        if path.startswith("_empty_nn_module_stack"):
            path = ""
        return path or (self.loc(self.inside) if self.inside and self.inside is not n else self.name)

    def is_value(self, operand: object) -> bool:
        """Whether an operand depends on the input."""
        return isinstance(operand, fx.Node) and operand in self.values

    def value(self, n: fx.Node, position: int) -> str:
        """Operand `position` as a value that depends on the input."""
        operand = n.args[position] if position < len(n.args) else None
        if not isinstance(operand, fx.Node) or operand not in self.values:
            raise self.error(
                n, f"operand {position} of {n.target} is not computed from the input by supported operators"
            )
        return self.values[operand]

    def known(self, operand: object) -> Tensor | None:
        """A tensor that does not depend on the input, for some batch and number of steps; None of any other operand."""
        if not isinstance(operand, fx.Node):
            return None
        return self.tensors[operand][1] if operand in self.tensors else self.shaped.get(operand)

    def parameter(self, n: fx.Node, position: int) -> str:
        """Operand `position`, a parameter or a number, entered into the graph's parameters."""
        operand = n.args[position]
        if isinstance(operand, int | float):
            return self.enter(str(operand), torch.tensor(float(operand), dtype=torch.float64))
        if not isinstance(operand, fx.Node) or operand not in self.tensors:
            raise self.error(n, f"operand {position} of {n.target} depends on the input, expected a parameter")
        return self.enter(*self.tensors[operand])

    def enter(self, name: str, tensor: Tensor) -> str:
        kept = tensor if tensor.dtype == torch.int64 else tensor.double()
        self.parameters[name] = np.ascontiguousarray(kept.numpy())
        return name

    def argument(self, n: fx.Node, position: int, name: str, default: object = None) -> object:
        """An argument that is no operand, by position or by keyword."""
        return n.args[position] if position < len(n.args) else n.kwargs.get(name, default)

    def optional(self, n: fx.Node, position: int) -> bool:
        return len(n.args) > position and n.args[position] is not None

    def shape(self, n: fx.Node) -> Dims:
        """The dims of an exported value: its sizes without those of the batch and of time, which it must have once."""
        shape, rank = tuple(n.meta["val"].shape), len(self.lead)
        time = self.time_axis(n)
        if rank == 2:
            rest = tuple(d for i, d in enumerate(shape) if i not in (time, 1 if time == 0 else 0))
        else:
            rest = shape[1:]
        fits = time is not None if rank == 2 else str(shape[0]) == self.lead[0] if shape else False
        if not fits or not all(isinstance(d, int) for d in rest):
            axes = "(B, T, ...)" if rank == 2 else "(B, ...)"
            raise self.error(n, f"{n.target} makes a value of shape {shape}, expected {axes}: only sizes may follow")
        return tuple(int(d) for d in rest)

    def time_axis(self, n: fx.Node) -> int | None:
        """Where an exported value has time: 1 in (B, T, ...), 0 in (T, B, ...), 2 or more in (B, C, T); else None."""
        value = n.meta.get("val")
        sizes = tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()
        if len(self.lead) < 2 or len(sizes) < 2:
            return None
        if sizes[:2] == self.lead:
            return 1
        if sizes[:2] == self.lead[::-1]:
            return 0
        found = [i for i, d in enumerate(sizes) if d == self.lead[1] and i > 1]
        return found[0] if sizes[0] == self.lead[0] and len(found) == 1 else None

    def time_first(self, n: fx.Node) -> bool:
        """Whether an exported value is (T, B, ...)."""
        return self.time_axis(n) == 0

    def axis(self, n: fx.Node, axis: int, rank: int | None = None) -> int:
        """An axis of an exported value of `rank` (of n's first operand if None) as one within dims."""
        if rank is None:
            operand = n.args[0]
            assert isinstance(operand, fx.Node)
            rank = len(operand.meta["val"].shape)
        lead = 2 if self.timed else 1
        within = axis % rank - lead
        if within < 0:
            raise self.error(n, f"{n.target} along {'batch or time' if self.timed else 'the batch'} is not supported")
        return within

    def emit(self, n: fx.Node, op: str, inputs: Sequence[str], role: str = "", **attrs: Attribute) -> str:
        """The graph node of `n`; it is called `<module path>.<role>`."""
        return self.add(n, op, inputs, role, self.shape(n), attrs)

    def add(
        self, n: fx.Node, op: str, inputs: Sequence[str], role: str, dims: Dims, attrs: Mapping[str, Attribute],
        name: str = "",
    ) -> str:  # fmt: skip
        """As `emit`, with dims of the rule's own, and a name that `unique` gave; the last one is the value of `n`."""
        loc = self.loc(n)
        output = name or self.unique(f"{loc}.{role}" if role else loc)
        self.nodes[output] = GraphNode(op, tuple(inputs), output, tuple(sorted(attrs.items())), loc)
        self.values[n], self.dims[output] = output, dims
        return output

    def unique(self, name: str) -> str:
        """`name`, changed so that it is a C identifier once dots are underscores, and differs from all others then."""
        name = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        if name[0].isdigit():
            name = f"_{name}"
        candidates = (name if i == 1 else f"{name}_{i}" for i in range(1, len(self.identifiers) + 2))
        free = next(c for c in candidates if c.replace(".", "_") not in self.identifiers)
        self.identifiers.add(free.replace(".", "_"))
        return free
