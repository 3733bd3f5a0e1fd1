"""Certificates of recurrent states: attained by an adversary, never left, refused when they are wrong."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from isobit.export.onnx.emit import emit, serialized, to_bytes
from isobit.export.onnx.load import load, save
from isobit.quant.certificates import recheck as checker
from isobit.quant.certificates import recheck_turned
from isobit.quant.certificates.certificate import Certificate
from isobit.quant.certificates.recheck import CLAIMS, recheck
from isobit.quant.certificates.search import interval_bound
from isobit.quant.check import check
from isobit.quant.errors import CheckError, InputError
from isobit.quant.facts import state_facts
from isobit.quant.interpret import interpret
from isobit.quant.lower.edges import InputSpec
from isobit.quant.program import Array, Arrays, IntType, Program
from isobit.quant.quantize import Quantized, layer_snr, quantize, real_samples
from isobit.quant.recipe import CERTIFIED, Recipe
from isobit.quant.vectors import golden
from isobit.quant.zoo import digits
from isobit.quant.zoo.families import FAMILIES
from isobit.targets.verify import EXACT, verify
from tests.certified import RATES, certified, crossed, every_kind, gated, selective, turning
from tests.commandline import isobit

NAMES = {c.node for c in every_kind().certificates}


def of(p: Program, node: str) -> Certificate:
    return next(c for c in p.certificates if c.node == node)


def exp2_negative(x: Array) -> Array:
    """2^-x in Q0.15 for x in Q.12, as the op `decay` defines it."""
    n, f = np.minimum(x >> 12, 17), (x & 4095) << 3
    mantissa = (1 << 15) - ((f * (22653 - ((f * (7548 - (f >> 5) - (f >> 7))) >> 15)) + (1 << 14)) >> 15)
    return np.asarray(np.minimum((mantissa + ((1 << n) >> 1)) >> n, 32767))


STEPS = np.array(list(product(range(128), (-128, 127), (-8, 7)))).T
"""dt, u and k of every step of `selective` that an adversary may choose."""


def furthest(rate: int, state: int, sign: int) -> tuple[int, Array]:
    """The state furthest out that one step of `selective` reaches, and the dt, u and k that lead there."""
    dt, u, k = STEPS
    after: Array = (state * exp2_negative((dt * rate + 32) >> 6) + ((((dt * u + 2) >> 2) * k) << 9) + (1 << 14)) >> 15
    best = int((sign * after).argmax())
    return int(after[best]), STEPS[:, best]


@pytest.mark.parametrize("rate", sorted(np.ravel(RATES).tolist()))
def test_an_adversary_attains_the_bound_of_a_selective_state(rate: int) -> None:
    element, c = np.ravel(RATES).tolist().index(rate), of(selective(), "selective.ssm.o")
    for sign, bound in ((1, c.hi[element]), (-1, c.lo[element])):
        state, before = 0, 1
        while state != before:
            state, before = sign * max(sign * state, sign * furthest(rate, state, sign)[0]), state
        assert state == bound


def test_two_elements_of_one_value_have_codes_of_their_own() -> None:
    p = crossed()
    x = np.full((1, 3000, 2), [0, 127])
    reached = interpret(p, {"s": x})[1]["crossed.state"][0]
    c = of(p, "crossed.cross.y")
    assert c.hi[0] >= reached.max() > 20 * reached[1, 1]
    recheck(p)
    with pytest.raises(CheckError, match="goes from"):
        recheck(replace(p, certificates=(replace(c, step="s", hi=(int(reached.max()) - 1,)),)))


def attack(p: Program, bound: int, steps: int) -> Arrays:
    """The states after the adversary's steps on the element of rate 700, in the reference."""
    x: dict[str, Array] = {i.name: np.zeros((1, steps, *i.type.dims), np.int64) for i in p.inputs}
    state = 0
    for t in range(steps):
        state, (x["dt"][0, t, 0], x["u"][0, t, 0], x["k"][0, t, 2]) = furthest(700, state, 1)
    assert state == bound
    return interpret(p, x)[1]


def test_limits_at_the_bound_never_act_and_tighter_ones_do() -> None:
    p = selective()
    bound = of(p, "selective.ssm.o").hi[2]
    for limit in (bound, bound - 1):
        assert attack(selective(hi=limit), bound, 200)["selective.state"][0, 0, 2] == limit


def test_a_shared_step_code_is_worth_bits() -> None:
    p = selective()
    c, plain = of(p, "selective.ssm.o"), interval_bound(p.nodes[2], check(p))
    assert c.step == "dt"
    assert plain is not None
    assert plain.bits - max(c.hi).bit_length() - 1 >= 5
    apart = replace(c, step="", axes="", lo=(plain.lo,), hi=(plain.hi,))
    recheck(replace(p, certificates=(apart,)))
    with pytest.raises(CheckError, match="an end of its operands"):
        recheck(replace(p, certificates=(replace(apart, hi=(plain.hi - 1,)),)))


