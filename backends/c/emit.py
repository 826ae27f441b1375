"""A mapping as one C file: a function per kernel, and the entry points that run them in order.

    int64_t tcc_arena(const int64_t *n)      bytes of intermediates in memory
    int64_t tcc_constants(const int64_t *n)  bytes of buffers that `prepare` kernels fill
    int64_t tcc_scratch(const int64_t *n)    bytes of tile buffers per thread
    void tcc_prepare(void *const *p, const int64_t *n)
    void tcc_main(void *const *p, const int64_t *n)

`p` holds inputs, outputs, arena, constants, scratch; `n` holds the rank sizes, the strides of inputs and outputs in
elements, the bytes of scratch per thread, the most threads that there is scratch for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tcc.backends.c._canonical import canonical_key, comment, touched
from tcc.backends.c._code_lanes import code_lane_functions
from tcc.backends.c._coded import decoding_functions
from tcc.backends.c._codes import code_functions, computed, is_coded, stored_type, supported
from tcc.backends.c._decode import decode_functions
from tcc.backends.c._dots_text import dot_functions
from tcc.backends.c._micro import micro_kernel
from tcc.backends.c._names import Names
from tcc.backends.c._narrow import narrow_functions
from tcc.backends.c._packed import WORD, packed_functions
from tcc.backends.c._scalar import HELPERS
from tcc.backends.c._scope import (
    LINE,
    Interval,
    Lines,
    Scope,
    Storage,
    integer_text,
    storage_of,
)
from tcc.backends.c._slots import slots
from tcc.backends.c._tree import Tree
from tcc.backends.c.vector_math import functions as vector_functions
from tcc.backends.c.vector_math import preamble
from tcc.ir.cascade import Tensor
from tcc.ir.coded_leaf import undecodable
from tcc.ir.diagnostics import CompileError
from tcc.ir.dtype import Coded
from tcc.ir.expr import Const, Expr, Var, call
from tcc.ir.index import poly
from tcc.ir.mapping import (
    Buffer,
    Kernel,
    Mapping,
    leaves,
    signature,
)
from tcc.ir.packed import per_byte


@dataclass(frozen=True)
class Program:
    """C text with the order of what its entry points take."""

    source: str
    ranks: tuple[str, ...]
    tensors: tuple[str, ...]
    prepared: bool


def emit(
    m: Mapping, unit: dict[str, int | None] | None = None, *, vector_bytes: int = 32
) -> Program:
    """The C program of a mapping. `unit[T]` is the dimension of stride 1 of an input or output (default: the last).

    Vector loops use vectors of `vector_bytes`; register tiles have the lanes that the mapping packs for.
    """
    return Emitter(m, unit or {}, vector_bytes).program()


class Emitter:
    def __init__(self, m: Mapping, unit: dict[str, int | None], vector_bytes: int) -> None:
        self.m, self.unit, self.vector_bytes = m, unit, vector_bytes
        self.names = Names()
        # counters must not look like the variables that they stand for
        self.names.reserve(v for k in m.kernels if isinstance(k, Kernel) for v, _ in k.variables)
        self.signature = signature(m)
        self.functions: set[str] = set()
        self.tensors: tuple[Tensor, ...] = (
            *m.inputs,
            *(t for t in m.outputs if t.name not in {i.name for i in m.inputs}),
        )
        self._arguments: dict[str, list[str]] = {}  # kernel -> its outer tensors
        self._function: dict[str, str] = {}  # kernel -> its C function
        self._functions: dict[str, str] = {}  # canonical text -> C function
        for t in (*self.signature.tensors.values(),):
            if not supported(t.dtype):
                raise CompileError("T0302", f"the C backend has no {t.dtype} tensors yet: `{t.name}`", t.span,
                                   helps="declare it as f32")  # fmt: skip
        self._check_coded()

    def _check_coded(self) -> None:
        """T0302 for a coded output, and for reads of coded tensors that are no copies of whole runs."""
        for t in self.m.outputs:
            if isinstance(t.dtype.form, Coded):
                raise CompileError("T0302", f"the C backend writes no {t.dtype} tensors: `{t.name}`", t.span,
                                   helps="use the numpy target")  # fmt: skip
        for k in self.m.kernels:
            bad = undecodable(k, self.signature.tensors) if isinstance(k, Kernel) else None
            if bad is not None:
                raise CompileError("T0302", f"`{bad.einsum}` does not decode whole runs of a coded tensor", bad.span,
                                   helps="copy them first: `do T[…] = W[…]`, in tiles of whole runs and lanes, nothing "
                                   "bound to lanes")  # fmt: skip

    def program(self) -> Program:
        kernels = [k for k in self.m.kernels if isinstance(k, Kernel)]
        bodies = [b for b in (self._kernel(k) for k in kernels) if b]
        micro = sorted(f for f in self.functions if f.startswith("micro:"))
        for key in micro:
            _, _, _, width, _, t, *_ = key.split(":")
            self.functions |= {f"{op}_{t}x{width}" for op in ("ld", "st", "bc")}
        entries = [
            self._sizes(),
            self._entry("tcc_prepare", [k for k in kernels if k.prepare]),
            self._entry("tcc_main", [k for k in kernels if not k.prepare]),
        ]
        known = set(vector_functions())
        wanted = sorted(f for f in self.functions if f in known)
        stored = [*(b.dtype for b in self.m.memory), *(t.dtype for t in self.tensors)]
        parts = [
            f"/* {self.m.name}: generated by tcc for {self.m.target} */",
            preamble(wanted, 8) + "#include <stddef.h>\n#ifdef _OPENMP\n#include <omp.h>\n#endif",
            *(HELPERS[h] for h in sorted(self.functions & set(HELPERS))),
            *packed_functions(self.functions),
            *code_functions(self.m, self.functions),
            *narrow_functions(self.functions),
            *decode_functions(self.functions, stored),
            *code_lane_functions(self.functions, stored),
            *decoding_functions(self.m, self.functions),
            *(micro_kernel(key) for key in micro),
            *dot_functions(self.functions),
            *bodies,
            *entries,
        ]
        return Program("\n\n".join(parts) + "\n", tuple(r.name for r in self.m.ranks),
                       tuple(t.name for t in self.tensors), any(k.prepare for k in kernels))  # fmt: skip

    # ---- the interface of every function: sizes and strides from `n`, pointers from `p`

    def _rank(self, name: str) -> str:
        return self.names.of("rank", name)

    def _stride(self, t: Tensor, dimension: int) -> Expr:
        unit = self.unit.get(t.name, len(t.shape) - 1)
        if dimension == unit:
            return Const(1)
        return Var(self.names.of("stride", f"{t.name}_s{dimension}"))

    def _strides(self) -> list[str]:
        """Names of the strides in `n`, in order; unit ones as empty names."""
        out = []
        for t in self.tensors:
            for d in range(len(t.shape)):
                stride = self._stride(t, d)
                out.append(stride.name if isinstance(stride, Var) else "")
        return out

    def _unpack(self, used: str, strides: bool = True) -> list[str]:
        """Declarations of the sizes and strides that occur in a text."""
        words = set(re.findall(r"\w+", used))
        lines = [
            f"const int64_t {self._rank(r.name)} = n[{i}];"
            for i, r in enumerate(self.m.ranks)
            if self._rank(r.name) in words
        ]
        start = len(self.m.ranks)
        lines += [
            f"const int64_t {name} = n[{start + i}];"
            for i, name in enumerate(self._strides())
            if strides and name and name in words
        ]
        return lines

    # ---- kernels

    def _kernel(self, k: Kernel) -> str:
        """The C function of a kernel; empty when an earlier one is the same but for the names of its tensors."""
        names = touched(k)
        outer = [name for name in names if self._outer_storage(name) is not None]
        self._arguments[k.name] = outer
        key = canonical_key(
            k, {name: self._described(name) for name in outer}, dict(self.signature.tensors)
        )
        if key in self._functions:
            self._function[k.name] = self._functions[key]
            return ""
        lines = Lines()
        scope = Scope(self.signature, self.names, lines, self.functions, self.vector_bytes)
        for v, e in k.variables:
            scope.extents[v] = e
            scope.intervals[v] = Interval(Const(0), integer_text(scope, e), None)
        made = [leaf.einsum.target for leaf in leaves(k.body)]
        read = {a.tensor for leaf in leaves(k.body) for a in leaf.einsum.reads}
        written = set(made)
        results = {t.name for t in self.m.outputs}
        scope.written = frozenset(
            t for t in written if t in results and t not in read and made.count(t) == 1
        )
        args = []
        for name in outer:
            storage = self._outer_storage(name)
            assert storage is not None
            scope.storage[name] = storage
            const = "" if name in written else "const "
            args.append(f"{const}{storage.element} *restrict {storage.pointer}")
            args += [f"int64_t {stride}" for stride in self._own_strides(name)]
        lines.depth = 1
        tree = Tree(self, scope, k)
        lines.add("char *local = scratch;")
        tree.nodes(k.body, ())
        tree.fence()
        lines.add("(void)local;")
        body = "\n".join(lines.out)
        function = self.names.of("kernel", k.name)
        self._functions[key] = self._function[k.name] = function
        head = [f"/* {comment(k)[0]}", *(f"   {line}" for line in comment(k)[1:])]
        head[-1] += " */"
        signature_text = ", ".join([*args, "const int64_t *n", "char *scratch"])
        declared = "\n".join("  " + line for line in self._unpack(body, strides=False))
        parts = [
            "\n".join(head),
            f"static void {function}({signature_text}) {{",
            declared,
            body,
            "}",
        ]
        return tree.scratch_function(function) + "\n\n" + "\n".join(p for p in parts if p)

    def _own_strides(self, name: str) -> list[str]:
        t = next((t for t in self.tensors if t.name == name), None)
        if t is None:
            return []
        strides = (self._stride(t, d) for d in range(len(t.shape)))
        return [stride.name for stride in strides if isinstance(stride, Var)]

    def _described(self, name: str) -> str:
        """How an outer tensor is stored, without its name."""
        t = next((t for t in self.tensors if t.name == name), None)
        if t is not None:
            return f"{'packed ' * t.packed}strided, unit {self.unit.get(name, len(t.shape) - 1)}"
        b = next(b for b in self.m.memory if b.name == name)
        return f"{'packed ' * b.packed}{b.layout}"

    def _outer_storage(self, name: str) -> Storage | None:
        t = next((t for t in self.tensors if t.name == name), None)
        if t is not None:
            strides = tuple(self._stride(t, d) for d in range(len(t.shape)))
            code = t.dtype if is_coded(t.dtype) or t.packed else None
            if t.packed:  # rows are whole bytes, whose distances are in bytes
                strides = (*(call("mul", s, Const(per_byte(t))) for s in strides[:-1]), Const(1))
            return Storage(self.names.of("tensor", name), computed(t.dtype), strides, code=code,
                           packed=t.bits if t.packed else 0)  # fmt: skip
        b = next((b for b in self.m.memory if b.name == name), None)
        if b is None:
            return None
        zero = tuple(Const(0) for _ in b.dims)
        return storage_of(b, self.names.of("tensor", name), b.dims, zero)

    # ---- entry points

    def bytes_of(self, b: Buffer, shape: tuple[Expr, ...]) -> str:
        scope = Scope(self.signature, self.names, Lines(), self.functions)
        count = integer_text(scope, poly(b.layout.elements(shape)).expr())
        if b.packed:
            return f"(({count}) * {b.bits} + {WORD - 1}) / {WORD} * {WORD // 8}"
        return f"({count}) * {computed(b.dtype).itemsize}"

    def _slots(self, constant: bool) -> list[tuple[str, list[str]]]:
        """The storage of constant or of other memory buffers: (bytes, names of the buffers that take turns in it)."""
        order = [self._arguments[k.name] for k in self.m.kernels if isinstance(k, Kernel)]
        buffers = [
            (b.name, self.bytes_of(b, b.dims)) for b in self.m.memory if b.constant == constant
        ]
        return slots(buffers, order, reuse=not constant)

    def _sizes(self) -> str:
        out = []
        for name, constant in (("tcc_arena", False), ("tcc_constants", True)):
            lines = [
                f"  total += ({size} + {LINE - 1}) / {LINE} * {LINE};"
                for size, _ in self._slots(constant)
            ]
            out.append(self._size_function(name, lines))
        calls = [f"  {{ const int64_t b = {function}_scratch(n); if (b > total) total = b; }}"
                 for function in dict.fromkeys(self._function.values())]  # fmt: skip
        out.append(self._size_function("tcc_scratch", calls))
        return "\n\n".join(out)

    def _size_function(self, name: str, lines: list[str]) -> str:
        declared = ["  " + line for line in self._unpack("\n".join(lines))]
        return "\n".join([f"int64_t {name}(const int64_t *n) {{", *declared, "  int64_t total = 0;", *lines,
                          "  (void)n;", "  return total;", "}"])  # fmt: skip

    def _entry(self, name: str, kernels: list[Kernel]) -> str:
        body = []
        for i, t in enumerate(self.tensors):
            stored = "uint8_t" if t.packed else stored_type(t.dtype)
            body.append(f"  {stored} *{self.names.of('tensor', t.name)} = p[{i}];")
        at = len(self.tensors)
        for constant, index in ((False, at), (True, at + 1)):
            slots = self._slots(constant)
            if slots:
                body.append(f"  char *at{index} = p[{index}];")
            for size, names in slots:
                for b in (b for b in self.m.memory if b.name in names):
                    c = storage_of(b, "", (), ()).element
                    body.append(f"  {c} *{self.names.of('tensor', b.name)} = ({c} *)at{index};")
                body.append(f"  at{index} += ({size} + {LINE - 1}) / {LINE} * {LINE};")
        for k in kernels:
            args = [
                x
                for t in self._arguments[k.name]
                for x in (self.names.of("tensor", t), *self._own_strides(t))
            ]
            body.append(f"  {self._function[k.name]}({', '.join([*args, 'n', f'p[{at + 2}]'])});")
        declared = ["  " + line for line in self._unpack("\n".join(body))]
        return "\n".join([f"void {name}(void *const *p, const int64_t *n) {{", *declared, *body,
                          "  (void)p, (void)n;", "}"])  # fmt: skip
