"""The verifier of joint reductions: which definitions one walk evaluates, and what a correction may say.

A field's definition reduces the variable of the joint and nothing else. What lies *between* fields, that is, reads one
and is read by one, however indirectly, is evaluated during the walk, with the values that the fields have so far; so it
may neither reduce that variable nor read a field at other coordinates than the field's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tcc.ir.cascade import Cascade, Einsum, Field, Joint, Recurrence, targets
from tcc.ir.diagnostics import CompileError, Label, Span, did_you_mean
from tcc.ir.dtype import promote
from tcc.ir.expr import Access, Expr, Size, Var, accesses, substitute, text, walk
from tcc.ir.joint_laws import check_laws
from tcc.ir.schedule import schedule


def check_joints(c: Cascade) -> None:
    """Every joint of a verified cascade is one: T0135 for its fields, T0136 and T0137 for its corrections."""
    seen: dict[str, Joint] = {}
    for joint in c.joints:
        for f in joint.fields:
            if (first := seen.get(f.tensor)) is not None:
                labels = (
                    (Label(first.span, "the other one"),)
                    if first.span and first is not joint
                    else ()
                )
                where = "twice in one joint" if first is joint else "in two joints"
                raise CompileError("T0135", f"`{f.tensor}` is {where}", f.span or joint.span, labels=labels,
                                   helps="a tensor is a component of one joint, once")  # fmt: skip
            seen[f.tensor] = joint
        _check(c, joint)


def holding(c: Cascade, joints: Iterable[Joint]) -> tuple[Joint, ...]:
    """Those joints that hold for a verified cascade: what a pass keeps after it has changed definitions."""
    found: list[Joint] = []
    for joint in joints:
        if any(set(joint.tensors) & set(other.tensors) for other in found):
            continue
        try:
            _check(c, joint)
        except CompileError:
            continue
        found.append(joint)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Walk:
    """What a walk over the variable of a joint evaluates: the fields' definitions, and those between them.

    `between[T]` are the definitions that field T needs beyond those of the fields before it, in program order; they
    are evaluated when these fields have their new values. Those with the variable among their free ones are *streamed*.
    """

    joint: Joint
    fields: dict[str, Einsum]
    between: dict[str, tuple[Einsum, ...]]

    @property
    def streamed(self) -> tuple[Einsum, ...]:
        return tuple(d for ds in self.between.values() for d in ds if self.joint.var in d.free)


def walk_of(c: Cascade, joint: Joint) -> Walk:
    """The walk of a joint; T0135 when it can not be one walk."""
    return _Checker(c, joint).walk()


def _check(c: Cascade, joint: Joint) -> None:
    checker = _Checker(c, joint)
    checker.walk()
    for n in range(len(joint.fields)):
        checker.correction(n)
    check_laws(c, joint)


class _Checker:
    def __init__(self, c: Cascade, joint: Joint) -> None:
        self.c, self.joint = c, joint
        self.names = list(joint.tensors)
        self.fields: dict[str, Einsum] = {}
        self.after: set[str] = set()  # tensors that read a field, however indirectly
        self.inner: dict[str, Einsum] = {}  # definitions between fields
        self.fresh = 0
        self.reads: set[str] = set()  # the fields that the current one depends on

    def error(self, message: str, span: Span | None, *helps: str) -> CompileError:
        return CompileError("T0135", message, span or self.joint.span, helps=helps)

    # ---- what is walked

    def walk(self) -> Walk:
        if self.c.rank(self.joint.var.upper()) is None:
            known = [r.name.lower() for r in self.c.ranks]
            raise self.error(f"`{self.joint.var}` is no variable of this program", None,
                             *(did_you_mean(self.joint.var, known) or ("name the variable that all fields reduce",)))  # fmt: skip
        for f in self.joint.fields:
            self.fields[f.tensor] = self.field(f)
        self.after = set(self.names)
        for d in self.c.definitions:
            if any(a.tensor in self.after for a in d.reads):
                self.after |= set(targets(d))
        recurrent = {
            d.target for s in schedule(self.c) if isinstance(s, Recurrence) for d in s.steps
        }
        between: dict[str, tuple[Einsum, ...]] = {}
        for n, f in enumerate(self.joint.fields):
            if f.tensor in recurrent:
                raise self.error(f"`{f.tensor}` is part of a recurrence", f.span,
                                 "a joint reduction stands outside of recurrences")  # fmt: skip
            mine = self.between(n, f, recurrent)
            between[f.tensor] = tuple(
                d for d in self.c.definitions if isinstance(d, Einsum) and d.target in mine
            )
        for f in self.joint.fields:
            self.reads = set()
            self.references(self.fields[f.tensor], {}, f)
            if self.reads and f.correction is None:
                first = min(self.reads, key=self.names.index)
                raise CompileError("T0136", f"`{f.tensor}` depends on `{first}`, but has no correction",
                                   f.span or self.joint.span,
                                   helps=f"say how its value follows: `{f.tensor} by … {first} … {first}'`")  # fmt: skip
        return Walk(self.joint, self.fields, between)

    def field(self, f: Field) -> Einsum:
        found = self.c.defining(f.tensor)
        if not found:
            known = [d.target for d in self.c.definitions]
            raise self.error(f"`{f.tensor}` is not defined", f.span,
                             *did_you_mean(f.tensor, known), "a field is a tensor that a definition reduces to")  # fmt: skip
        d = found[0]
        if len(found) > 1 or not isinstance(d, Einsum):
            raise self.error(f"`{f.tensor}` has {len(found)} definitions" if len(found) > 1
                             else f"`{f.tensor}` is the result of a call", f.span,
                             "a field has one definition, a reduction")  # fmt: skip
        if d.reduced != [self.joint.var]:
            shown = ", ".join(f"`{v}`" for v in d.reduced) or "nothing"
            raise self.error(f"`{f.tensor}` reduces {shown}, not exactly `{self.joint.var}`", f.span,
                             f"compute what it reduces over `{self.joint.var}` in a definition of its own")  # fmt: skip
        if not _plain(d):
            raise self.error(f"`{f.tensor}` is not indexed by distinct variables", f.span,
                             f"define it as `{f.tensor}[{', '.join(d.free)}]`")  # fmt: skip
        return d

    def between(self, n: int, f: Field, recurrent: set[str]) -> set[str]:
        """The definitions between earlier fields and field n, none of which an earlier field needs."""
        new: set[str] = set()
        stack = [a for a in self.fields[f.tensor].reads if a.tensor in self.after]
        while stack:
            a = stack.pop()
            if a.tensor in self.names:
                if self.names.index(a.tensor) >= n:
                    raise self.error(f"`{f.tensor}` depends on `{a.tensor}`, which comes later", f.span,
                                     f"write `{a.tensor}` before `{f.tensor}`")  # fmt: skip
                continue
            if a.tensor in new or a.tensor in self.inner:
                continue
            found = self.c.defining(a.tensor)
            d = found[0]
            if len(found) > 1 or not isinstance(d, Einsum) or a.tensor in recurrent:
                what = (
                    "a call"
                    if not isinstance(d, Einsum)
                    else "a recurrence, or several definitions"
                )
                raise self.error(f"between the fields, `{a.tensor}` is {what}", f.span,
                                 "what lies between fields is evaluated once per tile")  # fmt: skip
            if not _plain(d):
                raise self.error(f"between the fields, `{a.tensor}` is not indexed by distinct variables", f.span,
                                 f"define it as `{a.tensor}[{', '.join(d.free)}]`")  # fmt: skip
            if self.joint.var in d.reduced:
                raise self.error(f"between the fields, `{a.tensor}` reduces `{self.joint.var}`", f.span,
                                 f"make it a field, too: `joint {self.joint.var}: …, {a.tensor}, {f.tensor}`")  # fmt: skip
            new.add(a.tensor)
            self.inner[a.tensor] = d
            stack += [b for b in d.reads if b.tensor in self.after]
        return new

    def references(self, d: Einsum, values: dict[str, Expr], f: Field) -> None:
        """Every field that `f` reads is read at its own coordinates, every streamed tensor at the walk's."""
        for a in d.reads:
            at = tuple(substitute(i, values) for i in a.indices)
            shown = text(Access(a.tensor, at))
            if a.tensor in self.fields:
                self.reads.add(a.tensor)
                own = self.fields[a.tensor]
                if [text(i) for i in at] != [text(i) for i in own.indices]:
                    raise self.error(f"`{f.tensor}` depends on `{shown}`, not on `{text(_target(own))}`", f.span,
                                     "a field depends on others at their own coordinates, under the same names")  # fmt: skip
            elif a.tensor in self.inner:
                inner = self.inner[a.tensor]
                for i, own_i in zip(at, inner.indices, strict=True):
                    mine = isinstance(own_i, Var) and own_i.name == self.joint.var
                    if mine and text(i) != self.joint.var:
                        raise self.error(f"`{f.tensor}` depends on `{shown}`, beyond the current `{self.joint.var}`",
                                         f.span, "a streamed definition is read at the coordinate of the walk")  # fmt: skip
                inside: dict[str, Expr] = dict(zip(inner.free, at, strict=True))
                for v in inner.reduced:
                    self.fresh += 1
                    inside[v] = Var(f"{v}.{self.fresh}")
                self.references(inner, inside, f)

    # ---- corrections

    def correction(self, n: int) -> None:
        """What the correction of field n mentions: earlier components with a prime, all of them without."""
        f = self.joint.fields[n]
        if f.correction is None:
            return
        span = f.correction.span or f.span or self.joint.span
        own = self.fields[f.tensor]
        primes = 0
        for a in accesses(f.correction):
            base = a.tensor.removesuffix("'")
            primes += base != a.tensor
            if base in self.names:
                self.component(n, a, base, a.span or span)
            elif base != a.tensor:
                raise CompileError("T0136", f"`{a.tensor}` refers to no component of this joint", a.span or span,
                                   helps=did_you_mean(base, self.names[:n]) or "a prime marks an earlier component")  # fmt: skip
            else:
                self.other(a, f, a.span or span)
        for e in walk(f.correction):
            if isinstance(e, Var) and e.name not in own.free:
                raise CompileError("T0136", f"the correction of `{f.tensor}` mentions `{e.name}`", e.span or span,
                                   helps=f"it may mention the variables of `{text(_target(own))}`")  # fmt: skip
            if isinstance(e, Size) and self.c.rank(e.rank) is None:
                raise CompileError("T0105", f"rank `{e.rank}` is not declared", e.span or span,
                                   helps=did_you_mean(e.rank, [r.name for r in self.c.ranks])
                                   or "use a rank of the program")  # fmt: skip
        if not primes:
            earlier = f"`{self.names[0]}'`" if n else "none here"
            raise CompileError("T0136", f"the correction of `{f.tensor}` follows no other component", span,
                               helps=f"mention an earlier component with a prime ({earlier}), or leave the correction out")  # fmt: skip
        self.dtype(f, span)

    def component(self, n: int, a: Access, base: str, span: Span | None) -> None:
        f = self.joint.fields[n]
        if a.indices:
            raise CompileError("T0136", f"`{text(a)}` is a component, and written without indices here", span,
                               helps=f"write `{a.tensor}`: its indices are those of its definition")  # fmt: skip
        if base != a.tensor and self.names.index(base) >= n:
            raise CompileError("T0136", f"`{a.tensor}` is not known yet when `{f.tensor}` is corrected", span,
                               helps="a prime marks the new value of a component that comes earlier")  # fmt: skip
        extra = [v for v in self.fields[base].free if v not in self.fields[f.tensor].free]
        if extra:
            raise CompileError("T0136", f"the correction of `{f.tensor}` mentions `{base}`, but `{f.tensor}` has no "
                               f"`{extra[0]}`", span, helps="a component follows those whose variables it has")  # fmt: skip

    def other(self, a: Access, f: Field, span: Span | None) -> None:
        t = self.c.tensors.get(a.tensor)
        if t is None:
            raise CompileError("T0103", f"tensor `{a.tensor}` is neither an input nor defined", span,
                               helps=did_you_mean(a.tensor, list(self.c.tensors)) or "read a tensor of the program")  # fmt: skip
        if len(t.shape) != len(a.indices):
            raise CompileError("T0113", f"`{a.tensor}` has {len(t.shape)} ranks, but {len(a.indices)} indices are given",
                               span, helps="give one index per rank")  # fmt: skip
        if a.tensor in self.after:
            raise CompileError("T0136", f"the correction of `{f.tensor}` reads `{a.tensor}`, which depends on this joint",
                               span, helps=f"mention its components instead: {', '.join(self.names)}")  # fmt: skip

    def dtype(self, f: Field, span: Span | None) -> None:
        from tcc.ir.infer import expression_dtype

        assert f.correction is not None
        own = self.c.tensors[f.tensor].dtype
        found = expression_dtype(with_primes(self.c, self.joint), f.correction)
        if found.kind != own.kind or promote(found, own) != own:
            raise CompileError("T0116", f"dtype clash: `{f.tensor}` is {own}, but its correction gives {found}", span,
                               helps=f"convert: `{own}(…)`")  # fmt: skip


def with_primes(c: Cascade, joint: Joint) -> Cascade:
    """`c` with a tensor `T'` like T for every field: what corrections are typed in."""
    primes = {f"{t}'": replace(c.tensors[t], name=f"{t}'") for t in joint.tensors}
    return replace(c, tensors={**c.tensors, **primes})


def _plain(d: Einsum) -> bool:
    """Whether the target is indexed by distinct variables."""
    return all(isinstance(i, Var) for i in d.indices) and len(set(d.free)) == len(d.indices)


def _target(d: Einsum) -> Access:
    return Access(d.target, d.indices)
