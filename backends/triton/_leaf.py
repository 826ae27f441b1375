"""A tile-level Einsum as statements: a `tl.dot` where its body is a product that splits, else a
masked reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcc.backends.triton._scalar import COMPARISON, PRODUCT, SUM, Code, literal, type_name
from tcc.backends.triton._tile import Axes, Tile, conjunction
from tcc.ir.cascade import Einsum
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Access, Call, Const, Expr, Var, accesses, call, children, text, variables
from tcc.ir.infer import expression_dtype
from tcc.ir.ops import MONOIDS, identity_of

_MAX_ELEMENTS = 1 << 20  # Triton's limit for one tile
_FOLDS = {"sum": "tl.sum", "max": "tl.max", "min": "tl.min", "xor": "tl.xor_sum"}
_JOINS = {
    "sum": "{0} + {1}",
    "max": "tl.maximum({0}, {1})",
    "min": "tl.minimum({0}, {1})",
    "xor": "{0} ^ {1}",
    "prod": "{0} * {1}",
    "any": "{0} | {1}",
    "all": "{0} & {1}",
}
_MASKED_DOT = '''@triton.jit
def _masked_dot(a, b, start, keep_a, keep_b, precision: tl.constexpr):
    """start + a @ b without the products that a mask leaves out, be they 0 * inf."""
    at = tl.arange(0, a.shape[1])
    finite = 1
    if keep_a is not None:
        a = tl.where(keep_a, a, 0.0)
        finite = tl.minimum(finite, tl.min((tl.abs(b) < float("inf")).to(tl.int32)))
    if keep_b is not None:
        b = tl.where(keep_b, b, 0.0)
        finite = tl.minimum(finite, tl.min((tl.abs(a) < float("inf")).to(tl.int32)))
    if finite == 1:
        out = tl.dot(a, b, start, input_precision=precision)
    else:
        out = start
        for k in range(a.shape[1]):
            row, column = (at == k)[None, :], (at == k)[:, None]
            part = tl.sum(tl.where(row, a, 0.0), 1)[:, None] * tl.sum(tl.where(column, b, 0.0), 0)[None, :]
            if keep_a is not None:
                part = tl.where(tl.max((row & keep_a).to(tl.int32), 1)[:, None] > 0, part, 0.0)
            if keep_b is not None:
                part = tl.where(tl.max((column & keep_b).to(tl.int32), 0)[None, :] > 0, part, 0.0)
            out += part
    return out'''
_PRODUCT = "@triton.jit\ndef _multiply(a, b):\n    return a * b"


def identity(t: Tile, monoid: str, e: Einsum) -> Code:
    """The identity of a reduction in the target's type."""
    dtype = t.signature.tensors[e.target].dtype.numpy
    return literal(identity_of(MONOIDS[monoid], dtype).item())


def emit(t: Tile, e: Einsum, combine: bool, precision: str) -> None:
    """Adds the statements of `e` over the current tiles; `combine` joins the target's value with
    the new one.
    """
    held = t.registers.get(e.target)
    inner = [p for p in e.where if set(variables(p)) & set(e.reduced)]
    skipped = t.ignored.get(e.target, frozenset())
    outer = [p for p in e.where if p not in inner and text(p) not in skipped]
    if held is not None:
        axes = held.axes
        target = t.register(held, Access(e.target, e.indices, e.span))
    else:
        axes = _orientation(t, e)
        if combine:
            raise CompileError(
                "T0362",
                f"`{e.target}` in memory is reduced tile by tile",
                e.span,
                helps="reduce into a buffer at level `reg`, and copy it",
            )
    old = target if held is not None and combine else None
    new = _dot(t, e, axes, inner, old, precision) if e.reduced else None
    if new is None:
        new, present = (
            _reduced(t, e, axes, inner)
            if e.reduced
            else (t.value(e.body, axes), t.axes(e.body, axes))
        )
        if old is not None and not outer and e.monoid(e.reduced[0]) == "sum":
            t.lines.add(f"{old} += {new.text}")
            return
        if old is not None:
            join = _JOINS[e.monoid(e.reduced[0])]
            new = Code(join.format(old, new.within(PRODUCT if "+" in join else PRODUCT + 1)), SUM)
            present = axes
    else:
        present = axes
    condition = conjunction([t.predicate(p, axes) for p in outer])
    if condition is not None:
        fill = literal(t.signature.tensors[e.target].fill).text
        new = Code(f"tl.where({condition.text}, {new.text}, {fill})")
        present = tuple(v for v in axes if v in present or any(v in variables(p) for p in outer))
    if held is None:
        _store(t, e, new, axes)
        return
    dtype = t.signature.tensors[e.target].dtype
    if expression_dtype(t.signature, e.body) != dtype and not combine:
        new = Code(f"tl.cast({new.text}, {type_name(dtype)})")
    if present == () and not accesses(e.body):
        new = Code(f"tl.full({t.shape(axes)}, {new.text}, {type_name(dtype)})")
    elif present != axes:
        new = Code(f"tl.broadcast_to(tl.cast({new.text}, {type_name(dtype)}), {t.shape(axes)})")
    t.lines.add(f"{target} = {new.text}")


