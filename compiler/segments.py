"""Programs with calls to PyTorch: cut at the calls into cascades that are compiled each on its own.

Existence is made explicit before the cut, so that a tensor that crosses it needs no more than its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping as MappingABC
from dataclasses import dataclass
from typing import Any

from tcc.explain import Explanation, merged
from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Recurrence, steps, targets
from tcc.ir.expr import Size
from tcc.ir.target import Target
from tcc.pipeline import Result

Call = Callable[[Extern, MappingABC[str, Any], MappingABC[str, int]], list[Any]]
_BEFORE = ("simplify", "restrict")


def split(c: Cascade) -> list[Cascade | Extern]:
    """The program as cascades without calls, and calls, in an order in which they can run; calls keep their order.

    A definition joins the earliest cascade at which everything that it reads is there.
    """
    from tcc.ir.infer import build

    ready = {t.name: 0 for t in c.inputs}  # tensor -> the level from which it may be read
    cut: dict[int, list[Definition]] = {}
    calls: dict[int, list[Extern]] = {}
    latest = 0
    for step in steps(c):
        members = step.steps if isinstance(step, Recurrence) else (step,)
        level = max((ready[a.tensor] for d in members for a in d.reads if a.tensor in ready), default=0)
        if isinstance(step, Extern):
            latest = level = max(level, latest)
            calls.setdefault(level, []).append(step)
            ready |= {name: level + 1 for name in targets(step)}
        else:
            cut.setdefault(level, []).extend(members)
            ready |= {name: level for d in members for name in targets(d)}
    order = [
        (cut.get(level, []), calls.get(level, [])) for level in range(max([0, *cut, *calls]) + 1)
    ]  # fmt: skip
    found: list[Cascade | Extern] = []
    for n, (definitions, externs) in enumerate(order):
        later = [d for ds, es in order[n + 1 :] for d in (*ds, *es)]
        wanted = {a.tensor for d in (*externs, *later) for a in d.reads} | {t.name for t in c.outputs}
        if definitions:
            name = c.name if len(order) == 1 else f"{c.name}_{n}"
            found.append(build(_piece(c, name, definitions, wanted)))
        found += externs
    return found


def _piece(c: Cascade, name: str, definitions: list[Definition], wanted: set[str]) -> Cascade:
    written = {name for d in definitions for name in targets(d)}
    read = dict.fromkeys(a.tensor for d in definitions for a in d.reads if a.tensor not in written)
    outputs = [n for n in dict.fromkeys(d.target for d in definitions if isinstance(d, Einsum)) if n in wanted]
    ranks = tuple(c.ranks)
    vars_here = {d.target for d in definitions}
    stops = tuple(s for s in c.stops if any(a.tensor in vars_here for a in _stop_reads(s)))
    return Cascade(name, ranks, tuple(c.tensors[n] for n in read), tuple(c.tensors[n] for n in outputs),
                   tuple(definitions), stops)  # fmt: skip


def _stop_reads(stop: Any) -> list[Any]:
    from tcc.ir.expr import accesses

    return accesses(stop.condition)


@dataclass(frozen=True, slots=True)
class Segment:
    """A compiled piece: how to call it, and the ranks that its inputs do not give."""

    result: Result
    kernel: Any
    caller: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ranks: tuple[str, ...]


class Executor:
    """A program, pieces compiled and calls left to `extern`: `executor(tensors, sizes)` gives the outputs by name."""

    def __init__(self, c: Cascade, target: str | Target | None, extern: Call, **options: Any) -> None:
        from tcc import pipeline
        from tcc.build import lower, machine
        from tcc.call import Caller

        self._extern, self._outputs = extern, [t.name for t in c.outputs]
        self.target = machine(c, target)
        whole = pipeline.run(c, self.target, pipeline.passes(_BEFORE)).program
        assert isinstance(whole, Cascade)
        self.cascade = whole
        self.pieces: list[Segment | Extern] = []
        for piece in split(whole):
            if isinstance(piece, Extern):
                self.pieces.append(piece)
                continue
            result = lower(piece, self.target, **options)
            kernel = _emitted(result)
            known = {s.rank for t in piece.inputs for s in t.shape if isinstance(s, Size)}
            ranks = tuple(r.name for r in piece.ranks if r.size is None and r.name not in known)
            self.pieces.append(
                Segment(result, kernel, Caller(piece, kernel, self.target.name), tuple(t.name for t in piece.inputs),
                        tuple(t.name for t in piece.outputs), ranks)
            )  # fmt: skip

    def __call__(self, tensors: MappingABC[str, Any], sizes: MappingABC[str, int]) -> dict[str, Any]:
        values = dict(tensors)
        for piece in self.pieces:
            if isinstance(piece, Extern):
                found = self._extern(piece, values, sizes)
                values.update(zip(targets(piece), found, strict=True))
                continue
            given = {name: int(sizes[name]) for name in piece.ranks} if piece.ranks else None
            got = piece.caller.run([values[name] for name in piece.inputs], given)
            if len(piece.outputs) == 1:
                values[piece.outputs[0]] = got
            else:
                values.update(zip(piece.outputs, got, strict=True))
        return {name: values[name] for name in self._outputs}

    @property
    def source(self) -> str:
        """The generated sources, in order."""
        return "\n".join(p.kernel.source for p in self.pieces if isinstance(p, Segment))

    def ir(self, level: str) -> str:
        """The text of every piece at a level, in order."""
        parts: list[str] = []
        for p in self.pieces:
            if isinstance(p, Extern):
                parts.append(f"# {p}\n")
                continue
            found = p.result.cascade if level == "cascade" else p.result.mapping
            parts.append(str(found) if found is not None else "")
        return "\n".join(parts)

    def explain(self) -> Explanation:
        """One report on all pieces and calls."""
        from tcc.explain import explain

        reports = [explain(p.result) for p in self.pieces if isinstance(p, Segment)]
        externs = [p for p in self.pieces if isinstance(p, Extern)]
        return merged(self.cascade.name, self.target.name, reports, externs)


def _emitted(result: Result) -> Any:
    from tcc.build import emit

    return emit(result)


def factory(target: str | None, **options: Any) -> Callable[[Any], Executor]:
    """What `tcc.dynamo` compiles captured graphs with."""

    def make(captured: Any) -> Executor:
        from tcc.frontends.pytorch import run_extern

        return Executor(captured.cascade, target, run_extern, **options)

    return make
