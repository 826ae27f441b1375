"""The gradient of a cascade is a cascade: one adjoint definition per read, backwards through the definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Recurrence, Step, Tensor
from tcc.ir.diagnostics import CompileError, did_you_mean
from tcc.ir.dtype import Scaled
from tcc.ir.expr import Access, Const, Var
from tcc.ir.infer import build
from tcc.ir.schedule import schedule
from tcc.passes._grad_expr import depends, pull_back
from tcc.passes._grad_gauge import invariant
from tcc.passes._grad_monoid import separated, short_cut, weighted
from tcc.passes._grad_recurrence import reverse
from tcc.passes._grad_saved import unsaved
from tcc.passes._grad_sum import Ledger, Part
from tcc.passes._prune import drop, drop_ranks


def differentiate(
    c: Cascade,
    wrt: Sequence[str],
    of: Sequence[str] | None = None,
    seeds: Mapping[str, str | float] | None = None,
    *,
    forward: bool = False,
    saved: Sequence[str] = (),
) -> Cascade:
    """Σ d_O · O over the outputs O, differentiated by the inputs `wrt`: d_A[j] = Σ d_T[i] · ∂body/∂A[a] where a = j.

    `c` has explicit predicates (the pass `restrict`). The result has the inputs of c, a cotangent `d_O` for every
    output in `of` (by default all floats; `seeds` gives other names, or numbers), and the outputs `d_A` for A in `wrt`;
    with `forward` also those of c. What it needs of c's tensors it computes again, but for those in `saved`: they are
    inputs. Maxima share their cotangent evenly among equals. T0260 where there is no derivative, T0261 for names that
    do not fit.
    """
    return _Gradient(c, tuple(wrt), of, dict(seeds or {}), forward, tuple(saved)).run()


class _Gradient:
    def __init__(
        self, c: Cascade, wrt: tuple[str, ...], of: Sequence[str] | None, seeds: dict[str, str | float],
        forward: bool, saved: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.c, self.wrt, self.seeds, self.forward, self.saved = c, wrt, seeds, forward, saved
        outputs = {t.name: t for t in c.outputs}
        chosen = [t.name for t in c.outputs if t.dtype.is_float] if of is None else list(of)
        for names, known, what in (
            (wrt, [t.name for t in c.inputs], "input"),
            ([*chosen, *seeds], list(outputs), "output"),
            (saved, [t for t in c.tensors if c.defining(t)], "definition"),
        ):
            for name in names:
                if name not in known:
                    raise CompileError("T0261", f"`{c.name}` has no {what} `{name}`",
                                       helps=did_you_mean(name, known) or f"its {what}s: {', '.join(known)}")  # fmt: skip
        for name in (*wrt, *chosen):
            t = c.tensors[name]
            if not t.dtype.is_float or isinstance(t.dtype.form, Scaled):
                raise CompileError("T0261", f"`{name}` is {t.dtype}: only floats have gradients", t.span,
                                   helps="leave it out, or convert it to a float")  # fmt: skip
        self.of = [outputs[name] for name in chosen]
        self.steps = schedule(c)
        self.still: set[str] = set()  # tensors whose adjoint is zero
        self.live = self._live()
        results = {t.name for t in self.of}
        dtype = Ledger(c).dtype
        tried: set[str] = set()
        while (found := invariant(c, self.steps, self.live, results, dtype, tried)) is not None:
            self.still.add(found)
            self.live = self._live()
        self.c = separated(c, self.live)
        self.steps = schedule(self.c)
        self.live = self._live()
        self.ledger = Ledger(self.c)
        self.adjoint: dict[str, str] = {}

    def run(self) -> Cascade:
        names = self.ledger.names
        cotangents = [t for o in self.of if (t := self._seed(o)) is not None]
        results = {name: names.tensor(f"d_{name}") for name in self.wrt}
        for step in reversed(self.steps):
            self._step(step)
        for name, d_name in results.items():
            self.ledger.total(name, d_name)
        gradients = [
            replace(self.c.tensors[n], name=d, fill=0, span=None, constant=False)
            for n, d in results.items()
        ]
        kept = unsaved(self.c, self.saved)
        inputs = (
            *self.c.inputs,
            *(replace(self.c.tensors[n], span=None) for n in self.saved),
            *cotangents,
        )
        out = replace(
            self.c, name=f"{self.c.name}_grad", ranks=tuple(names.ranks.values()), inputs=inputs,
            outputs=(*(self.c.outputs if self.forward else ()), *gradients), groups=(), joints=(),
            definitions=(*kept, *self.ledger.new), stops=self.c.stops if self.forward else (),
            tensors=self.ledger.tensors,
        )  # fmt: skip
        return drop_ranks(build(drop(out)))

    # ---- which tensors have adjoints

    def _live(self) -> set[str]:
        """Tensors on the way from `wrt` to `of`."""
        after = set(self.wrt)
        for step in self.steps:
            members = _members(step)
            for _ in members:
                for d in members:
                    if isinstance(d, Einsum) and self._changes(d.target) and depends(d.body, after):
                        after.add(d.target)
                    if isinstance(d, Extern) and set(d.operands) & after:
                        after |= {t.name for t in d.targets if t.dtype.is_float}
        before = {t.name for t in self.of}
        for step in reversed(self.steps):
            members = _members(step)
            for _ in members:
                for d in members:
                    if set(_targets(d)) & before & after:
                        before |= {a.tensor for a in d.reads if a.tensor in after}
        return after & before

    def _changes(self, tensor: str) -> bool:
        return self.c.tensors[tensor].dtype.is_float and tensor not in self.still

    # ---- backwards

    def _seed(self, o: Tensor) -> Tensor | None:
        """Starts the adjoint of an output with its cotangent: an input, or a number."""
        given = self.seeds.get(
            o.name, f"d_{o.name}" if o.name not in self.wrt else f"d_{o.name}_out"
        )
        at = self.ledger.coordinates(o)
        if not isinstance(given, str):
            self.ledger.add(o.name, Part("seed", at, Const(float(given))))
            return None
        name = self.ledger.names.tensor(given)
        t = Tensor(name, o.dtype, o.shape)
        self.ledger.tensors[name] = t
        self.ledger.add(o.name, Part("seed", at, Access(name, tuple(map(Var, at)))))
        return t

    def _step(self, step: Step) -> None:
        if isinstance(step, Recurrence):
            if set(_targets(step)) & self.live:
                self.adjoint |= reverse(self.ledger, step, self.live)
        elif isinstance(step, Extern):
            if set(_targets(step)) & self.live:
                raise CompileError("T0260", f"`{step.function}` has no derivative here", step.span,
                                   helps="take the gradient by other inputs")  # fmt: skip
        elif step.target in self.live:
            self._contributions(step)

    def _contributions(self, d: Einsum) -> None:
        total = self._total(d.target)
        seed = weighted(self.ledger, d, self.ledger.element(total, d.indices))
        value = None if d.reduced else Access(d.target, d.indices)
        found = pull_back(d.body, seed, value, self.live, self.ledger.dtype)
        for a, g in self.ledger.shared(d, found):
            once = short_cut(d, a, seed, self.ledger.dtype)
            read = (d, a, g) if once is None else (once, a, once.body)
            self.ledger.add(a.tensor, self.ledger.read(*read))

    def _total(self, tensor: str) -> str:
        """The tensor that holds the adjoint of another one, summed when it is first needed."""
        if tensor not in self.adjoint:
            parts = self.ledger.parts.get(tensor, [])
            if len(parts) == 1 and parts[0].source == "seed" and isinstance(parts[0].body, Access):
                self.adjoint[tensor] = parts[0].body.tensor
            else:
                name = self.ledger.names.tensor(f"d_{tensor}")
                self.adjoint[tensor] = self.ledger.total(tensor, name)
        return self.adjoint[tensor]


def _members(step: Step) -> Sequence[Definition]:
    return step.steps if isinstance(step, Recurrence) else (step,)


def _targets(step: Step) -> list[str]:
    from tcc.ir.cascade import targets

    return [t for d in _members(step) for t in targets(d)]