def _store(t: Tile, e: Einsum, new: Code, axes: Axes) -> None:
    target = Access(e.target, e.indices, e.span)
    mask = conjunction([(t.inside(v, axes), False) for v in axes if t.ragged(v)])
    arguments = [t.address(target, axes), new.text] + ([f"mask={mask.text}"] if mask else [])
    t.lines.insert(len(t.lines.text), t.lines.depth, "tl.store", arguments)


def _orientation(t: Tile, e: Einsum) -> Axes:
    """The axes of a statement that writes memory: those of the largest register tile that it reads
    come first.
    """
    free = tuple(v for v in e.free if t.block[v] > 1)
    tiles = [t.registers[a.tensor].axes for a in e.reads if a.tensor in t.registers]
    largest = max(tiles, key=len, default=())
    first = tuple(v for v in largest if v in free)
    return first + tuple(v for v in free if v not in first) if len(first) > 1 else free


def _reduced(t: Tile, e: Einsum, axes: Axes, inner: list[Expr]) -> tuple[Code, Axes]:
    """The masked values of a tile, folded along its reduced axes."""
    folded = tuple(v for v in e.reduced if t.block[v] > 1)
    order = tuple(v for v in axes if any(v in variables(x) for x in (e.body, *inner))) + folded
    elements = 1
    for v in order:
        elements *= t.block[v]
    if elements > _MAX_ELEMENTS:
        raise CompileError(
            "T0363",
            f"the tile of `{text(e.body)}` has {elements} elements, more than {_MAX_ELEMENTS}",
            e.span,
            helps="choose smaller tiles",
        )
    monoids = [e.monoid(v) for v in e.reduced]
    if len(set(monoids)) > 1:
        raise CompileError(
            "T0363",
            f"`{e.target}` mixes reductions: {', '.join(dict.fromkeys(monoids))}",
            e.span,
            helps="reduce one variable after the other, in two definitions",
        )
    value, name = t.value(e.body, order), monoids[0]
    if MONOIDS[name].result == "bool" and expression_dtype(t.signature, e.body).kind != "b":
        value = Code(f"({value.text}) != 0", COMPARISON)
    elif expression_dtype(t.signature, e.body).kind == "b":
        value = Code(f"tl.cast({value.text}, {type_name(t.signature.tensors[e.target].dtype)})")
    if t.narrow(e.body):
        value = Code(f"tl.cast({value.text}, {_type(t, e)})")
    if t.axes(e.body, order) != order:
        value = Code(
            f"tl.broadcast_to({value.text}, {t.shape(order)})"
            if t.axes(e.body, order)
            else f"tl.full({t.shape(order)}, {value.text}, {_type(t, e)})"
        )
    mask = t.mask(inner, list(folded), order)
    if mask is not None:
        value = Code(f"tl.where({mask.text}, {value.text}, {identity(t, name, e).text})")
    for v in reversed(folded):
        value = _fold(t, name, value, order.index(v))
    return value, tuple(v for v in order if v not in folded)


def _type(t: Tile, e: Einsum) -> str:
    return type_name(t.signature.tensors[e.target].dtype)


def _fold(t: Tile, monoid: str, value: Code, axis: int) -> Code:
    if monoid in ("any", "all"):
        fold = "tl.max" if monoid == "any" else "tl.min"
        return Code(f"{fold}(tl.cast({value.text}, tl.int32), {axis}) != 0", COMPARISON)
    if monoid == "prod":
        t.helpers["multiply"] = _PRODUCT
        return Code(f"tl.reduce({value.text}, {axis}, _multiply)")
    return Code(f"{_FOLDS[monoid]}({value.text}, {axis})")


@dataclass
class _Sides:
    """The factors of a product by the axes they have: with the row, with the column, and those
    without the depth.
    """

    row: Expr | None = None
    column: Expr | None = None
    rest: Expr | None = None


def _times(a: Expr | None, b: Expr, inverted: bool) -> Expr:
    if inverted:
        return call("div", a if a is not None else Const(1.0), b)
    return b if a is None else call("mul", a, b)


