"""Scalar operators in Triton's Python: one row each, and the helper functions that some of them
need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import DType
from tcc.ir.expr import Call, Const, Expr

ATOM, UNARY, PRODUCT, SUM, BIT_AND, BIT_XOR, BIT_OR, COMPARISON = (
    20,
    12,
    11,
    10,
    8,
    7,
    6,
    5,
)  # Python's precedences


@dataclass(frozen=True, slots=True)
class Code:
    """Python text with the precedence of its outermost operator."""

    text: str
    precedence: int = ATOM

    def within(self, least: int) -> str:
        """The text, in parentheses where its operator binds less tightly than `least`."""
        return self.text if self.precedence >= least else f"({self.text})"


_INFIX = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "div": ("/", PRODUCT),
    "bit_or": ("|", BIT_OR),
    "bit_xor": ("^", BIT_XOR),
    "bit_and": ("&", BIT_AND),
    "or": ("|", BIT_OR),
    "and": ("&", BIT_AND),
    "eq": ("==", COMPARISON),
    "ne": ("!=", COMPARISON),
    "lt": ("<", COMPARISON),
    "le": ("<=", COMPARISON),
    "gt": (">", COMPARISON),
    "ge": (">=", COMPARISON),
}
_FUNCTIONS = {
    "max": "tl.maximum",
    "min": "tl.minimum",
    "select": "tl.where",
    "exp": "tl.exp",
    "exp2": "tl.exp2",
    "log": "tl.log",
    "log2": "tl.log2",
    "sigmoid": "tl.sigmoid",
    "erf": "tl.erf",
    "sin": "tl.sin",
    "cos": "tl.cos",
    "sqrt": "tl.sqrt_rn",
    "rsqrt": "tl.rsqrt",
    "abs": "tl.abs",
    "floor": "tl.floor",
    "ceil": "tl.ceil",
}
# functions that Triton's language lacks, emitted into the source where they are used
HELPERS = {
    "tanh": '''"""tanh: its odd series near 0, where 1 - 2 / (exp(2x) + 1) would cancel."""
    s = x * x
    tail = -17 / 315 + s * (62 / 2835 - s * (1382 / 155925))
    near = x + x * s * (-1 / 3 + s * (2 / 15 + s * tail))
    far = 1 - 2 / (tl.exp(2 * tl.minimum(tl.abs(x), 20.0)) + 1)
    return tl.where(tl.abs(x) < 0.35, near, tl.where(x < 0, -far, far))''',
    "expm1": '''"""exp(x) - 1: its series near 0, where the difference would cancel."""
    near = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(tl.abs(x) < 0.35, near, tl.exp(x) - 1)''',
    "log1p": '''"""log(1 + x): the rounding of 1 + x is undone by the quotient."""
    y = 1 + x
    found = tl.log(y) * x / tl.where(y == 1, 1.0, y - 1)
    return tl.where(y == 1, x, tl.where(y == float("inf"), y, found))''',
    "sign": '''"""-1, 0 or 1."""
    return tl.where(x > 0, 1, tl.where(x < 0, -1, x))''',
    "popcount": '''"""How many bits are set: fields of 2, 4 and 8 bits are added up."""
    v = x.to(tl.int64)
    if x.dtype.primitive_bitwidth < 64:
        v = v & ((1 << x.dtype.primitive_bitwidth) - 1)
    v = v - ((v >> 1) & 0x5555555555555555)
    v = (v & 0x3333333333333333) + ((v >> 2) & 0x3333333333333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((v * 0x0101010101010101) >> 56).to(x.dtype)''',
    "trunc": '''"""The next integer towards 0."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))''',
    "round": '''"""The nearest integer, halves to even."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2 * tl.floor(low * 0.5)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1)), low + 1, low)''',
}
_TYPES = {
    "f64": "tl.float64",
    "f32": "tl.float32",
    "f16": "tl.float16",
    "bool": "tl.int1",
    "i64": "tl.int64",
    "i32": "tl.int32",
    "i16": "tl.int16",
    "i8": "tl.int8",
    "u64": "tl.uint64",
    "u32": "tl.uint32",
    "u16": "tl.uint16",
    "u8": "tl.uint8",
}


def type_name(dtype: DType) -> str:
    """Triton's name of an element type."""
    return _TYPES[dtype.name]


def literal(value: int | float | bool) -> Code:
    """A constant; infinities and NaN through `float`."""
    if isinstance(value, float) and not math.isfinite(value):
        shown = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return Code(f'float("{shown}")')
    shown = repr(value)
    return Code(shown, UNARY if shown.startswith("-") else ATOM)


