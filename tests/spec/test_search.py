"""What the search found is what the ops use, and what it says of a program holds for every input."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.quant.expr.interval import Interval
from isobit.quant.expr.symbols import trace
from isobit.quant.ops import exp2, rmsnorm, silu
from isobit.tools import search_nonlinears as search
from isobit.tools.search_nonlinears import Found, costs, descend, functions, load, spent, winner

USED = {"2^-f": exp2.CUBIC, "1/(1 + e)": silu.RECIPROCAL, "1/sqrt(x)": rmsnorm.RSQRT}

PROGRAMS = [(name, label) for name, function in functions().items() for label in function.shapes]


def test_the_ops_have_the_coefficients_of_the_winners() -> None:
    assert {name: found[winner(name, found)]["coefficients"] for name, found in load().items()} == USED


@pytest.mark.parametrize(("name", "label"), PROGRAMS)
def test_errors_and_costs_are_as_stored(name: str, label: str) -> None:
    function, entry = functions()[name], load()[name][label]
    shape, found = function.shapes[label], Found()
    found.score(function, shape, entry["coefficients"], 1)
    assert found.coefficients == entry["coefficients"], "it breaks what it must keep"
    assert found.error == pytest.approx(entry["error"], rel=1e-3)
    assert costs(function, shape, entry["coefficients"]) == spent(entry)


def test_the_best_quadratic_is_found_again() -> None:
    """The search is deterministic: the same descents end at the stored coefficients."""
    function, found = functions()["2^-f"], Found()
    for weight in search.WEIGHTS:
        descend(found, function, function.shapes["a quadratic"], {}, weight)
    entry = load()["2^-f"]["a quadratic"]
    assert (found.coefficients, found.tried) == (entry["coefficients"], entry["tried"])


def test_a_program_that_rises_or_misses_one_is_no_candidate() -> None:
    function, found = functions()["2^-f"], Found()
    shape = function.shapes["a quadratic"]
    for a, b in ((22004, 5000), (23500, 5644), (30000, 22000)):
        assert found.score(function, shape, {"a": a, "b": b}, 1) > 2.0**-15
    assert found.coefficients is None


def test_the_page_is_that_of_the_stored_table() -> None:
    assert search.markdown(load()) == search.PAGE.read_text(), "run `python -m isobit.tools.search_nonlinears`"


def test_the_winner_of_exponentials_beats_the_quadratic_at_the_same_products() -> None:
    found = load()["2^-f"]
    best = found["a cubic, its lead two shifts"]
    assert best["products"] == found["a quadratic"]["products"] == 2
    assert best["error"] < found["a quadratic"]["error"] / 10


def test_operations_are_counted_in_the_expression_graph() -> None:
    traced = trace(search.linear, [Interval(0, 32767)], {})
    assert [n.op for n in traced.nodes if n.op not in ("var", "const")] == ["shr", "sub"]
    assert load()["2^-f"]["a line"]["operations"] == 2
    assert np.array_equal(exp2.mantissa(functions()["2^-f"].inputs, **exp2.CUBIC)[:2], [32768, 32762])
