"""The search over tiles: deterministic, the usual tiles unless others are clearly better, and right whatever it picks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from c_runs import run as run_c

import tcc
from tcc.backends.c import build
from tcc.ir.cascade import Cascade
from tcc.ir.cascade_text import parse_cascade
from tcc.ir.cost import cost
from tcc.ir.interpret import interpret
from tcc.ir.mapping import Kernel, Mapping
from tcc.ir.mapping_interpret import interpret_mapping
from tcc.ir.target import Target
from tcc.passes import _search
from tcc.passes._cpu_tiles import ORDERS, Tiles, usual_tiles
from tcc.passes._map_cpu import Mapper
from tcc.passes._search import Search
from tcc.pipeline import names_for, passes, run
from tcc.samples import random_inputs
from tcc.targets import find

MEASURED = find("zen4")  # the one of the known CPUs whose register tiles are measured
MATMUL = (
    "ranks M={}, N={}, K={}\nin A: f32[M,K], B: f32[K,N]\nout C: f32[M,N]\nC[m,n] = A[m,k] * B[k,n]"
)
ATTENTION = """
ranks P={}, M={}, E={}, F={}
in Q: f32[P,E], K: f32[M,E], V: f32[M,F]
out AV: f32[P,F]
QK[p,m] = Q[p,e] * K[m,e] / sqrt(E) where m <= p
GM[p]   = QK[p,m] :: max(m)
SN[p,m] = exp(QK[p,m] - GM[p])
SD[p]   = SN[p,m]
A[p,m]  = SN[p,m] / SD[p]
AV[p,f] = A[p,m] * V[m,f]
"""
TWICE = """
ranks M=1000, K=96, N=96, L=96
in A: f32[M,K], B: f32[K,N], D: f32[N,L]
out C: f32[M,N], E: f32[M,L]
C[m,n] = A[m,k] * B[k,n]
E[m,l] = C[m,n] * D[n,l]
"""
CLEARLY = MATMUL.format(48, 1000, 1000)


def grouped(text: str, target: Target = MEASURED) -> Cascade:
    steps = passes([n for n in names_for(target) if n != "map"])
    found = run(parse_cascade(text), target, steps).program
    assert isinstance(found, Cascade)
    return found


def notes(m: Mapping) -> list[str]:
    return [k.note for k in m.kernels if isinstance(k, Kernel) and k.note]


def test_what_is_clearly_faster_by_the_model_is_chosen() -> None:
    c = grouped(CLEARLY)
    usual, found = Mapper(c, MEASURED, False).run(), Mapper(c, MEASURED).run()
    assert str(usual) != str(found)
    assert "faster than the target's usual ones" in notes(found)[0]
    assert cost(found, MEASURED).seconds < _search.CLEAR * cost(usual, MEASURED).seconds


def test_it_is_deterministic() -> None:
    for text in (CLEARLY, ATTENTION.format(256, 256, 64, 64)):
        c = grouped(text)
        assert str(Mapper(c, MEASURED).run()) == str(Mapper(c, MEASURED).run())


def test_nothing_is_searched_without_sizes_or_measured_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Search, "_search", lambda *_: pytest.fail("searched"))
    unknown = MATMUL.split("\n", 1)[1]
    for text, target in ((CLEARLY, replace(MEASURED, tiles=())), (unknown, MEASURED)):
        found = Mapper(grouped(text, target), target).run()
        assert notes(found) == [n for n in notes(found) if n.endswith(": the target's usual ones")]
        assert len(notes(found)) == 1


def test_equal_kernels_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to names; another size or place makes another kernel."""
    count, search = [0], Search._search

    def counted(self: Search, *given: object) -> object:
        count[0] += 1
        return search(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Search, "_search", counted)
    for text, wanted in ((TWICE, 1), (TWICE.replace("L=96", "L=80"), 2)):
        count[0] = 0
        c = parse_cascade(text)  # without groups: one kernel each
        Mapper(c, MEASURED).run()
        assert count[0] == wanted


def test_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    c = grouped(CLEARLY)
    usual = Mapper(c, MEASURED, False).run()
    monkeypatch.setattr(_search, "CLEAR", 0.1)
    found = Mapper(c, MEASURED).run()
    assert str(found) == str(usual) and "none of" in notes(found)[0]


