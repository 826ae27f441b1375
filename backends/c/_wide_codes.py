"""Codes in C by arithmetic: `get_T` and `put_T` of floats and posits that are too wide for tables, slowly and exactly."""

from __future__ import annotations

from tcc.ir.dtype import DType, Float, Posit
from tcc.ir.dtype_codes import float_form


def wide_functions(t: DType, name: str, code: str, real: str) -> str:
    """The C text of both functions of a float or posit; `code` and `real` are the C types of its codes and values."""
    if isinstance(t.form, Posit):
        return _posit(t, name, code, real, t.form.exponent)
    return _float(t, name, code, real, float_form(t))


def _float(t: DType, name: str, code: str, real: str, form: Float) -> str:
    m, fields, body = form.mantissa, 2**form.exponent - 1, 2 ** (form.exponent + form.mantissa) - 1
    special = {
        "ieee": f"  if (c >> {m} == {fields}) return c & {2**m - 1}ull ? NAN : sign ? -INFINITY : INFINITY;\n",
        "fn": f"  if (c == {body}ull) return NAN;\n",
        "fnuz": "  if (!c && sign) return NAN;\n",
        "all": "",
    }[form.specials]
    nan = {"ieee": (fields << m) + 2**m // 2, "fn": body, "fnuz": body + 1, "all": 0}[form.specials]
    most = {"ieee": (fields << m) - 1, "fn": body - 1}.get(form.specials, body)
    over = {"ieee": fields << m, "all": most}.get(form.specials, nan)
    down, drawn = t.rounding == "zero", t.rounding == "stochastic"
    turned = "trunc" if down else "floor" if drawn else "nearbyint"
    chance = f" + (tcc_draw({t.seed}ull, place) < x - floor(x))" if drawn else ""
    beyond = most if t.saturate or (down and t.bits > 16) else over
    infinite = most if t.saturate else over
    kept = " && at" if form.specials == "fnuz" else ""
    return f"""static inline {real} get_{name}({code} stored) {{
  const uint64_t sign = (uint64_t)stored >> {t.bits - 1} & 1, c = stored & {body}ull, field = c >> {m};
{special}  const double v = ldexp((double)((c & {2**m - 1}ull) + (field ? {2**m}ull : 0)), (int)(field ? field : 1) - {form.bias + m});
  return ({real})(sign ? -v : v);
}}
static inline {code} put_{name}(double v{", int64_t place" * drawn}) {{
  const double a = fabs(v);
  uint64_t at = a > 0 ? {infinite}ull : 0;
  if (v != v) return ({code}){nan}ull;
  if (a > 0 && a < INFINITY) {{
    int power;
    frexp(a, &power);
    power = (power > {2 - form.bias} ? power - 1 : {1 - form.bias}) - {m};  /* of the last bit */
    const double x = ldexp(a, -power);
    const uint64_t steps = (uint64_t){turned}(x){chance};
    at = steps + ((uint64_t)(power + {form.bias + m - 1}) << {m});
    if (at > {most}ull) at = {beyond}ull;
  }}
  return ({code})(signbit(v){kept} ? at | {body + 1}ull : at);
}}"""


def _posit(t: DType, name: str, code: str, real: str, es: int) -> str:
    n, drawn = t.bits, t.rounding == "stochastic"
    found = f"""    const int half = n / 2;
    if (value_{name}({{}}, {{}}) {{}} a) at += half + 1, n -= half + 1; else n = half;"""
    if drawn or t.rounding == "zero":
        steps, after = found.format("at + half + 1", n, "<="), ""
        if drawn:
            low, high = f"value_{name}(at, {n})", f"value_{name}(at + 1, {n})"
            after = f"  if (at < {2 ** (n - 1) - 1} && tcc_draw({t.seed}ull, place) < (a - {low}) / ({high} - {low})) at++;\n"
    else:  # between two posits lies one of a bit more, where rounding turns
        steps = found.format("2 * (at + half) + 1", n + 1, "<")
        after = (
            f"  if (at < {2 ** (n - 1) - 1} && value_{name}(2 * at + 1, {n + 1}) == a && at & 1) at++;\n"
            "  if (a > 0 && !at) at = 1;\n"
        )
    return f"""static inline double value_{name}(uint32_t c, int bits) {{  /* of a positive code */
  const int first = c >> (bits - 2) & 1;
  int run = 0;
  if (!c) return 0;
  while (run < bits - 1 && (int)(c >> (bits - 2 - run) & 1) == first) run++;
  const int left = bits - 2 - run > 0 ? bits - 2 - run : 0;
  const uint64_t wide = (uint64_t)(c & ((1u << left) - 1)) << (bits + {es} - left);
  const double fraction = ldexp((double)(wide & ((1ull << bits) - 1)), -bits);
  return ldexp(1 + fraction, (first ? run - 1 : -run) * {2**es} + (int)(wide >> bits));
}}
static inline {real} get_{name}({code} stored) {{
  const uint32_t c = stored & {2**n - 1}u;
  if (c == {2 ** (n - 1)}u) return NAN;
  return ({real})(c >> {n - 1} ? -value_{name}({2**n}u - c, {n}) : value_{name}(c, {n}));
}}
static inline {code} put_{name}(double v{", int64_t place" * drawn}) {{
  const double a = fabs(v);
  uint32_t at = 0;
  if (v != v || isinf(v)) return {2 ** (n - 1)}u;
  for (int n = {2 ** (n - 1) - 1}; n;) {{
{steps}
  }}
{after}  return ({code})(v < 0 ? (0u - at) & {2**n - 1}u : at);
}}"""
