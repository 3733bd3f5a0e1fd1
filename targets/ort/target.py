"""ONNX Runtime: the .onnx file is the artifact, so that the file a user keeps is the one that is verified."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from isobit.export.onnx.functions import next_name
from isobit.export.onnx.load import save
from isobit.export.onnx.region import expose
from isobit.quant.interpret import checked_inputs
from isobit.quant.program import Arrays, Program
from isobit.targets.target import Artifact, Options, Run, step_by_step
from isobit.targets.toolchain import ToolMissing

FILE = "model.onnx"
ERRORS_ONLY = 3


def _onnxruntime() -> Any:
    """The module, imported where it is used: it takes a quarter of a second."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise ToolMissing("onnxruntime", "pip install onnxruntime") from None


def probe() -> str:
    return f"ONNX Runtime {_onnxruntime().__version__}"


def build(program: Program, folder: Path, options: Options) -> Artifact:
    """One file, model.onnx; no option changes it."""
    save(program, folder / FILE)
    return Artifact("ort", program, folder, (FILE,), options)


def start(artifact: Artifact, scratch: Path, traced: bool) -> OrtSession:
    """A session on the file; a traced one on the same model with every node's output among the graph's."""
    model = (artifact.folder / FILE).read_bytes()
    return OrtSession(artifact.program, traced_model(model) if traced else model)


def traced_model(data: bytes) -> bytes:
    """The model whose outputs are all of `data`'s, then every other node's."""
    model = onnx.ModelProto.FromString(data)
    model.graph.output.extend(model.graph.value_info)
    del model.graph.value_info[:]
    expose(model)
    return bytes(model.SerializeToString())


class OrtSession:
    """A Session of ONNX Runtime, CPU, all of its default optimizations."""

    def __init__(self, program: Program, model: bytes) -> None:
        ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        # Session creation is quadratic in the number of nodes otherwise.
        options.enable_mem_reuse = False
        self._program = program
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Arrays, states: Arrays | None, by_step: bool) -> Run:
        values = checked_inputs(self._program, inputs)
        if by_step:
            return step_by_step(lambda x, s: self._call(self._program.outputs, x, s), values, states)
        return Run(*self._call(self._program.outputs, values, states))

    def trace(self, inputs: Arrays, states: Arrays | None) -> Arrays:
        nodes = tuple(n.output for n in self._program.nodes)
        return self._call(nodes, checked_inputs(self._program, inputs), states)[0]

    def _call(self, wanted: tuple[str, ...], inputs: Arrays, states: Arrays | None) -> tuple[Arrays, Arrays]:
        """The values named `wanted` and the new states, as int64."""
        p = self._program
        held = p.initial_states(len(next(iter(inputs.values())))) if states is None else states
        types = {i.name: i.type.elem.dtype for i in p.inputs} | {s.name: s.type.elem.dtype for s in p.states}
        feeds = {k: v.astype(types[k]) for k, v in {**inputs, **held}.items()}
        names = [*wanted, *(next_name(s.name) for s in p.states)]
        got = [a.astype(np.int64) for a in self._session.run(names, feeds)]
        return dict(zip(wanted, got, strict=False)), dict(zip(p.state, got[len(wanted) :], strict=True))
