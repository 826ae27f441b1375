"""The verifier of cascades: infers ranks, shapes and element types, and reports each mistake at its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, Extern, Rank, Recurrence, Tensor, targets
from tcc.ir.diagnostics import CompileError, Label, Span, did_you_mean
from tcc.ir.dtype import BOOL, F32, I64, DType, merge, promote
from tcc.ir.dtype_scaled import check_conversion, check_declared
from tcc.ir.expr import (
    Access,
    Call,
    Cast,
    Const,
    Expr,
    Size,
    Var,
    accesses,
    call,
    text,
    transform,
    variables,
    walk,
)  # fmt: skip
from tcc.ir.index import Poly, bounds, evaluate_size, is_size, nonnegative, poly
from tcc.ir.ops import INDEX_REDUCTIONS, MONOIDS
from tcc.ir.packed import check_packed
from tcc.ir.schedule import schedule
from tcc.ir.sizes import check_sizes

MAX_ELEMENTS = 2**63 - 1
_WEAK_FLOAT = DType("float literal", "f", 0)
_WEAK_INT = DType("integer literal", "i", 0)


def build(c: Cascade) -> Cascade:
    """`c` verified, its definitions in executable order, with every rank and tensor inferred."""
    return _Inference(c).run()


class _Inference:
    def __init__(self, c: Cascade) -> None:
        self.c = c
        self.ranks: dict[str, Rank] = {}
        self.tensors: dict[str, Tensor] = {}

    def run(self) -> Cascade:
        for rank in self.c.ranks:
            self._rank(rank)
        check_sizes(self.ranks)
        for t in self.c.inputs:
            self._declare(t)
        for n, t in enumerate(self.c.outputs):
            if t.name in (first := {o.name: o for o in self.c.outputs[:n]}):
                raise _twice(f"output `{t.name}`", t.span, first[t.name].span)
            for s in t.shape:
                self._known_ranks(s, t.span)
            self._check_elements(t)
            self._check_groups(t)
        self._check_written()
        ordered: list[Definition] = []
        steps_ = schedule(self.c)
        for step in steps_:
            members = step.steps if isinstance(step, Recurrence) else (step,)
            self._shape_ahead(members)
            for d in members:
                ordered.append(self._extern(d) if isinstance(d, Extern) else self._einsum(d))
        self._check_overlap()
        found = [s.stop for s in steps_ if isinstance(s, Recurrence)]
        for stop in self.c.stops:
            if stop not in found:
                raise CompileError(
                    "T0128", f"`stop {stop.var}` stops no recurrence", stop.span,
                    helps=f"its condition reads a state along `{stop.var}`, as in `S[{stop.var} + 1] = g(S[{stop.var}])`",
                )  # fmt: skip
            wrong = [v for v in variables(stop.condition) if v != stop.var]
            if wrong:
                raise CompileError("T0109", f"index `{wrong[0]}` is unbounded in a stopping condition", stop.span,
                                   helps=f"reduce over `{wrong[0]}` in a definition, and test its result")  # fmt: skip
            if self._expr(stop.condition, stop.span).kind != "b":
                raise CompileError("T0117", f"`{text(stop.condition)}` is no predicate", stop.span,
                                   helps="compare something: `stop t when R[t] < 0.001`")  # fmt: skip
        made = replace(
            self.c, ranks=tuple(self.ranks.values()), definitions=tuple(ordered),
            tensors=dict(self.tensors),
        )  # fmt: skip
        if made.joints:
            from tcc.ir.joint_verify import check_joints

            check_joints(made)
        return made

    # ---- ranks and declarations

    def _rank(self, rank: Rank) -> None:
        if rank.name in self.ranks and self.ranks[rank.name] in self.c.ranks:
            raise _twice(f"rank `{rank.name}`", rank.span, self.ranks[rank.name].span)
        self.ranks[rank.name] = rank
        if rank.size is not None:
            self._known_ranks(rank.size, rank.span)

    def _known_ranks(self, size: Expr, span: Span | None) -> None:
        if not is_size(size):
            raise CompileError(
                "T0112", f"`{text(size)}` is no size", span,
                helps="a size is an integer expression over ranks and constants",
            )  # fmt: skip
        for n in walk(size):
            if isinstance(n, Size) and n.rank not in self.ranks:
                self.ranks[n.rank] = Rank(n.rank, None, n.span)

    def _declare(self, t: Tensor) -> None:
        if t.name in self.tensors:
            raise _twice(f"tensor `{t.name}`", t.span, self.tensors[t.name].span)
        for s in t.shape:
            self._known_ranks(s, t.span)
        self._check_elements(t)
        self._check_groups(t)
        self.tensors[t.name] = t

    def _check_groups(self, t: Tensor) -> None:
        needed = t.dtype.form or t.packed
        sizes = {r.name: self._value(r) for r in self.ranks.values()} if needed else {}
        shape = tuple(sizes.get(s.rank) if isinstance(s, Size) else None for s in t.shape)
        check_packed(t, shape[-1] if shape else None, t in self.c.outputs)
        made = t in self.c.outputs and t.name not in {x.name for x in self.c.inputs}
        check_declared(t.dtype, t.axes, shape, t.span, made)

    def _check_elements(self, t: Tensor) -> None:
        sizes = {r.name: v for r in self.ranks.values() if (v := self._value(r)) is not None}
        count = t.dtype.itemsize
        for s in t.shape:
            try:
                n = evaluate_size(s, sizes)
            except KeyError:
                continue
            if n < 0:
                raise CompileError("T0110", f"`{t.name}` has the negative size {n} along `{text(s)}`", t.span,
                                   helps="sizes are 0 or more")  # fmt: skip
            count *= n
        if count > MAX_ELEMENTS:
            raise CompileError(
                "T0111", f"`{t.name}` would need {count} bytes, more than 2^63 - 1", t.span,
                helps="choose smaller sizes",
            )  # fmt: skip

    def _value(self, rank: Rank) -> int | None:
        if rank.size is None:
            return None
        value = self._unfolded(rank.size)
        return value.constant

    def _check_written(self) -> None:
        written = {name for d in self.c.definitions for name in targets(d)}
        declared = {t.name for t in self.c.inputs}
        for t in self.c.outputs:
            if t.name not in written and t.name not in declared:
                raise CompileError(
                    "T0107", f"output `{t.name}` is never defined", t.span,
                    helps=(*did_you_mean(t.name, sorted(written)), f"add a definition `{t.name}[…] = …`"),
                )  # fmt: skip
        outputs = {t.name: t for t in self.c.outputs}
        for d in self.c.definitions:
            for name in targets(d):
                if name in declared and name not in outputs:
                    raise CompileError("T0106", f"input `{name}` is defined again", d.span,
                                       helps="give the definition another name")  # fmt: skip
        known = sorted(written | declared)
        reads = [(a, a.span or d.span) for d in self.c.definitions for a in d.reads]
        reads += [(a, a.span or s.span) for s in self.c.stops for a in accesses(s.condition)]
        for a, span in reads:
            if a.tensor not in written and a.tensor not in declared:
                raise CompileError(
                    "T0103", f"tensor `{a.tensor}` is neither an input nor defined", span,
                    helps=did_you_mean(a.tensor, known) or f"declare it: `in {a.tensor}: f32[…]`",
                )  # fmt: skip

    def _check_overlap(self) -> None:
        """Two definitions of one tensor write different elements, as the start and the steps of a recurrence do."""
        first: dict[str, list[Definition]] = {}
        for d in self.c.definitions:
            for name in targets(d):
                for other in first.setdefault(name, []):
                    if not (
                        isinstance(d, Einsum)
                        and isinstance(other, Einsum)
                        and self._apart(d, other)
                    ):
                        labels = (Label(other.span, "first defined here"),) if other.span else ()
                        raise CompileError("T0131", f"tensor `{name}` is defined twice", d.span, labels=labels,
                                           helps="give one of them another name, or write different elements")  # fmt: skip
                first[name].append(d)

    def _apart(self, a: Einsum, b: Einsum) -> bool:
        if a.where and b.where:
            return True  # predicates are trusted to be disjoint
        for i, j in zip(a.indices, b.indices, strict=True):
            one, two = (bounds(e, {v: self._extent(v) for v in variables(e)}) for e in (i, j))
            if one is None or two is None:
                return True
            step = Poly({(): 1})
            if nonnegative(two[0] - one[1] - step) or nonnegative(one[0] - two[1] - step):
                return True
        return False

    # ---- definitions

    def _extern(self, d: Extern) -> Extern:
        for t in d.targets:
            self._declare(t)
        return d

    def _shape_ahead(self, members: Iterable[Definition]) -> None:
        """Shapes of targets first, from their indices, so that recurrences may read themselves."""
        pending = [d for d in members if isinstance(d, Einsum)]
        for d in pending:
            self._infer_ranks(d)
        outputs = {t.name: t for t in self.c.outputs}
        for d in pending:
            shape = tuple(self._dimension(d, i) for i in d.indices)
            if d.target in outputs:
                self._arity(d.target, d.indices, outputs[d.target], d.span)
                self._same_ranks(d, outputs[d.target])
                self.tensors[d.target] = outputs[d.target]
                continue
            old = self.tensors.get(d.target)
            if old is not None:
                self._arity(d.target, d.indices, old, d.span)
                shape = tuple(_larger(a, b) for a, b in zip(old.shape, shape, strict=True))
            dtype = old.dtype if old else _WEAK_INT
            self.tensors[d.target] = Tensor(d.target, dtype, shape, 0, d.span)
        for _ in range(
            2
        ):  # a recurrence takes its type from its initial value, then from its steps
            for d in pending:
                t = self.tensors[d.target]
                if d.target not in outputs:
                    body = self._body(d)
                    merged = (
                        body
                        if t.dtype.bits == 0
                        else t.dtype
                        if body.bits == 0
                        else promote(t.dtype, body)
                    )
                    self.tensors[d.target] = replace(t, dtype=merged)
        for d in pending:
            t = self.tensors[d.target]
            if t.dtype.bits == 0:
                self.tensors[d.target] = replace(t, dtype=_strong(t.dtype))

    def _infer_ranks(self, d: Einsum) -> None:
        """Gives every variable a rank: the declared one, else the extent of a dimension that it walks alone."""
        outputs = {t.name: t for t in self.c.outputs}
        reads = [*d.reads, Access(d.target, d.indices, d.span)]
        for a in reads:
            t = self.tensors.get(a.tensor) or outputs.get(a.tensor)
            if t is None:
                continue
            self._arity(a.tensor, a.indices, t, a.span or d.span)
            for i, s in zip(a.indices, t.shape, strict=True):
                if isinstance(i, Var) and i.name.upper() not in self.ranks:
                    self.ranks[i.name.upper()] = Rank(i.name.upper(), s, i.span)
        for e in walk(*d.indices, d.body, *d.where):
            if isinstance(e, Size) and e.rank not in self.ranks:
                raise CompileError(
                    "T0105", f"rank `{e.rank}` is not declared", e.span or d.span,
                    helps=did_you_mean(e.rank, sorted([*self.ranks, *self.tensors]))
                    or f"declare it: `ranks {e.rank}=…`",
                )  # fmt: skip
            if isinstance(e, Var) and e.name.upper() not in self.ranks:
                raise CompileError(
                    "T0109", f"index `{e.name}` is unbounded: no tensor is walked by it alone", e.span or d.span,
                    helps=(*did_you_mean(e.name, [r.lower() for r in self.ranks]),
                           f"give its rank a size: `ranks {e.name.upper()}=…`"),
                )  # fmt: skip

    def _arity(self, name: str, indices: tuple[Expr, ...], t: Tensor, span: Span | None) -> None:
        if len(indices) != len(t.shape):
            labels = (Label(t.span, f"`{name}` has {len(t.shape)} ranks"),) if t.span else ()
            raise CompileError(
                "T0113", f"`{name}` has {len(t.shape)} ranks, but {len(indices)} indices are given", span,
                labels=labels, helps="give one index per rank",
            )  # fmt: skip

    def _extent(self, var: str) -> Expr:
        rank = self.ranks[var.upper()]
        return rank.size if rank.size is not None else Size(rank.name)

    def _same_ranks(self, d: Einsum, t: Tensor | None = None) -> None:
        """A variable that walks a dimension alone must have that dimension's size."""
        for a in [Access(d.target, d.indices, d.span)] if t else d.reads:
            tensor = t or self.tensors[a.tensor]
            for n, (i, s) in enumerate(zip(a.indices, tensor.shape, strict=True)):
                if not isinstance(i, Var):
                    continue
                mine, other = poly(self._extent(i.name)), poly(s)
                if mine.same(other) or self._unfolded(self._extent(i.name)).same(self._unfolded(s)):
                    continue
                more = (other - mine).constant
                if more is not None and more > 0 and mine.constant is None:
                    continue  # a dimension of size N + 1 may be walked by n, as offsets are
                if len(self.c.defining(a.tensor)) > 1 and nonnegative(other - mine):
                    continue  # the state of a recurrence has more steps than the rank that it is walked by
                labels = (
                    (Label(tensor.span, f"`{a.tensor}` is declared here"),) if tensor.span else ()
                )
                raise CompileError(
                    "T0114", f"rank `{i.name.upper()}` is used with two sizes: `{text(self._extent(i.name))}`, "
                    f"and `{text(s)}` in dimension {n} of `{a.tensor}`", i.span or a.span or d.span, labels=labels,
                    helps=f"use the variable `{text(s).lower()}` there" if isinstance(s, Size)
                    else f"use another variable, or declare `ranks {i.name.upper()}={text(s)}`",
                )  # fmt: skip

    def _unfolded(self, e: Expr) -> Poly:
        def rule(n: Expr) -> Expr:
            if isinstance(n, Size):
                size = self.ranks[n.rank].size if n.rank in self.ranks else None
                return transform(size, rule) if size is not None else n
            return n

        return poly(transform(e, rule))

    def _dimension(self, d: Einsum, i: Expr) -> Expr:
        """The extent of a target's dimension: one more than the largest coordinate that is written."""
        if accesses(i):
            raise CompileError("T0118", f"target index `{text(i)}` reads a tensor, which is not supported yet",
                               i.span or d.span, helps="write with affine indices; read indirectly instead")  # fmt: skip
        extents = {v: self._extent(v) for v in variables(i)}
        if isinstance(i, Var):
            return extents[i.name]
        span = bounds(i, extents)
        if span is None:
            raise CompileError("T0109", f"target index `{text(i)}` is unbounded", d.span,
                               helps="a target index is affine in rank variables")  # fmt: skip
        return (span[1] + poly(Const(1))).expr()

    def _einsum(self, d: Einsum) -> Einsum:
        self._same_ranks(d)
        reduced = set(d.reduced)
        for r in d.reductions:
            if r.var not in reduced:
                why = "it is in the output" if r.var in d.free else "it does not occur"
                raise CompileError("T0115", f"`{r.var}` can not be reduced: {why}", r.span or d.span,
                                   helps="reduce a variable of the right side that the output lacks")  # fmt: skip
        several = [v for v in d.reduced if d.monoid(v) in INDEX_REDUCTIONS][1:]
        if several:
            raise CompileError("T0123", f"`{d.target}` looks for an extreme along more than one variable", d.span,
                               helps=f"reduce `{several[0]}` in a definition of its own")  # fmt: skip
        body, declared = self._body(d), self.tensors[d.target].dtype
        out = declared.compute
        for p in d.where:
            if self._expr(p, d.span).kind != "b":
                raise CompileError("T0117", f"`where {text(p)}` is no predicate", p.span or d.span,
                                   helps="compare something: `where m <= p`")  # fmt: skip
        for n, i in enumerate(d.indices):
            self._index(i, d.span)
            self._inside(d, i, self.tensors[d.target].shape[n])
        if declared.rounding == "stochastic" and (declared.is_float or body.is_float):
            return d  # rounded where it is stored, which no expression can say
        if body.bits and promote(body, out) != out:
            t = self.tensors[d.target]
            labels = (
                (Label(t.span, f"declared as {declared} here"),)
                if t.span and t.span != d.span
                else ()
            )
            raise CompileError(
                "T0116", f"dtype clash: `{d.target}` is {declared}, but its definition gives {body}", d.span,
                labels=labels, helps=f"declare `{d.target}` as {body}, or convert: `{out}(…)`",
            )  # fmt: skip
        if not body.bits and body.kind == "f" and not out.is_float:
            raise CompileError("T0116", f"dtype clash: `{d.target}` is {declared}, but its definition gives a float",
                               d.span, helps=f"convert: `{out}(…)`")  # fmt: skip
        return d

    def _inside(self, d: Einsum, i: Expr, size: Expr) -> None:
        """A target index stays inside its dimension: nothing is ever written outside a tensor."""
        extents = {v: self._unfolded(self._extent(v)).expr() for v in variables(i)}
        span = bounds(self._unfolded(i).expr(), extents)
        if span is None:
            return  # `_dimension` has reported it, unless the output is declared
        for room, what in (
            (span[0], "less than 0"),
            (self._unfolded(size) - Poly({(): 1}) - span[1], text(size)),
        ):
            if not nonnegative(room) and room.terms:
                most = f"`{text(size)}` or more" if what != "less than 0" else what
                raise CompileError(
                    "T0130", f"target index `{text(i)}` may be {most}", i.span or d.span,
                    helps=f"declare a larger `{d.target}`, or shift where it is read instead of where it is written",
                )  # fmt: skip

    # ---- element types

    def _body(self, d: Einsum) -> DType:
        t = self._expr(d.body, d.span)
        return reduced_dtype(d, t)

    def _index(self, i: Expr, span: Span | None) -> None:
        t = self._expr(i, span)
        if not t.is_integer:
            raise CompileError("T0119", f"index `{text(i)}` is {t}, not an integer", i.span or span,
                               helps="convert it: `i64(…)`")  # fmt: skip

    def _expr(self, e: Expr, span: Span | None) -> DType:
        span = e.span or span
        if isinstance(e, Const):
            return (
                BOOL
                if isinstance(e.value, bool)
                else _WEAK_INT
                if isinstance(e.value, int)
                else _WEAK_FLOAT
            )
        if isinstance(e, Var | Size):
            return I64
        if isinstance(e, Access):
            for i in e.indices:
                self._index(i, span)
            return self.tensors[e.tensor].dtype.compute
        if isinstance(e, Cast):
            self._expr(e.arg, span)
            check_conversion(e.dtype, span)
            return e.dtype.compute
        return self._call(e, [self._expr(a, span) for a in e.args], span)

    def _call(self, e: Call, args: list[DType], span: Span | None) -> DType:
        op = e.spec
        if op.name == "select":
            if args[0].kind != "b":
                raise CompileError("T0116", f"the condition of `select` is {args[0]}, not bool", span,
                                   helps="compare something: `select(x != 0, a, b)`")  # fmt: skip
            return merge(args[1], args[2])
        if op.name == "take":
            return merge(args[0], args[1])
        t = args[0]
        for other in args[1:]:
            t = merge(t, other)
        if op.name in ("and", "or", "not"):
            if any(a.kind != "b" for a in args):
                raise CompileError("T0116", f"`{op.infix}` needs bool operands, not {t}", span,
                                   helps="compare something: `x != 0`")  # fmt: skip
            return BOOL
        if op.result == "bool":
            return BOOL
        if op.result == "int" and t.is_float:
            raise CompileError("T0116", f"`{op.infix or op.name}` needs integers, not {t}", span,
                               helps="convert it: `i64(…)`")  # fmt: skip
        if op.result == "float" and not t.is_float:
            return F32 if t.bits else _WEAK_FLOAT
        if t.kind == "b" and op.name in ("add", "sub", "mul", "neg", "pow", "floordiv", "mod"):
            return I64
        return t


