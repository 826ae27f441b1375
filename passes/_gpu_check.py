"""What one kernel on a block may hold: every tensor is read where it is written, from its registers."""

from __future__ import annotations

from collections.abc import Sequence

from tcc.ir.cascade import Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Var, text
from tcc.passes._gpu_states import State


def one_kernel(members: Sequence[Einsum]) -> bool:
    """Whether these definitions may share a kernel."""
    try:
        check_reads("", members, ())
    except CompileError:
        return False
    return True


def check_reads(name: str, members: Sequence[Einsum], states: Sequence[State]) -> None:
    """In one kernel a variable is one loop, so a tensor is read with the variables that it is
    written with. Raises T0221 and T0222.
    """
    steps = [e for s in states for e in (s.first, s.step)]
    written: dict[str, Einsum] = {}
    for d in members:
        for a in d.reads:
            if a.tensor in written:
                _same_point(name, a, written[a.tensor], d)
        if d.target in written and any(
            a.tensor == d.target for m in (*members, *steps) for a in m.reads
        ):
            raise CompileError(
                "T0221",
                f"`{d.target}` is defined in parts and read inside kernel `{name}`",
                d.span,
                helps="put the definitions that read it into another kernel",
            )
        written[d.target] = d
    for d in steps:
        for a in d.reads:
            if a.tensor in written:
                _same_point(name, a, written[a.tensor], d)


def _same_point(name: str, a: Access, writer: Einsum, reader: Einsum) -> None:
    names = [i.name for i in writer.indices if isinstance(i, Var)]
    plain = len(names) == len(writer.indices) and len(set(names)) == len(names)
    if not plain or [text(i) for i in a.indices] != names:
        raise CompileError(
            "T0222",
            f"`{reader.target}` reads `{text(a)}`, but kernel `{name}` computes "
            f"`{text(Access(writer.target, writer.indices))}`",
            a.span or reader.span,
            helps="read it with the variables that it is written with, or use two kernels",
        )