def _factors(e: Expr, inverted: bool = False) -> list[tuple[Expr, bool]]:
    if isinstance(e, Call) and e.op in ("mul", "div"):
        return _factors(e.args[0], inverted) + _factors(e.args[1], inverted != (e.op == "div"))
    return [(e, inverted)]


def _split(t: Tile, e: Einsum, axes: Axes, depth: str) -> _Sides | None:
    """Σ over depth of row(…) · column(…) · rest, or None where a factor has both axes."""
    row, column = axes
    sides = _Sides()
    for f, inverted in _factors(e.body):
        has = t.axes(f, (row, column, depth))
        if not set(variables(f)) & set(e.reduced):
            sides.rest = _times(sides.rest, f, inverted)
        elif row in has and column in has:
            return None
        elif column in has:
            sides.column = _times(sides.column, f, inverted)
        else:
            sides.row = _times(sides.row, f, inverted)
    whole = sides.row is not None and sides.column is not None
    if not whole or t.axes(sides.row, (row, depth)) != (row, depth):  # type: ignore[arg-type]
        return None
    return sides if t.axes(sides.column, (depth, column)) == (depth, column) else None  # type: ignore[arg-type]


def _dot(
    t: Tile, e: Einsum, axes: Axes, inner: list[Expr], old: str | None, precision: str
) -> Code | None:
    """The contraction of a tile as one matrix product, or None where it is none."""
    folded = [v for v in e.reduced if t.block[v] > 1]
    if len(folded) != 1 or len(axes) != 2 or any(e.monoid(v) != "sum" for v in e.reduced):
        return None
    if (
        min(t.block[v] for v in (*axes, *folded)) < 16
        or t.signature.tensors[e.target].dtype.name != "f32"
    ):
        return None
    (depth,), (row, column) = folded, axes
    sides = _split(t, e, axes, depth)
    if sides is None or sides.row is None or sides.column is None:
        return None
    if any(expression_dtype(t.signature, s).name != "f32" for s in (sides.row, sides.column)):
        return None
    left: list[Expr] = []
    right: list[Expr] = []
    for p in inner:
        has = t.axes(p, (row, depth, column))
        if row in has and column in has:
            return None
        if column not in has:
            left.append(p)
        if row not in has:
            right.append(p)
    a, kept_a = _operand(t, sides.row, (row, depth), depth, left)
    b, kept_b = _operand(t, sides.column, (depth, column), depth, right)
    t.products.add(e.target)
    t.computed |= bool(inner) or not all(_plain(t, side) for side in (sides.row, sides.column))
    rest = t.value(sides.rest, axes) if sides.rest is not None else None
    start = old if old is not None and rest is None else None
    partial = [
        bool(kept) and any(v in t.axes(p, (row, depth, column)) for p in inner)
        for kept, v in ((kept_a, row), (kept_b, column))
    ]
    if any(partial):
        t.helpers["masked_dot"], t.masked = _MASKED_DOT, True
        shown = start or f"tl.zeros({t.shape(axes)}, tl.float32)"
        masks = ", ".join(kept or "None" for kept in (kept_a, kept_b))
        product = f'_masked_dot({a}, {b}, {shown}, {masks}, "{precision}")'
    else:
        a = f"tl.where({kept_a}, {a}, 0.0)" if kept_a else a
        b = f"tl.where({kept_b}, {b}, 0.0)" if kept_b else b
        shown = f", {start}" if start else ""
        product = f'tl.dot({a}, {b}{shown}, input_precision="{precision}")'
    if rest is None:
        return Code(product)
    scaled = f"{product} * {rest.within(PRODUCT + 1)}"
    return Code(f"{old} + {scaled}", SUM) if old is not None else Code(scaled, PRODUCT)


def _plain(t: Tile, e: Expr) -> bool:
    """Whether a side of a product comes from memory as it is."""
    loaded = isinstance(e, Access) and e.tensor not in t.registers
    return loaded and all(isinstance(i, Var) for i in children(e))


def _operand(
    t: Tile, e: Expr, order: Axes, depth: str, predicates: list[Expr]
) -> tuple[str, str | None]:
    """One side of a matrix product, and the mask of its points where the depth has a coordinate
    and the predicates hold; None where it is 0 elsewhere already.
    """
    value = t.value(e, order).text
    loaded = isinstance(e, Access) and e.tensor not in t.registers
    clean = loaded and t.signature.tensors[e.tensor].fill == 0 if isinstance(e, Access) else False
    mask = t.mask(predicates, [] if clean else [depth], order)
    return value, mask.text if mask is not None else None
