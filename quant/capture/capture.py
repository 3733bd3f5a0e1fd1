"""torch.export -> Graph: the walk over the exported graph, and what its rules share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.capture import aten
from isobit.quant.capture.cells import whole_cells
from isobit.quant.capture.graph import Attribute, Dims, Floats, Graph, GraphNode
from isobit.quant.capture.simplify import simplify
from isobit.quant.errors import InputError

MAX_DISAGREEMENT = 1e-4
"""Largest max|graph - module| / max|module| of a faithful capture: a module in float32, the graph in float64."""

HOW_TO_GO_ON = (
    "write the layer with these operators and the modules of isobit.quant.nn (LinearRecurrence, DeltaRecurrence, "
    "CausalConv1d and their kin), which may replace a loop over time"
)


def capture(module: nn.Module, example_shape: Sequence[int], name: str = "model", ids: bool = False) -> Graph:
    """The float graph of `module` in eval mode, for any batch and any number of time steps.

    example_shape: (B, T, channels) of a sequence model, (B, T) of one that takes integer identifiers (`ids`), or
    (B, C, H, W) of an image model; only what is not B or T matters.  Parameters must be finite float32 or float64.
    Raises InputError, naming the user's layer, where the module uses anything outside the rules of `aten`.
    """
    shape = tuple(example_shape)
    if len(shape) != (2 if ids else 3) and (ids or len(shape) != 4):
        raise InputError(
            f"example shape {shape}: expected three sizes, batch, time and channels; two, batch and time, for integer "
            "identifiers; or four for images, batch, channels, height and width"
        )
    module = module.eval()
    _check_parameters(module)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    timed = len(shape) < 4
    sizes = (2, max(3, shape[1]), *shape[2:]) if timed else (2, *shape[1:])
    example = torch.zeros(sizes, dtype=torch.int64 if ids else dtype)
    dynamic = {0: Dim("B"), 1: Dim("T")} if timed else {0: Dim("B")}
    try:
        with whole_cells(module):
            exported = export(module, (example,), dynamic_shapes=(dynamic,), strict=False)
    except InputError:
        raise
    except Exception as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        taken = ["B", "T", *map(str, shape[2:])] if timed else ["B", *map(str, shape[1:])]
        raise InputError(
            f"torch.export cannot trace {type(module).__name__} on an input ({', '.join(taken)}): {reason}\n"
            "Its forward must take one tensor, with as many channels as the samples, work for any B and T, and not "
            f"loop over time or branch on values: {HOW_TO_GO_ON}"
        ) from e
    return simplify(Capture(exported, name, timed).run())


def disagreement(graph: Graph, module: nn.Module, x: Floats) -> float:
    """max|graph - module| / max|module| on samples x, (B, T, *dims); above MAX_DISAGREEMENT it is an InputError."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    given = torch.from_numpy(x if graph.timed else x[:, 0])
    with torch.no_grad():
        expected = module.eval()(given.long() if graph.vocabulary else given.to(dtype)).double().numpy()
    if not np.isfinite(expected).all():
        raise InputError(f"{graph.name}: the module's output is not finite on the calibration data; it diverges there")
    made = float_outputs(graph, x)
    error = np.abs((made if graph.timed else made[:, 0]) - expected).max()
    ratio = float(error / max(float(np.abs(expected).max()), 1e-30))
    if not ratio <= MAX_DISAGREEMENT:
        raise InputError(
            f"{graph.name}: the captured graph differs from the module on the calibration data by {ratio:.2e} of the "
            f"largest output, expected at most {MAX_DISAGREEMENT:.0e}; a forward that branches on its input, or on "
            "time, cannot be captured"
        )
    return ratio


def _check_parameters(module: nn.Module) -> None:
    for name, p in module.named_parameters():
        if p.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"parameter {name} is {p.dtype}, expected float32 or float64: convert the model with .float()"
            )
        _check_finite(name, p.detach())


def _check_finite(name: str, tensor: Tensor) -> None:
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise InputError(
            f"parameter {name}: {bad} of {tensor.numel()} values are NaN or infinite, expected finite numbers; "
            "load weights of a run that converged"
        )