def apply(e: Call, args: list[Code], dtype: DType, operand: DType, helpers: dict[str, str]) -> Code:
    """The operator applied to printed operands of type `operand`; `helpers` collects the functions
    that it needs.
    """
    name = e.op
    if (name == "div" and not operand.is_float) or (
        e.spec.result == "float" and not operand.is_float
    ):
        args = [Code(f"tl.cast({a.text}, tl.float32)") for a in args]
    if name in _INFIX:
        sign, level = _INFIX[name]
        left = level + (level == COMPARISON)
        return Code(f"{args[0].within(left)} {sign} {args[1].within(level + 1)}", level)
    if name == "neg":
        return Code(f"-{args[0].within(UNARY)}", UNARY)
    if name == "not":
        return Code(f"{args[0].within(COMPARISON + 1)} == 0", COMPARISON)
    if name == "take":
        pick = e.args[2]
        assert isinstance(pick, Const)
        return args[0] if pick.value == 0 else args[1]
    if name == "pow":
        return _power(e, args, operand, helpers)
    if name in ("floordiv", "mod"):
        return _division(name, args, operand, helpers)
    if name in ("floor", "ceil", "trunc", "round") and not operand.is_float:
        return args[0]
    if name in _FUNCTIONS:
        called = "tl.sqrt" if name == "sqrt" and dtype.bits != 32 else _FUNCTIONS[name]
        shown = [a.text for a in args]
        if name in ("max", "min") and operand.is_float:  # NaN if one is NaN
            shown.append("propagate_nan=tl.PropagateNan.ALL")
        return Code(f"{called}({', '.join(shown)})")
    if name in HELPERS:
        helpers[name] = f"@triton.jit\ndef _{name}(x):\n    {HELPERS[name]}"
        return Code(f"_{name}({args[0].text})")
    raise CompileError(
        "T0361",
        f"the Triton backend has no `{name}`",
        e.span,
        helps="rewrite it with other functions, or choose the cpu target",
    )


_DIVISIONS = {
    ("floordiv", True): "@triton.jit\ndef _floordiv(a, b):\n    return tl.floor(a / b)",
    ("mod", True): "@triton.jit\ndef _mod(a, b):\n    return a - tl.floor(a / b) * b",
    (
        "floordiv",
        False,
    ): '@triton.jit\ndef _int_floordiv(a, b):\n    """a // b rounded down."""\n    rest = a % b\n'
    "    return a // b - tl.where((rest != 0) & ((rest < 0) != (b < 0)), 1, 0)",
    (
        "mod",
        False,
    ): '@triton.jit\ndef _int_mod(a, b):\n    """a - b * floor(a / b)."""\n    rest = a % b\n'
    "    return rest + tl.where((rest != 0) & ((rest < 0) != (b < 0)), b, 0)",
}


def _power(e: Call, args: list[Code], operand: DType, helpers: dict[str, str]) -> Code:
    exponent = e.args[1].value if isinstance(e.args[1], Const) else None
    if exponent == 0.5 and operand.is_float:
        return Code(f"tl.sqrt({args[0].text})")
    if exponent == -0.5 and operand.is_float:
        return Code(f"tl.rsqrt({args[0].text})")
    if (
        exponent is None
        or exponent != int(exponent)
        or not 1 <= abs(exponent) <= 16
        or (exponent < 0 and not operand.is_float)
    ):
        raise CompileError(
            "T0361",
            "the Triton backend has powers with constant exponents up to 16 only",
            e.span,
            helps="write `exp(b * log(a))` where `a` is positive",
        )
    name = f"_power_{abs(int(exponent))}"
    helpers[name] = f"@triton.jit\ndef {name}(x):\n    return {_product(abs(int(exponent)))}"
    return (
        Code(f"{name}({args[0].text})")
        if exponent > 0
        else Code(f"1 / {name}({args[0].text})", PRODUCT)
    )


def _product(n: int) -> str:
    """x**n by repeated squaring."""
    if n == 1:
        return "x"
    half = _product(n // 2)
    squared = f"({half}) * ({half})" if n > 3 else f"{half} * {half}"
    return squared if n % 2 == 0 else f"{squared} * x"


def _division(name: str, args: list[Code], operand: DType, helpers: dict[str, str]) -> Code:
    """Quotient and remainder that round down, as in the cascade; Triton's own round towards 0."""
    helpers[name if operand.is_float else f"int_{name}"] = _DIVISIONS[name, operand.is_float]
    prefix = "_" if operand.is_float else "_int_"
    return Code(f"{prefix}{name}({args[0].text}, {args[1].text})")


def folded(e: Expr) -> int | float | None:
    """The value of an expression of constants alone, else None."""
    import numpy as np

    if isinstance(e, Const):
        return e.value
    if isinstance(e, Call):
        known = [folded(a) for a in e.args]
        if None in known:
            return None
        values = [np.asarray(v) for v in known]
        if any(v.dtype.kind == "b" for v in values) or e.spec.result == "bool":
            return None
        if e.spec.result == "float":
            values = [v.astype(np.float64) for v in values]
        with np.errstate(all="ignore"):
            return e.spec.evaluate(*values).item()  # type: ignore[no-any-return]
    return None
