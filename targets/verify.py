"""Verification: every target against the reference, on golden vectors, by equality; or the first divergent node."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isobit.quant.errors import InputError
from isobit.quant.interpret import interpret
from isobit.quant.program import Array, Arrays, Program
from isobit.quant.vectors import Vectors
from isobit.targets.nest import nest
from isobit.targets.target import TARGETS, Artifact, NotHere, Options, Session, target
from isobit.targets.toolchain import ToolFailed, ToolMissing

EXACT, MISMATCH, REFUSED, NOT_RUN = "exact", "mismatch", "refused", "not-run"

SIMULATED_SAMPLES = 16
"""Real samples that a simulated target runs; the others run all."""


@dataclass(frozen=True)
class Divergence:
    """The first element, in execution order, at which a target leaves the reference."""

    target: str
    vectors: str
    sequence: int
    step: int
    node: str
    op: str
    loc: str
    group: str
    index: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        where = f"{self.node}[{', '.join(map(str, self.index))}]"
        return (
            f"first divergence: {where} ({self.op}, layer {self.loc}) at step {self.step}: expected {self.expected}, "
            f"got {self.got}\n  in the fused group {self.group}\n"
            f"  reproduce: isobit verify PROGRAM.onnx --targets {self.target} --vectors {self.vectors}:{self.sequence}"
        )


@dataclass(frozen=True)
class Row:
    """What became of one target.  values: how many integers were compared; info: figures that the target knows."""

    target: str
    status: str
    values: int = 0
    reason: str = ""
    ran: str = ""
    seconds: float = 0.0
    info: Mapping[str, object] = field(default_factory=dict)
    divergence: Divergence | None = None

    def json(self) -> dict[str, object]:
        """For --json."""
        row: dict[str, object] = {"target": self.target, "status": self.status, "values": self.values}
        row |= {"reason": self.reason, "ran": self.ran, "seconds": round(self.seconds, 3), **self.info}
        if self.divergence:
            d = self.divergence
            row["divergence"] = {**vars(d), "index": list(d.index)}
        return row


@dataclass(frozen=True)
class Verified:
    """Rows of a verification; only `verify` makes one."""

    program: Program
    rows: tuple[Row, ...]


def target_names(text: str) -> list[str]:
    """`all`, or names separated by commas, each once."""
    names = list(TARGETS) if text == "all" else list(dict.fromkeys(t.strip() for t in text.split(",") if t.strip()))
    if not names:
        raise InputError("--targets: no target named; name some, separated by commas, or all")
    for name in names:
        if name not in TARGETS:
            raise InputError(f"unknown target '{name}'; the targets are {', '.join(TARGETS)}")
    return names


def verify(
    program: Program,
    names: Sequence[str],
    vectors: Sequence[Vectors],
    options: Options | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Build, run and compare every named target, by step and as a sequence: outputs and final states."""
    rows = []
    for name in names:
        progress(name)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"isobit-{name}-") as folder:
            row = _row(program, name, vectors, options or Options(), Path(folder), progress)
        rows.append(Row(**{**vars(row), "seconds": time.perf_counter() - began}))
    return Verified(program, tuple(rows))


def _row(
    program: Program,
    name: str,
    vectors: Sequence[Vectors],
    options: Options,
    folder: Path,
    progress: Callable[[str], None],
) -> Row:
    t = target(name)
    try:
        t.probe()
        (folder / "package").mkdir()
        progress(f"{name}: build")
        artifact = t.build(program, folder / "package", options)
        return verify_artifact(artifact, vectors, folder, progress)
    except ToolMissing as e:
        return Row(name, NOT_RUN, reason=str(e))
    except ToolFailed as e:
        return Row(name, MISMATCH, reason=str(e))


def verify_artifact(
    artifact: Artifact, vectors: Sequence[Vectors], folder: Path, progress: Callable[[str], None] = lambda _: None
) -> Row:
    """Compare one built artifact, its files as they lie in its folder, with the reference."""
    name = artifact.target
    if TARGETS[name].simulated:
        vectors = [v.select(slice(SIMULATED_SAMPLES)) for v in vectors]
    try:
        session = _start(artifact, folder / "run", traced=False)
    except NotHere as e:
        return Row(name, NOT_RUN, reason=str(e))
    compared, info, sequences = 0, dict[str, object](), 0
    for v in vectors:
        for by_step in (False, True):
            progress(f"{name}: {v.name}, {'by step' if by_step else 'as a sequence'}")
            run = session.run(v.inputs, v.start, by_step)
            info |= run.info
            wrong = _first_difference(v, run.outputs, run.states)
            if wrong is not None:
                divergence = find_divergence(artifact, v, wrong, folder)
                how = "by step" if by_step else "as a sequence"
                reason = f"{v.name}, sequence {wrong}, {how}: outputs or states differ from the reference"
                if divergence is None:
                    reason += "; every traced node is equal, so the fault lies outside the kernels"
                return Row(name, MISMATCH, compared, reason, info=info, divergence=divergence)
            compared += v.values
        sequences += v.batch
    ran = f"{sequences} sequences, by step and whole"
    return Row(name, EXACT, compared, ran=ran, info=info)


def _start(artifact: Artifact, scratch: Path, traced: bool) -> Session:
    scratch.mkdir(parents=True, exist_ok=True)
    return target(artifact.target).start(artifact, scratch, traced)


def _first_difference(v: Vectors, outputs: Arrays, states: Arrays) -> int | None:
    """The first sequence of the batch with a wrong output or state."""
    wrong: list[int] = []
    for expected, got in ((v.outputs, outputs), (v.states, states)):
        for name, e in expected.items():
            if name not in got or got[name].shape != e.shape:
                return 0
            rows = (got[name] != e).reshape(v.batch, -1).any(1)
            wrong += np.flatnonzero(rows).tolist()[:1]
    return min(wrong, default=None)


def find_divergence(artifact: Artifact, v: Vectors, sequence: int, folder: Path) -> Divergence | None:
    """Run one sequence on a traced build and compare every node with the reference, in execution order."""
    one = v.select(slice(sequence, sequence + 1))
    expected: Arrays = {}
    interpret(artifact.program, one.inputs, one.start, expected)
    got = _start(artifact, folder / "traced", traced=True).trace(one.inputs, one.start)
    kernels = nest(artifact.program, TARGETS[artifact.target].inside).kernels
    for step in range(v.steps):
        for kernel in kernels:
            for n in kernel.group.nodes:
                e, g = expected[n.output][0, step], got[n.output][0, step]
                if not np.array_equal(e, g):
                    index = _first_index(e, g)
                    return Divergence(
                        artifact.target, v.name, sequence, step, n.output, n.op, n.loc, kernel.title,
                        index, int(e[index]), int(g[index]),
                    )  # fmt: skip
    return None


def _first_index(expected: Array, got: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(expected != got)[0]) if expected.ndim else ()
