"""torch.export -> Graph, by a table of rules: one ATen operator, one small function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export

from isobit.quant.calibrate.observe import float_outputs
from isobit.quant.capture.graph import Floats, Graph, GraphNode
from isobit.quant.errors import InputError

MAX_DISAGREEMENT = 1e-4
"""Largest max|graph - module| / max|module| of a faithful capture: a module in float32, the graph in float64."""

HOW_TO_GO_ON = (
    "write the layer with these operators and the modules of isobit.quant.nn "
    "(CausalConv1d, SelectiveRecurrence, RunningMean), which may replace a loop over time"
)

PART_ROLES = {
    ("isobit.selective_recurrence.default", 0): "u",
    ("isobit.selective_recurrence.default", 1): "dt",
    ("isobit.selective_recurrence.default", 3): "B",
    ("isobit.selective_recurrence.default", 4): "C",
    ("isobit.causal_conv1d.default", 0): "x",
    ("aten.silu.default", 0): "z",
}
"""What a part of a split projection is called, by the operand that it becomes."""


def capture(module: nn.Module, example_shape: Sequence[int], name: str = "model") -> Graph:
    """The float graph of `module` in eval mode, for any batch and any number of time steps.

    example_shape: (B, T, channels), of which only the channels matter.  Parameters must be finite float32 or float64.
    Raises InputError, naming the user's layer, where the module uses anything outside RULES.
    """
    if len(example_shape) != 3:
        raise InputError(f"example shape {tuple(example_shape)}: expected three sizes, batch, time and channels")
    module = module.eval()
    _check_parameters(module)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    example = torch.zeros(2, max(3, example_shape[1]), example_shape[2], dtype=dtype)
    try:
        exported = export(module, (example,), dynamic_shapes=({0: Dim("B"), 1: Dim("T")},), strict=False)
    except Exception as e:
        reason = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise InputError(
            f"torch.export cannot trace {type(module).__name__} on an input (B, T, {example_shape[2]}): {reason}\n"
            "Its forward must take one tensor, with as many channels as the samples, work for any B and T, and not "
            f"loop over time or branch on values: {HOW_TO_GO_ON}"
        ) from e
    return _Capture(exported, name).run()


def disagreement(graph: Graph, module: nn.Module, x: Floats) -> float:
    """max|graph - module| / max|module| on samples x, (B, T, channels); above MAX_DISAGREEMENT it is an InputError."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x).to(dtype)).double().numpy()
    if not np.isfinite(expected).all():
        raise InputError(f"{graph.name}: the module's output is not finite on the calibration data; it diverges there")
    ratio = float(np.abs(float_outputs(graph, x) - expected).max() / max(float(np.abs(expected).max()), 1e-30))
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