class Capture:
    """The walk over one exported graph.

    tensors: what is known before any input, by node.  values: the graph value that a node became.
    """

    def __init__(self, exported: ExportedProgram, name: str, timed: bool) -> None:
        self.exported, self.name, self.timed = exported, name, timed
        self.tensors: dict[fx.Node, tuple[str, Tensor]] = {}
        self.values: dict[fx.Node, str] = {}
        self.nodes: dict[str, GraphNode] = {}
        self.dims: dict[str, Dims] = {}
        self.parameters: dict[str, Floats] = {}
        self.identifiers = {"y"}
        self.lead = ""
        self.vocabulary: int | None = None

    def run(self) -> Graph:
        for n in self.exported.graph.nodes:
            match n.op:
                case "placeholder":
                    self._placeholder(n)
                case "output":
                    output = self._output(n)
                case "call_function" if n.users:
                    self._call(n)
        if output not in self.nodes:
            raise InputError(f"{self.name}: the model returns its input unchanged; there is nothing to quantize")
        nodes = tuple(self.nodes.values())
        graph = Graph(
            self.name, self.input, output, nodes, self.dims, self.parameters, self.timed, self.vocabulary
        ).live()
        if not any(self.input in node.inputs for node in graph.nodes):
            raise InputError(f"{self.name}: the model's output does not depend on its input")
        return graph

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
            tensor = tensor.detach()
            self.tensors[n] = real, tensor.double() if tensor.is_floating_point() else tensor
            return
        if self.dims:
            raise InputError(f"{self.name}: its forward takes several inputs, expected one of shape (B, T, channels)")
        shape = n.meta["val"].shape
        self.lead = str(tuple(shape[: 2 if self.timed else 1]))
        self.values[n] = self.input = self.unique("x")
        self.dims["x"] = tuple(int(d) for d in shape[2 if self.timed else 1 :])

    def _output(self, n: fx.Node) -> str:
        outputs = n.args[0] if isinstance(n.args[0], tuple | list) else (n.args[0],)
        if len(outputs) != 1 or not isinstance(outputs[0], fx.Node) or outputs[0] not in self.values:
            raise InputError(f"{self.name}: its forward returns {len(outputs)} values, expected one, (B, T, channels)")
        return self.values[outputs[0]]

    def _call(self, n: fx.Node) -> None:
        op = "getitem" if getattr(n.target, "__name__", "") == "getitem" else str(n.target)
        if all(i in self.tensors for i in n.all_input_nodes) and op != "getitem":
            self._fold(n, op)
        elif op in aten.RULES:
            aten.RULES[op](self, n)
        elif op in aten.IDENTITIES:
            self.values[n] = self.value(n, 0)
        elif op not in aten.PARTS:
            raise self.error(n, f"{op} is not supported; supported: {', '.join(aten.SUPPORTED)}")

    def _fold(self, n: fx.Node, op: str) -> None:
        """Computed in float64 and rounded to float32, so that every machine gets the same parameter."""
        with torch.no_grad():
            result = n.target(*fx.node.map_arg(n.args, self._tensor), **fx.node.map_arg(n.kwargs, self._tensor))  # type: ignore[operator]
        if not isinstance(result, Tensor):
            raise self.error(n, f"{op} of parameters gives {type(result).__name__}, expected a tensor")
        formula = f"{op.split('.')[1]}({', '.join(self.tensors[i][0] for i in n.all_input_nodes)})"
        names = {name for name, _ in self.tensors.values()}
        formula = next(f for i in range(len(names) + 1) if (f := formula + "'" * i) not in names)
        _check_finite(formula, result)
        self.tensors[n] = formula, result.float().double() if result.is_floating_point() else result

    def _tensor(self, n: fx.Node) -> Tensor:
        return self.tensors[n][1]

    def error(self, n: fx.Node, message: str) -> InputError:
        """An InputError that names the user's layer and how to go on."""
        return InputError(f"{self.loc(n)}: {message}. Instead, {HOW_TO_GO_ON}")

    def loc(self, n: fx.Node) -> str:
        """The path of the user's module that called `n`; the model's name for the model itself."""
        stack = n.meta.get("nn_module_stack")
        return (str(list(stack.values())[-1][0]) if stack else "") or self.name

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

    def parameter(self, n: fx.Node, position: int) -> str:
        """Operand `position`, a parameter or a number, entered into the graph's parameters."""
        operand = n.args[position]
        if isinstance(operand, int | float):
            return self.enter(str(operand), torch.tensor(float(operand), dtype=torch.float64))
        if not isinstance(operand, fx.Node) or operand not in self.tensors:
            raise self.error(n, f"operand {position} of {n.target} depends on the input, expected a parameter")
        return self.enter(*self.tensors[operand])

    def enter(self, name: str, tensor: Tensor) -> str:
        self.parameters[name] = np.ascontiguousarray(tensor.double().numpy())
        return name

    def argument(self, n: fx.Node, position: int, name: str, default: object = None) -> object:
        """An argument that is no operand, by position or by keyword."""
        return n.args[position] if position < len(n.args) else n.kwargs.get(name, default)

    def optional(self, n: fx.Node, position: int) -> bool:
        return len(n.args) > position and n.args[position] is not None

    def shape(self, n: fx.Node) -> Dims:
        """The dims of an exported value, which must keep batch and time first."""
        shape = tuple(n.meta["val"].shape)
        lead = 2 if self.timed else 1
        if str(shape[:lead]) != self.lead or not all(isinstance(d, int) for d in shape[lead:]):
            axes = "(B, T, ...)" if self.timed else "(B, ...)"
            raise self.error(n, f"{n.target} makes a value of shape {shape}, expected {axes}: only sizes may follow")
        return tuple(int(d) for d in shape[lead:])

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
