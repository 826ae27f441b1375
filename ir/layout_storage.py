"""Which layouts can store a buffer: places are addresses, and no two elements share one."""

from __future__ import annotations

from tcc.ir.amounts import Amount
from tcc.ir.diagnostics import CompileError, Span
from tcc.ir.expr import Const, Expr, Size
from tcc.ir.layout import COPIES, Layout


def check_storage(name: str, layout: Layout, dims: tuple[Expr, ...], span: Span | None) -> None:
    """Raises T0273 where a buffer cannot be stored like that, T0274 where two elements might share an address."""

    def wrong(fact: str, *helps: str) -> CompileError:
        return CompileError("T0273", f"the layout `{layout}` of `{name}` {fact}", span, helps=helps)

    if layout.rank != len(dims):
        raise wrong(f"has {layout.rank} dimensions, not {len(dims)}", "give each dimension its digits")  # fmt: skip
    for axis in layout.axes:
        if axis != "addr":
            raise wrong(f"puts elements on `{axis}`", "a buffer has addresses alone: bind variables to resources with "
                        "`with v on …`")  # fmt: skip
    if layout.bits:
        raise wrong("places single bits", "a buffer holds whole elements so far")
    if any(d.dimension == COPIES for d in layout.digits):
        raise wrong("keeps copies", "store each element once")
    if all(d.stride is None and not d.xor for d in layout.digits):
        return
    from tcc.ir.layout_isl import is_injective

    shape: tuple[Amount, ...] = tuple(
        e if isinstance(e, Const | Size) else Size(f"D{n}") for n, e in enumerate(dims)
    )
    try:
        both = is_injective(layout.on(shape))
    except CompileError as error:
        d = error.diagnostic
        raise CompileError(d.code, d.message, span, helps="write a stride as a number, or leave it out") from None  # fmt: skip
    if both is not None:
        raise wrong(f"gives two elements one address: {both}", "choose larger strides")