class _Capture:
    """The walk over one exported graph.

    tensors: what is known before any input, by node.  values: the graph value that a node became.
    """

    def __init__(self, exported: ExportedProgram, name: str) -> None:
        self.exported, self.name = exported, name
        self.tensors: dict[fx.Node, tuple[str, Tensor]] = {}
        self.values: dict[fx.Node, str] = {}
        self.nodes: dict[str, GraphNode] = {}
        self.channels: dict[str, int] = {}
        self.parameters: dict[str, Floats] = {}
        self.identifiers = {"y"}
        self.time_axes = ""

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
        return self._live(output)

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
        if self.channels:
            raise InputError(f"{self.name}: its forward takes several inputs, expected one of shape (B, T, channels)")
        self.time_axes = str(tuple(n.meta["val"].shape[:2]))
        self.values[n] = self.input = self._unique("x")
        self.channels["x"] = int(n.meta["val"].shape[2])

    def _output(self, n: fx.Node) -> str:
        outputs = n.args[0] if isinstance(n.args[0], tuple | list) else (n.args[0],)
        if len(outputs) != 1 or not isinstance(outputs[0], fx.Node) or outputs[0] not in self.values:
            raise InputError(f"{self.name}: its forward returns {len(outputs)} values, expected one, (B, T, channels)")
        return self.values[outputs[0]]

    def _call(self, n: fx.Node) -> None:
        op = "getitem" if getattr(n.target, "__name__", "") == "getitem" else str(n.target)
        if all(i in self.tensors for i in n.all_input_nodes) and op != "getitem":
            self._fold(n, op)
        elif op in RULES:
            RULES[op](self, n)
        elif op in IDENTITIES:
            self.values[n] = self.value(n, 0)
        elif op not in PARTS:
            raise self.error(n, f"{op} is not supported; supported: {', '.join(SUPPORTED)}")

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

    def _live(self, output: str) -> Graph:
        """Without nodes, values and parameters that the output does not need."""
        needed, nodes = {output, self.input}, list[GraphNode]()
        for node in reversed(self.nodes.values()):
            if node.output in needed:
                needed.update(node.inputs)
                nodes.append(node)
        if not any(self.input in node.inputs for node in nodes):
            raise InputError(f"{self.name}: the model's output does not depend on its input")
        return Graph(
            self.name,
            self.input,
            output,
            tuple(reversed(nodes)),
            {k: v for k, v in self.channels.items() if k in needed},
            {k: v for k, v in self.parameters.items() if k in needed},
        )

    def error(self, n: fx.Node, message: str) -> InputError:
        """An InputError that names the user's layer and how to go on."""
        return InputError(f"{self.loc(n)}: {message}. Instead, {HOW_TO_GO_ON}")

    def loc(self, n: fx.Node) -> str:
        """The path of the user's module that called `n`; the model's name for the model itself."""
        stack = n.meta.get("nn_module_stack")
        return (str(list(stack.values())[-1][0]) if stack else "") or self.name

    def value(self, n: fx.Node, position: int) -> str:
        """Operand `position` as a value that depends on the input."""
        operand = n.args[position]
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

    def optional(self, n: fx.Node, position: int) -> bool:
        return len(n.args) > position and n.args[position] is not None

    def emit(self, n: fx.Node, op: str, inputs: tuple[str, ...], role: str = "", **attrs: float) -> None:
        """The graph node of `n`, whose value must be (B, T, channels); it is called `<module path>.<role>`."""
        shape = tuple(n.meta["val"].shape)
        if len(shape) != 3 or str(shape[:2]) != self.time_axes or not isinstance(shape[2], int):
            raise self.error(n, f"{n.target} makes a value of shape {shape}, expected (B, T, channels)")
        loc = self.loc(n)
        output = self._unique(f"{loc}.{role}" if role else loc)
        self.nodes[output] = GraphNode(op, inputs, output, tuple(sorted(attrs.items())), loc)
        self.values[n], self.channels[output] = output, shape[2]

    def _unique(self, name: str) -> str:
        """`name`, changed so that it is a C identifier once dots are underscores, and differs from all others then."""
        name = re.sub(r"[^A-Za-z0-9_.]", "_", name)
        if name[0].isdigit():
            name = f"_{name}"
        candidates = (name if i == 1 else f"{name}_{i}" for i in range(1, len(self.identifiers) + 2))
        free = next(c for c in candidates if c.replace(".", "_") not in self.identifiers)
        self.identifiers.add(free.replace(".", "_"))
        return free


def _linear(c: _Capture, n: fx.Node) -> None:
    bias = (c.parameter(n, 2),) if c.optional(n, 2) else ()
    c.emit(n, "linear", (c.value(n, 0), c.parameter(n, 1), *bias))


def _part(c: _Capture, n: fx.Node) -> None:
    """One part of a split projection: a projection by some of its rows."""
    split, index = n.args
    assert isinstance(split, fx.Node)
    assert isinstance(index, int)
    if str(split.target) not in PARTS:
        raise c.error(n, f"an item of {split.target} is not supported; supported: items of {', '.join(PARTS)}")
    whole = c.nodes.get(c.value(split, 0))
    source = split.args[0]
    assert isinstance(source, fx.Node)
    sizes = [int(part.shape[-1]) for part in split.meta["val"]]
    if whole is None or whole.op != "linear":
        raise c.error(n, f"{split.target} of {whole.op if whole else 'the input'}, expected of a linear layer's output")
    if sum(sizes) != source.meta["val"].shape[-1]:
        raise c.error(n, f"{split.target} along time or batch is not supported, only along channels")
    start = sum(sizes[:index])
    rows = slice(start, start + sizes[index])
    sliced = []
    for name in whole.inputs[1:]:
        sliced.append(f"{name}[{rows.start}:{rows.stop}]")
        c.parameters[sliced[-1]] = c.parameters[name][rows]
    user = next(iter(n.users))
    role = PART_ROLES.get((str(user.target), user.args.index(n) if n in user.args else -1), f"part{index}")
    if str(user.target) == "aten.linear.default" and c.loc(user) != c.name:
        role = f"{c.loc(user).rpartition('.')[2]}_input"
    n.meta["nn_module_stack"] = source.meta.get("nn_module_stack")
    c.emit(n, "linear", (whole.inputs[0], *sliced), role)