def test_a_gate_beyond_a_layout_node_bounds_the_decay() -> None:
    p = gated()
    c, decay = of(p, "gated.cell.y"), interpret(p, {"g": np.full((1, 1, 4), 127), "y": np.zeros((1, 1, 2), np.int64)})
    assert c.step == "g"
    assert decay[0]["gated.cell.y"].shape == (1, 1, 2, 2)
    x = {"g": np.full((1, 4000, 4), 127), "y": np.full((1, 4000, 2), 32767)}
    assert interpret(p, x)[1]["gated.state"].max() == c.hi[0]
    assert interpret(p, x | {"y": -x["y"] - 1})[1]["gated.state"].min() == c.lo[0]


@pytest.mark.parametrize("seed", range(3))
def test_states_stay_where_the_certificates_say(seed: int) -> None:
    """Inputs at the ends of their types, for as many steps as the sums allow; the turned ones for longer."""
    rng = np.random.default_rng(seed)
    for p, steps in ((every_kind(), 7), (turning(), 2000)):
        ends = {i.name: (i.type.elem.range.lo, i.type.elem.range.hi) for i in p.inputs}
        x = {i.name: rng.choice(ends[i.name], (4, steps, *i.type.dims)) for i in p.inputs}
        _, states = interpret(p, x)
        nodes = {n.output: n for n in p.nodes}
        for c in p.certificates:
            n = nodes[c.node]
            shape = [
                d if k in c.axes else 1 for k, d in zip(n.labels.state, states[n.state or ""].shape[1:], strict=True)
            ]
            lo, hi = (
                np.reshape(bound or end, shape if bound else ()) for bound, end in ((c.lo, -32768), (c.hi, 32767))
            )
            assert ((states[n.state or ""] >= lo) & (states[n.state or ""] <= hi)).all(), c.node


def test_every_kind_is_checked_again() -> None:
    p = every_kind()
    seen: list[str] = []
    recheck(p, seen.append)
    assert len(seen) == len(p.certificates) == len([n for n in p.nodes if n.spec.structure.is_stateful])
    assert {c.kind for c in p.certificates} == set(CLAIMS)


def tighter(i: int, end: str, by: int = 1) -> Callable[[Certificate], Certificate]:
    def edit(c: Certificate) -> Certificate:
        lo, hi = list(c.lo), list(c.hi)
        if end == "hi":
            hi[i] -= by
        else:
            lo[i] += by
        return replace(c, lo=tuple(lo), hi=tuple(hi))

    return edit


def changed(**fields: object) -> Callable[[Certificate], Certificate]:
    return lambda c: replace(c, **fields)  # type: ignore[arg-type]


