"""Every target against the reference: the corner cases of every op, every primitive, a new op, planted faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isobit.quant.expr import clip, select
from isobit.quant.interpret import interpret
from isobit.quant.ops import OPS, Op, Structure
from isobit.quant.program import Program
from isobit.quant.vectors import Vectors, golden, join, prefixed
from isobit.targets.plan import plan
from isobit.targets.target import TARGETS, Options, target
from isobit.targets.verify import EXACT, verify
from isobit.tools.status import op_program
from tests.feedback import FEEDBACK, gated_cell, loops
from tests.fused import FUSED, blocks, codes
from tests.models import mamba_block
from tests.primitives import primitive_programs, primitive_vectors
from tests.stored import stored_program
from tests.traced import wrong_taps

RUNNABLE = [t for t in TARGETS if t != "gpu"]
NEEDS = {"c": ["gcc"], "mcu": ["arm-none-eabi-gcc", "qemu-system-arm"], "hls": ["g++"], "cpu": ["gcc"]}


def every_target(test: Callable[..., None]) -> Any:
    rows = [pytest.param(t, marks=pytest.mark.needs(*NEEDS.get(t, []))) for t in RUNNABLE]
    return pytest.mark.parametrize("name", rows)(test)


def assert_exact(program: Program, name: str, vectors: list[Vectors]) -> None:
    (row,) = verify(program, [name], vectors).rows
    assert row.status == EXACT, f"{row.reason}\n{row.divergence}"
    assert row.values > 0


@every_target
def test_every_case_of_every_op(name: str) -> None:
    program = join("ops", [op_program(op) for op in OPS])
    assert_exact(program, name, list(golden(program)))


@every_target
@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["narrow", "wide"])
def test_every_primitive(name: str, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, programs = primitive_programs()
    for key, op in ops.items():
        monkeypatch.setitem(OPS, key, op)
    program = programs[which]
    inputs = primitive_vectors(program)
    outputs, states = interpret(program, inputs)
    assert_exact(program, name, [Vectors("primitives", "every pair", inputs, outputs, states)])


@every_target
def test_every_number_of_packed_constants(name: str) -> None:
    program, vectors = stored_program()
    assert_exact(program, name, [vectors])


def soft_threshold(x: Any, *, limit: int) -> Any:
    """sign(x) * max(|x| - limit, 0): an op that only this test knows."""
    shrunk = clip(select(x < 0, -x, x) - limit, 0, 1 << 15)
    return select(x < 0, -shrunk, shrunk)


@every_target
def test_a_new_pointwise_op_runs_fused_and_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, "soft_threshold", Op(Structure.POINTWISE, soft_threshold))
    program = mamba_block(extra_op=("soft_threshold", {"limit": 9}))
    groups = plan(program)
    fused = next(g for g in groups if "soft_threshold" in [n.op for n in g.nodes])
    assert len(fused.nodes) > 1
    assert fused.head is not None
    assert_exact(program, name, list(golden(program)))


@every_target
def test_a_mamba_block_of_odd_sizes(name: str) -> None:
    program = mamba_block(d_model=7, d_inner=9, d_state=5, kernel=3, rank=1, seed=3)
    assert_exact(program, name, list(golden(program)))


@every_target
@pytest.mark.parametrize("which", FEEDBACK)
def test_programs_that_feed_back(name: str, which: str) -> None:
    program = FEEDBACK[which]()
    assert_exact(program, name, list(golden(program)))


@every_target
def test_programs_whose_operands_are_computed_where_they_are_read(name: str) -> None:
    program = join("fused", [prefixed(make(), f"f{i}") for i, make in enumerate(FUSED.values())])
    assert_exact(program, name, list(golden(program)))


@every_target
@pytest.mark.parametrize("make", [mamba_block, loops, codes, blocks], ids=["a Mamba block", "loops", "codes", "blocks"])
def test_taps_equal_the_reference(name: str, make: Callable[[], Program], tmp_path: Path) -> None:
    program = make()
    v = next(iter(golden(program)))
    (tmp_path / "package").mkdir()
    (tmp_path / "run").mkdir()
    artifact = target(name).build(program, tmp_path / "package", Options())
    session = target(name).start(artifact, tmp_path / "run", traced=True)
    assert wrong_taps(session, program, replace(v, start=None)) == []


@every_target
@pytest.mark.parametrize("make", [mamba_block, gated_cell], ids=["a Mamba block", "a cell"])
def test_state_is_saved_loaded_reset_and_never_leaks(name: str, make: Callable[[], Program], tmp_path: Path) -> None:
    program = make()
    x = next(v for v in golden(program, steps=12) if v.name == "random").inputs
    (tmp_path / "package").mkdir()
    (tmp_path / "run").mkdir()
    artifact = target(name).build(program, tmp_path / "package", Options())
    session = target(name).start(artifact, tmp_path / "run", traced=False)
    whole = session.run(x, None, by_step=False)
    head = session.run({k: a[:, :5] for k, a in x.items()}, None, by_step=True)
    tail = session.run({k: a[:, 5:] for k, a in x.items()}, dict(head.states), by_step=False)
    again = session.run(x, None, by_step=False)
    for o in program.outputs:
        assert np.array_equal(np.concatenate([head.outputs[o], tail.outputs[o]], 1), whole.outputs[o])
        assert np.array_equal(again.outputs[o], whole.outputs[o]), "state leaked from the calls before"
    for s in program.states:
        assert np.array_equal(tail.states[s.name], whole.states[s.name])