def _rms_norm(c: _Capture, n: fx.Node) -> None:
    x, channels = c.value(n, 0), c.channels[c.value(n, 0)]
    if n.args[1] != [channels]:
        raise c.error(n, f"rms_norm over {n.args[1]}, expected over the {channels} channels")
    ones = torch.ones(channels, dtype=torch.float64)
    weight = c.parameter(n, 2) if c.optional(n, 2) else c.enter(f"ones({channels})", ones)
    eps = n.args[3] if c.optional(n, 3) else torch.finfo(n.meta["val"].dtype).eps
    assert isinstance(eps, int | float)
    c.emit(n, "rms_norm", (x, weight), eps=float(eps))


def _causal_conv1d(c: _Capture, n: fx.Node) -> None:
    weight = c.parameter(n, 1)
    if c.parameters[weight].shape[1] < 2:
        raise c.error(n, "a causal convolution with a kernel of 1 keeps no history, expected a kernel of at least 2")
    c.emit(n, "causal_conv1d", (c.value(n, 0), weight, c.parameter(n, 2)))


def _silu(c: _Capture, n: fx.Node) -> None:
    c.emit(n, "silu", (c.value(n, 0),), "silu")


def _softplus(c: _Capture, n: fx.Node) -> None:
    if n.args[1:] not in ((), (1,), (1, 20)) or n.kwargs:
        raise c.error(n, f"softplus with beta and threshold {n.args[1:]}, expected 1 and 20")
    c.emit(n, "softplus", (c.value(n, 0),), "softplus")


def _selective_recurrence(c: _Capture, n: fx.Node) -> None:
    u, dt, b, k = (c.value(n, i) for i in (0, 1, 3, 4))
    c.emit(n, "selective_recurrence", (u, dt, c.parameter(n, 2), b, k))


def _mul(c: _Capture, n: fx.Node) -> None:
    known = [not isinstance(a, fx.Node) or a in c.tensors for a in n.args]
    if not any(known):
        c.emit(n, "mul", _same_channels(c, n), "mul")
        return
    parameter = c.parameter(n, known.index(True))
    x = c.value(n, known.index(False))
    factor = c.parameters[parameter]
    if factor.size not in (1, c.channels[x]) or factor.shape[-1:] not in ((), (1,), (c.channels[x],)):
        raise c.error(
            n, f"a product with a parameter of shape {factor.shape}, expected ({c.channels[x]},), one per channel"
        )
    c.parameters[parameter] = factor.reshape(-1) if factor.size > 1 else factor.reshape(())
    c.emit(n, "scale", (x, parameter), "scale")


def _add(c: _Capture, n: fx.Node) -> None:
    if n.kwargs:
        raise c.error(n, f"add with {dict(n.kwargs)} is not supported: multiply one operand first")
    if any(not isinstance(a, fx.Node) or a in c.tensors for a in n.args):
        raise c.error(n, "adding a parameter is not supported: give it to the linear layer before, as its bias")
    c.emit(n, "add", _same_channels(c, n), "add")


def _same_channels(c: _Capture, n: fx.Node) -> tuple[str, str]:
    a, b = c.value(n, 0), c.value(n, 1)
    if c.channels[a] != c.channels[b]:
        raise c.error(n, f"{n.target} of {c.channels[a]} and {c.channels[b]} channels: expected equal numbers")
    return a, b


def _running_mean(c: _Capture, n: fx.Node) -> None:
    c.emit(n, "running_mean", (c.value(n, 0),))


RULES: dict[str, Callable[[_Capture, fx.Node], None]] = {
    "aten.linear.default": _linear,
    "getitem": _part,
    "aten.rms_norm.default": _rms_norm,
    "aten.silu.default": _silu,
    "aten.softplus.default": _softplus,
    "aten.mul.Tensor": _mul,
    "aten.add.Tensor": _add,
    "isobit.causal_conv1d.default": _causal_conv1d,
    "isobit.selective_recurrence.default": _selective_recurrence,
    "isobit.running_mean.default": _running_mean,
}

PARTS = ("aten.split_with_sizes.default", "aten.split.Tensor", "aten.chunk.default")
"""Operators whose items `_part` takes."""

IDENTITIES = ("aten.dropout.default", "aten.contiguous.default", "aten.clone.default", "aten.alias.default")
"""Operators that change nothing in eval mode."""

SUPPORTED = sorted({*RULES, *PARTS, *IDENTITIES} - {"getitem"})