def _twice(what: str, span: Span | None, first: Span | None) -> CompileError:
    labels = (Label(first, "first declared here"),) if first and first is not span else ()
    return CompileError("T0104", f"{what} is declared twice", span, labels=labels,
                        helps="give one of them another name")  # fmt: skip


def reduced_dtype(d: Einsum, t: DType) -> DType:
    """The type of a reduction of values of type `t`: sums of bools count, `any` and `all` give bool, `argmax` i64."""
    for var in reversed(d.reduced):
        if d.monoid(var) in INDEX_REDUCTIONS:
            t = I64
            continue
        m = MONOIDS[d.monoid(var)]
        if m.result == "int" and t.is_float:
            raise CompileError("T0116", f"`{m.name}` reduces integers, not {t}", d.span,
                               helps="convert it: `i64(…)`")  # fmt: skip
        if m.result == "bool":
            t = BOOL
        elif t.kind == "b" and m.name in ("sum", "prod"):
            t = I64
    return t


def _strong(t: DType) -> DType:
    return t if t.bits else (F32 if t.kind == "f" else I64)


def _larger(a: Expr, b: Expr) -> Expr:
    """The larger of two extents; when neither is certain, their maximum."""
    if nonnegative(poly(a) - poly(b)):
        return a
    return b if nonnegative(poly(b) - poly(a)) else call("max", a, b)


def expression_dtype(c: Cascade, e: Expr) -> DType:
    """The element type of an expression inside a verified cascade (literals alone count as f32 or i64)."""
    inference = _Inference(c)
    inference.tensors = c.tensors  # type: ignore[assignment]  # only read here
    return _strong(inference._expr(e, None))
