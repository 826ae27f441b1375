"""Einsum strings: NumPy's notation as a cascade of one definition.

einsum("bij,bjk->bik") -->  Z[b, i, k] = A[b, i, j] * B[b, j, k]
"""

from __future__ import annotations

from collections.abc import Sequence

from tcc.ir.cascade import Cascade, Einsum, Tensor
from tcc.ir.diagnostics import CompileError, Source, Span
from tcc.ir.dtype import DType
from tcc.ir.dtype_text import dtype as dtype_named
from tcc.ir.expr import Access, Expr, Size, Var, call
from tcc.ir.infer import build

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXY"


def einsum(
    subscripts: str, dtype: str = "f32", names: Sequence[str] = (), ranks: Sequence[int] = ()
) -> Cascade:
    """The cascade of an einsum string; without `->`, indices that occur once are the output's.

    `names` are those of the operands and, last, of the output (A, B, …, Z when not given). `...`
    stands for dimensions without a name; then `ranks` gives the number of dimensions of each
    operand. Repeated indices take a diagonal.

    >>> print(einsum("ij,jk->ik").definitions[0])
    Z[i, k] = A[i, j] * B[j, k]
    """
    source = Source("<einsum>", subscripts)
    element = dtype_named(dtype)
    left, arrow, right = subscripts.partition("->")
    operands = [_labels(source, part) for part in left.split(",")]
    operands = _spread(source, operands, ranks)
    if arrow:
        (output,) = _spread(source, [_labels(source, right, True)], (), _widest(operands))
    else:
        letters = [x for labels in operands for x in labels]
        dots = [x for x in dict.fromkeys(letters) if x.startswith("dots")]
        output = [
            *dots,
            *sorted(x for x in set(letters) if letters.count(x) == 1 and x not in dots),
        ]
    known = {x for labels in operands for x in labels}
    for at, label in enumerate(output):
        if label not in known:
            raise CompileError(
                "T0133",
                f"output index `{label}` is in no operand",
                _find(source, label, last=True),
                helps="an output index comes from an operand",
            )
        if label in output[:at]:
            raise CompileError(
                "T0133",
                f"output index `{label}` is given twice",
                _find(source, label, last=True),
                helps="name every output index once",
            )
    names = list(names) or [*LETTERS[: len(operands)], "Z"]
    if len(names) == len(operands):
        names.append("Z")
    if len(names) != len(operands) + 1 or len(set(names)) != len(names):
        raise CompileError(
            "T0133",
            f"{len(operands)} operands and one output need {len(operands) + 1} different names, "
            f"not {', '.join(names)}",
            helps="name each operand, then the output",
        )
    return _cascade(operands, output, element, names)


def _cascade(
    operands: list[list[str]], output: list[str], element: DType, names: list[str]
) -> Cascade:
    variables = {x: _variable(x) for labels in operands for x in labels}

    def shape(labels: list[str]) -> tuple[Expr, ...]:
        return tuple(Size(variables[x].upper()) for x in labels)

    def access(name: str, labels: list[str]) -> Access:
        return Access(name, tuple(Var(variables[x]) for x in labels))

    inputs = tuple(Tensor(n, element, shape(x)) for n, x in zip(names, operands))
    body: Expr = access(names[0], operands[0])
    for name, labels in zip(names[1:], operands[1:]):
        body = call("mul", body, access(name, labels))
    target = Tensor(names[-1], element, shape(output))
    definition = Einsum(names[-1], tuple(Var(variables[x]) for x in output), body)
    return build(Cascade("einsum", (), inputs, (target,), (definition,)))


def _variable(label: str) -> str:
    """Capital letters are indices of their own in NumPy; here variables are lower case."""
    return f"{label.lower()}_" if label.isupper() else label


def _labels(source: Source, part: str, last: bool = False) -> list[str]:
    """One operand's indices: letters, and `...` for the dimensions that are not named."""
    shown = part.replace(" ", "")
    labels: list[str] = []
    while shown:
        if shown.startswith("..."):
            if "..." in labels:
                raise CompileError(
                    "T0133",
                    "`...` is given twice in one operand",
                    _find(source, "..."),
                    helps="use it once per operand",
                )
            labels.append("...")
            shown = shown[3:]
            continue
        if not (shown[0].isascii() and shown[0].isalpha()):
            raise CompileError(
                "T0133",
                f"unexpected `{shown[0]}` in an einsum string",
                _find(source, shown[0], last),
                helps="operands are letters separated by commas: `ij,jk->ik`",
            )
        labels.append(shown[0])
        shown = shown[1:]
    return labels


def _widest(operands: list[list[str]]) -> int:
    return max((sum(x.startswith("dots") for x in labels) for labels in operands), default=0)


def _spread(
    source: Source, operands: list[list[str]], ranks: Sequence[int], width: int | None = None
) -> list[list[str]]:
    """`...` replaced by indices dots0, dots1, …, aligned at the right."""
    if ranks and len(ranks) != len(operands):
        raise CompileError(
            "T0133",
            f"{len(operands)} operands, but {len(ranks)} numbers of dimensions",
            _find(source, ","),
            helps="give one per operand",
        )
    widths: list[int] = []
    for n, labels in enumerate(operands):
        if "..." not in labels:
            if ranks and ranks[n] != len(labels):
                raise CompileError(
                    "T0113",
                    f"operand {n} has {ranks[n]} dimensions, but {len(labels)} indices are given",
                    _find(source, "".join(labels)),
                    helps="give one index per dimension",
                )
            widths.append(0)
            continue
        if width is None and not ranks:
            raise CompileError(
                "T0133",
                "`...` stands for an unknown number of dimensions",
                _find(source, "..."),
                helps="pass `ranks`, the number of dimensions of each operand",
            )
        widths.append(width if width is not None else ranks[n] - (len(labels) - 1))
        if widths[-1] < 0:
            raise CompileError(
                "T0113",
                f"operand {n} has {ranks[n]} dimensions, but {len(labels) - 1} indices are given",
                _find(source, "..."),
                helps="give one index per dimension",
            )
    most = max(widths, default=0)
    out = []
    for labels, w in zip(operands, widths):
        dots = [f"dots{i}" for i in range(most - w, most)]
        out.append([x for label in labels for x in (dots if label == "..." else [label])])
    return out


def _find(source: Source, part: str, last: bool = False) -> Span:
    at = source.text.rfind(part) if last else source.text.find(part)
    at = max(at, 0)
    return Span(source, 1, at + 1, at + 1 + max(1, len(part)))


__all__ = ["einsum"]