def test_ways_to_read_the_second_operand(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are possible are tried; one that is not usual has to be faster by far."""
    c = grouped(MATMUL.format(64, 1024, 1024))
    assert {t.way for t in candidates(c, monkeypatch)} == {0, 1, 2, 4}  # usual: 3, near the core
    made = {}
    for way in range(1, 5):
        mapper = Mapper(c, MEASURED, False)
        mapper.tiles = replace(mapper.tiles, way=way)
        made[way] = str(mapper.run())
    assert len(set(made.values())) == 4 and made[3] == str(Mapper(c, MEASURED, False).run())
    for margin, other in ((0.0, False), (10.0, True)):
        monkeypatch.setattr(_search, "CLEAR", 0.0)
        monkeypatch.setattr(_search, "WAY", margin)
        assert (str(Mapper(c, MEASURED).run()) != made[3]) == other


@pytest.mark.parametrize(("way", "distinct"), [(1, 6), (3, 2), (4, 2)])
def test_every_order_of_loops_computes_the_same(way: int, distinct: int) -> None:
    """Where blocks are packed near the core, the loop over the depth is around that."""
    text = MATMUL.format(53, 70, 41)
    c = parse_cascade(text)
    arrays = random_inputs(c, {}, np.random.default_rng(0))
    wanted = interpret(c, arrays)["C"]
    made: dict[str, Mapping] = {}
    for order in range(len(ORDERS)):
        mapper = Mapper(grouped(text), MEASURED, False)
        mapper.tiles = replace(mapper.tiles, block_depth=16, way=way, order=order)
        m = mapper.run()
        made.setdefault(str(m).replace(notes(m)[0], ""), m)
    assert len(made) == distinct
    for m in made.values():
        for result in (interpret_mapping(m, arrays)[0], run_c(build(m, MEASURED), c, arrays)):
            np.testing.assert_allclose(result["C"], wanted, rtol=1e-4, atol=1e-5)


def test_orders_are_tried_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    deep, flat = (candidates(grouped(MATMUL.format(300, 256, k)), monkeypatch) for k in (1024, 200))
    assert {t.order for t in deep if t.way == 0} == set(range(len(ORDERS)))
    assert {t.order for t in flat if t.way == 0} == {0, 3}  # no loop over blocks of the depth


def candidates(c: Cascade, monkeypatch: pytest.MonkeyPatch) -> list[Tiles]:
    """All tiles that the search costs."""
    seen: dict[Tiles, None] = {}
    costed = Search._cost

    def noted(self: Search, tiles: Tiles, build: object) -> object:
        seen[tiles] = None
        return costed(self, tiles, build)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_cost", noted)
        Mapper(c, MEASURED).run()
    assert next(iter(seen)) == usual_tiles(MEASURED)
    return list(seen)


@pytest.mark.parametrize(
    ("large", "small", "least"),
    [
        (MATMUL.format(300, 600, 700), MATMUL.format(29, 70, 41), 7),
        (ATTENTION.format(600, 600, 64, 64), ATTENTION.format(53, 53, 16, 16), 4),
    ],
    ids=["product", "walk"],
)
def test_every_candidate_computes_the_same(
    large: str, small: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped at small sizes: against both interpreters."""
    tried = candidates(grouped(large), monkeypatch)
    assert len(tried) > least
    c = parse_cascade(small)
    arrays = random_inputs(c, {}, np.random.default_rng(0))
    wanted = interpret(c, arrays)
    for tiles in tried:
        mapper = Mapper(grouped(small), MEASURED, False)
        mapper.tiles = tiles
        m = mapper.run()
        for result in (interpret_mapping(m, arrays)[0], run_c(build(m, MEASURED), c, arrays)):
            for name, value in wanted.items():
                np.testing.assert_allclose(result[name], value, rtol=1e-4, atol=1e-5)


def test_a_trial_leaves_nothing_behind() -> None:
    mapper = Mapper(grouped(CLEARLY), MEASURED)
    with mapper.trial(replace(mapper.tiles, tile_rows=4)):
        mapper.fresh("C")
        mapper.clear("C", mapper.c.tensors["C"].shape, 0.0)
    assert mapper.tiles == usual_tiles(MEASURED) and not mapper.kernels and "C2" not in mapper.names


def test_explain_says_who_chose() -> None:
    found = tcc.parse(CLEARLY).compile(target="zen4").explain()
    (tiles,) = (k.tiles for k in found.kernels if k.tiles)
    assert "register tiles of" in tiles and "by the model" in tiles
    assert f"# {tiles}" in str(found) and found.json()["kernels"][-1]["tiles"] == tiles


def test_the_search_can_be_left_out() -> None:
    options = {"map": {"search": False}}
    found = tcc.parse(CLEARLY).compile(target="zen4", passes=options)
    assert "the target's usual ones" in str(found.explain())
