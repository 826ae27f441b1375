"""C expressions for one element, in any mix of element types."""

from __future__ import annotations

import math

from tcc.backends.c._codes import HALVES, computed, is_coded, supported, word
from tcc.backends.c._scope import C_TYPES, Scope, integer_text
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import BOOL, DType
from tcc.ir.expr import Access, Call, Cast, Const, Expr, Size, Var, text
from tcc.ir.index import is_size

_INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&&", "or": "||", "eq": "==", "ne": "!=", "lt": "<", "le": "<=",
          "gt": ">", "ge": ">=", "bit_and": "&", "bit_or": "|", "bit_xor": "^"}  # fmt: skip

# helpers that the generated text may call, by name
HELPERS = {
    "div_floor": """static inline int64_t div_floor(int64_t a, int64_t b) {
  if (b == 0) return a;
  int64_t q = a / b;
  return q - ((a % b != 0) & ((a < 0) != (b < 0)));
}""",
    "mod_floor": """static inline int64_t mod_floor(int64_t a, int64_t b) {
  if (b == 0) return 0;
  int64_t r = a % b;
  return r + ((r != 0) & ((r < 0) != (b < 0)) ? b : 0);
}""",
    "int_pow": """static inline int64_t int_pow(int64_t a, int64_t b) {
  int64_t out = 1;
  for (; b > 0; b >>= 1, a *= a) if (b & 1) out *= a;
  return out;
}""",
    "fence_streams": """static inline void fence_streams(void) { /* orders stores that went past the caches */
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}""",
    "odd_float": """static inline float odd_float(double v) {  /* inexact results get an odd last bit */
  float f = (float)v;
  uint32_t b;
  memcpy(&b, &f, 4);
  if (v != v || (double)f == v) return f;
  b = (b - (fabs((double)f) > fabs(v))) | 1;
  memcpy(&f, &b, 4);
  return f;
}""",
    "truncated": """static inline int64_t truncated(double x) {  /* NaN is 0, the rest saturates */
  return x != x ? 0 : x >= 0x1p62 ? (int64_t)1 << 62 : x <= -0x1p62 ? -((int64_t)1 << 62) : (int64_t)x;
}""",
}


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of a type, exactly."""
    if dtype.kind == "b":
        return "1" if value else "0"
    if dtype.is_integer:
        if isinstance(value, float) and math.isinf(value):
            signed = dtype.kind == "i"
            top = 2 ** (dtype.bits - signed) - 1
            value = top if value > 0 else (-top - 1 if signed else 0)
        number = int(value)
        if not -(2 ** (dtype.bits - 1)) <= number < 2 ** (dtype.bits - (dtype.kind == "i")) or (
            number < 0 and dtype.kind == "u"
        ):  # wraps as the type does
            number %= 2**dtype.bits
            number -= 2**dtype.bits if dtype.kind == "i" and number >= 2 ** (dtype.bits - 1) else 0
        if number == -(2**63):
            return "INT64_MIN"
        return (
            f"{number}ull"
            if number > 2**63 - 1
            else f"{number}ll"
            if abs(number) > 2**31 - 1
            else str(number)
        )
    value = float(value)
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    suffix = "f" if dtype.bits == 32 else ""
    return f"{value!r}{suffix}"


def scalar(s: Scope, e: Expr) -> str:
    """C text of one value of `s.dtype(e)`; bools are 0 or 1."""
    if isinstance(e, Const):
        return literal(e.value, s.dtype(e))
    if isinstance(e, Var):
        return f"({integer_text(s, s.located(e))})" if e.name in s.intervals else e.name
    if isinstance(e, Size):
        return s.names.of("rank", e.rank)
    if isinstance(e, Access):
        return _access(s, e)
    if isinstance(e, Cast) and is_coded(e.dtype):
        return _rounded(s, e)
    if isinstance(e, Cast):
        return convert(s, scalar(s, e.arg), _type(s, e.arg, e.dtype), e.dtype)
    return _call(s, e)


def _rounded(s: Scope, e: Cast) -> str:
    """The value that a narrow type has for the operand: encoded, and decoded again."""
    return f"{s.use(f'get_{word(e.dtype)}')}({code_of(s, e)})"


def code_of(s: Scope, e: Cast) -> str:
    """The code that a narrow type has for the operand."""
    t = e.dtype
    if not supported(t):
        raise CompileError("T0302", f"the C backend can not convert to {t} yet", e.span,
                           helps="use the numpy target, or a type that it has")  # fmt: skip
    have = _type(s, e.arg, computed(t))
    value = typed(s, e.arg, have)
    if t.name in HALVES and have.name == "f64":  # rounded to odd on the way, not twice to even
        value = f"{s.use('odd_float')}({value})"
    whole = t.is_integer and have.is_float
    source = "_float" if whole else "_u64" if t.is_integer and have.name == "u64" else ""
    put = s.use(f"put_{word(t)}{source}")
    return f"{put}({value})"


def _type(s: Scope, e: Expr, wanted: DType) -> DType:
    """Literals take the type that their neighbours want."""
    return wanted if isinstance(e, Const) and not isinstance(e.value, bool) else s.dtype(e)


def typed(s: Scope, e: Expr, wanted: DType) -> str:
    """C text of a value converted to `wanted`."""
    if isinstance(e, Const) and not isinstance(e.value, bool):
        return literal(e.value, wanted) if wanted.kind != "b" else str(int(e.value != 0))
    return convert(s, scalar(s, e), s.dtype(e), wanted)


def convert(s: Scope, value: str, have: DType, want: DType) -> str:
    if have == want:
        return value
    if want.kind == "b":
        return f"({value} != 0)"
    if have.is_float and want.is_integer:
        return f"(({C_TYPES[want.name]}){s.use('truncated')}({value}))"
    return f"(({C_TYPES[want.name]}){value})"


def _access(s: Scope, a: Access) -> str:
    place = s.storage[a.tensor]
    at = integer_text(s, s.address(a))
    if place.packed:
        from tcc.backends.c._packed import read_packed

        element = read_packed(s, a.tensor, at)
    else:
        element = s.get(a.tensor, f"{place.pointer}[{at}]")
    guards = s.unsafe(a)
    if not guards:
        return element
    fill = literal(s.tensor(a.tensor).fill, place.dtype)
    return f"({inside(s, guards)} ? {element} : {fill})"


def inside(s: Scope, guards: list[tuple[Expr, Expr]]) -> str:
    """The condition that indices lie inside: one unsigned comparison each."""
    return " && ".join(
        f"(uint64_t)({integer_text(s, s.located(i))}) < (uint64_t)({integer_text(s, n)})"
        for i, n in guards
    )


def _call(s: Scope, e: Call) -> str:
    t = s.dtype(e)
    name = C_TYPES.get(t.name)
    if name is None:
        raise CompileError("T0302", f"the C backend has no {t} arithmetic yet", e.span,
                           helps="convert to f32 first: `f32(…)`")  # fmt: skip
    if t.is_integer and is_size(e) and e.op in ("add", "sub", "mul"):
        return f"({integer_text(s, e)})"
    if e.op in ("and", "or"):
        return f"({scalar(s, e.args[0])} {_INFIX[e.op]} {scalar(s, e.args[1])})"
    if e.op == "not":
        return f"(!{scalar(s, e.args[0])})"
    if e.op in ("select", "take"):
        chosen = scalar(s, e.args[0]) if e.op == "select" else f"{scalar(s, e.args[2])} == 0"
        a, b = e.args[1:] if e.op == "select" else e.args[:2]
        return f"({chosen} ? {typed(s, a, t)} : {typed(s, b, t)})"
    if e.spec.result == "bool":
        common = common_type(s, e)
        return f"({typed(s, e.args[0], common)} {_INFIX[e.op]} {typed(s, e.args[1], common)})"
    args = [typed(s, a, t) for a in e.args]
    if e.op in ("add", "sub", "mul", "bit_and", "bit_or", "bit_xor"):
        shown = f"({args[0]} {_INFIX[e.op]} {args[1]})"
        return shown if t.bits >= 32 else f"(({name}){shown})"
    if e.op == "neg":
        return f"(({name})-({args[0]}))" if args[0].startswith("-") else f"(({name})-{args[0]})"
    if t.is_float:
        return _float_call(s, e.op, args, t)
    return _integer_call(s, e.op, args, t, text(e))


def common_type(s: Scope, e: Call) -> DType:
    """The type in which a comparison compares."""
    from tcc.ir.dtype import merge

    types = [
        s.dtype(a) for a in e.args if not (isinstance(a, Const) and not isinstance(a.value, bool))
    ]
    if not types:
        return s.dtype(e.args[0])
    out = types[0]
    for other in types[1:]:
        out = merge(out, other)
    floats = [a.value for a in e.args if isinstance(a, Const) and isinstance(a.value, float)]
    if floats and not out.is_float:
        from tcc.ir.dtype import F64

        return F64
    return out if out != BOOL else BOOL


def _float_call(s: Scope, op: str, args: list[str], t: DType) -> str:
    if op == "div":
        return f"({args[0]} / {args[1]})"
    if op == "floordiv":
        return f"{s.use(f'floor_{t.name}')}({args[0]} / {args[1]})"
    if op == "mod":
        return f"({args[0]} - {s.use(f'floor_{t.name}')}({args[0]} / {args[1]}) * {args[1]})"
    return f"{s.use(f'{op}_{t.name}')}({', '.join(args)})"


def _integer_call(s: Scope, op: str, args: list[str], t: DType, shown: str) -> str:
    name = C_TYPES[t.name]
    if op in ("floordiv", "mod"):
        return f"(({name}){s.use('div_floor' if op == 'floordiv' else 'mod_floor')}({args[0]}, {args[1]}))"
    if op == "pow":
        return f"(({name}){s.use('int_pow')}({args[0]}, {args[1]}))"
    if op in ("max", "min"):
        return f"({args[0]} {'>' if op == 'max' else '<'} {args[1]} ? {args[0]} : {args[1]})"
    if op == "popcount":
        return f"(({name})__builtin_popcountll((uint{t.bits}_t)({args[0]})))"
    if op == "abs":
        return args[0] if t.kind != "i" else f"({args[0]} < 0 ? ({name})-({args[0]}) : {args[0]})"
    if op == "sign":
        return f"(({name})(({args[0]} > 0) - ({args[0]} < 0)))"
    if op in ("floor", "ceil", "round", "trunc"):
        return args[0]
    raise CompileError(
        "T0302",
        f"the C backend has no `{op}` of integers",
        helps=f"convert to a float in `{shown}`",
    )