WRONG: dict[str, tuple[str, Callable[[Certificate], Certificate], str]] = {
    "H one too small": (
        "selective.ssm.o",
        tighter(5, "hi"),
        r"element \[1, 2\] goes from \d+ to \d+ at code \d+ of dt",
    ),
    "-H one too small": ("selective.ssm.o", tighter(2, "lo"), r"element \[0, 2\] goes from -2403 to -2404 at code"),
    "another step": ("selective.ssm.o", changed(step="u"), "goes from"),
    "no step": ("selective.ssm.o", changed(step=""), "an end of its operands"),
    "one bound for all": ("selective.ssm.o", changed(axes="", lo=(-2404,), hi=(2423,)), "goes from"),
    "not the first state": ("selective.ssm.o", changed(axes="", lo=(1,), hi=(2_000_000,)), "starts at 0, outside"),
    "huge bounds": ("selective.ssm.o", changed(axes="", lo=(-(1 << 41),), hi=(1 << 41,)), "bounds of at most"),
    "sums up": (
        "selective.ssm.o",
        changed(kind="steps", axes="", lo=(-1 << 30,), hi=(1 << 30,), t_max=2),
        "after 2 steps",
    ),
    "holds": ("selective.ssm.o", changed(kind="holds", axes="", lo=(-1 << 40,), hi=(1 << 40,)), "made by linear"),
    "turns": ("selective.ssm.o", changed(kind="ellipse", step="turning.im.held"), "expected symmetric bounds"),
    "gate: H one too small": ("gated.cell.y", tighter(0, "hi"), "goes from 74685 to 74686 at code 127 of g"),
    "gate: another": ("gated.cell.y", changed(step="y"), "goes from"),
    "head: H one too small": ("heads.heads.o", tighter(1, "hi"), r"element \[1, 0, 0\] goes from"),
    "convex: H one too small": ("mixed.convex.y", tighter(0, "hi"), "to 8191 at an end"),
    "T_max too large": ("mixed.sum.y", changed(t_max=8), "after 8 steps it can be anywhere in"),
    "T_max and bounds too large": ("mixed.sum.y", changed(t_max=8, lo=(-65536,), hi=(65528,)), "after 8 steps"),
    "count too far": ("mixed.sum.count", changed(t_max=8, hi=(8,)), "after 8 steps"),
    "a sum that is kept": ("mixed.sum.y", changed(kind="invariant", t_max=0), "expected one of"),
    "delay: too little": ("mixed.last.y", tighter(0, "hi"), "what it holds can be anywhere in"),
    "loop: too little": ("mixed.lif.held", tighter(0, "hi", 16385), "what it holds can be anywhere in"),
    "loop: saturates": ("mixed.sat.held", changed(kind="holds", lo=(-32767,), hi=(32767,)), "anywhere in"),
    "ellipse too small": (
        "turning.re.held",
        lambda c: tighter(3, "hi", 500)(tighter(3, "lo", 500)(c)),
        "element 3 leaves",
    ),
    "ellipse barely": ("turning.re.held", lambda c: tighter(3, "hi", 10)(tighter(3, "lo", 10)(c)), "element 3 leaves"),
    "ellipse lopsided": ("turning.re.held", tighter(0, "hi"), "expected symmetric bounds"),
    "ellipse of another": ("turning.re.held", changed(step="turning.re.held"), "do not hold parts"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_certificate_is_refused(fault: str, tmp_path: Path) -> None:
    """Also from a file whose digest is right."""
    node, edit, why = WRONG[fault]
    p = every_kind()
    wrong = replace(p, certificates=tuple(edit(c) if c.node == node else c for c in p.certificates))
    assert wrong != p
    with pytest.raises(CheckError, match=why) as found:
        recheck(wrong)
    assert node in str(found.value)
    save(wrong, tmp_path / "wrong.onnx")
    result = isobit("certify", tmp_path / "wrong.onnx")
    assert result.code == 1
    assert node in result.err
    assert not result.out


def test_a_state_that_saturates_has_no_other_certificate() -> None:
    p = selective(hi=300, lo=-300)
    facts = state_facts(p)[0]
    assert (facts.certified, facts.elements, facts.verdict) == (0, 6, "saturates")
    assert of(p, "selective.ssm.o") == of(selective(), "selective.ssm.o")
    assert state_facts(selective(hi=2423, lo=-2404))[0].verdict == "2 of 6 certified"
    assert state_facts(selective())[0].verdict == "certified"


MISSHAPEN: dict[str, tuple[Callable[[Certificate], Certificate], str]] = {
    "node": (changed(node="nowhere"), "no stateful node makes it"),
    "axes": (changed(axes="nc"), "its bounds have axes 'nc', the state has 'cn'"),
    "unknown axis": (changed(axes="x"), "its bounds have axes 'x'"),
    "too few": (changed(hi=(1, 2)), "6 lower and 2 upper bounds, expected 6"),
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_a_misshapen_certificate_is_no_program(what: str) -> None:
    edit, why = MISSHAPEN[what]
    p = selective()
    with pytest.raises(CheckError, match=why):
        check(replace(p, certificates=tuple(edit(c) for c in p.certificates)))
    with pytest.raises(CheckError, match="two"):
        check(replace(p, certificates=p.certificates * 2))


def test_certificates_travel_in_the_file() -> None:
    p = every_kind()
    again = load(to_bytes(p))
    assert again == p
    assert again.certificates == p.certificates
    assert again.digest != replace(p, certificates=()).digest


def edited(p: Program, edit: Callable[[list[Any]], object]) -> bytes:
    model: onnx.ModelProto = emit(p)
    entry = next(e for e in model.metadata_props if e.key == "isobit.certificates")
    data = json.loads(entry.value)
    edit(data)
    entry.value = json.dumps(data, sort_keys=True)
    return serialized(model)


EDITS: dict[str, Callable[[list[Any]], object]] = {
    "a bound": lambda data: data[0].update(hi=[1] * 6),
    "a kind": lambda data: data[0].update(kind="saturates", lo=[], hi=[]),
    "an unknown kind": lambda data: data[0].update(kind="trust me"),
    "a text for a number": lambda data: data[0].update(t_max="7"),
    "no integers": lambda data: data[0].update(hi=[1.5] * 6),
    "true": lambda data: data[0].update(hi=[True] * 6),
    "an unknown field": lambda data: data[0].update(proof=1),
    "no node": lambda data: data[0].pop("node"),
    "none at all": lambda data: data.clear(),
    "one more": lambda data: data.append(data[0]),
    "no object": lambda data: data.append([]),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_certificate_is_refused(what: str) -> None:
    with pytest.raises(InputError, match="damaged or edited"):
        load(edited(selective(), EDITS[what]))


def test_the_checker_shares_nothing_with_the_search() -> None:
    for module in (checker, recheck_turned):
        source = Path(module.__file__ or "").read_text()
        imported = {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}
        assert not imported & {f"isobit.quant.certificates.{name}" for name in ("search", "joint", "turned")}


def quantized(family: str, state_bits: int) -> tuple[Quantized, float]:
    """A family of the zoo, and the signal-to-noise ratio of its output."""
    make, shape = FAMILIES[family].sizes()[0]
    torch.manual_seed(0)
    sizes = [32 if isinstance(size, str) else size for size in shape]
    x, other = np.random.default_rng(0).normal(size=(2, 3, *sizes)).astype(np.float32)
    q = quantize(make().eval(), x, Recipe("test", state_bits=state_bits), name="m")
    return q, layer_snr(q.program, q.graph, real_samples(other, q.graph, InputSpec()))["y"]


def share(p: Program) -> tuple[int, int]:
    """Elements of endless recurrences that are certified, and all of them."""
    rows = [s for s in state_facts(p) if s.t_max is None]
    return sum(s.certified for s in rows), sum(s.elements for s in rows)


@pytest.mark.parametrize("family", ["GLA", "RG-LRU", "S4D"])
def test_certified_widths_end_saturation_and_cost_nothing(family: str) -> None:
    (saturating, before), (q, ratio) = (quantized(family, bits) for bits in (16, CERTIFIED))
    assert share(saturating.program)[0] == 0
    certified_elements, elements = share(q.program)
    assert certified_elements == elements > 0
    assert ratio == pytest.approx(before, abs=0.5)
    recheck(q.program)
    for s in state_facts(q.program):
        assert s.bits == s.width
        assert s.saved is None or s.saved >= 5


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("bits", [CERTIFIED, 8, 32], ids=["certified", "int8", "int32"])
@pytest.mark.parametrize("family", ["GLA", "GRU"])
def test_states_of_any_width_are_exact(family: str, bits: int) -> None:
    q, ratio = quantized(family, bits)
    assert ratio > (20 if bits == 8 else 30), "8 bits round the state itself at every step"
    if bits != CERTIFIED:
        assert bits in {s.type.elem.bits for s in q.program.states}
    for row in verify(q.program, ["c", "ort"], list(golden(q.program))).rows:
        assert row.status == EXACT, row.reason


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_certificates_of_every_family_hold(family: str) -> None:
    p = quantized(family, CERTIFIED)[0].program
    assert len(p.certificates) == sum(n.spec.structure.is_stateful for n in p.nodes)
    recheck(p)


def test_the_demo_is_certified(tmp_path: Path) -> None:
    """At least half of its states at 16 bits, all of them at the widths that the certificates ask for."""
    shares = {}
    for bits in (16, CERTIFIED):
        spec, x = InputSpec(IntType(5, signed=False), digits.INPUT_SCALE), digits.data().calibration.x
        q = quantize(digits.load(), x, Recipe("demo", state_bits=bits), name="digits", input=spec)
        shares[bits] = share(q.program)
    assert shares[16][1] == shares[CERTIFIED][0] == shares[CERTIFIED][1] == 2048
    assert 2 * shares[16][0] >= 2048
    save(q.program, tmp_path / "digits.onnx")
    shown = isobit("inspect", tmp_path / "digits.onnx", "--json").json
    assert shown["totals"]["recurrent states certified"] == "2048 of 2048"
    first = next(s for s in shown["states"] if s["op"] == "linear_recurrence")
    assert (first["verdict"], first["step"]) == ("certified", "layers.0.mixer.dt_proj")
    assert first["saved"] > 10
    assert "certified" in isobit("inspect", tmp_path / "digits.onnx").out


def test_the_command_line_checks_again(tmp_path: Path) -> None:
    p = every_kind()
    save(p, tmp_path / "good.onnx")
    good = isobit("certify", tmp_path / "good.onnx")
    assert good.code == 0
    assert "11 certificates hold" in good.out
    assert isobit("certify", tmp_path / "good.onnx", "--json").json["hold"] == 11
    save(replace(p, certificates=()), tmp_path / "bare.onnx")
    bare = isobit("certify", tmp_path / "bare.onnx")
    assert (bare.code, bare.out) == (2, "")
    assert "carries no certificates" in bare.err


def test_no_certificate_is_made_twice() -> None:
    p = every_kind()
    assert certified(p).certificates == p.certificates
    assert {c.node for c in p.certificates} == NAMES
