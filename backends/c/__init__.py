"""The C backend: a mapping becomes C, a shared object, and calls without copies.

`build(mapping, target)` gives a `CProgram`; `CProgram.bind(shapes, strides, sizes)` gives a `Call` for inputs and outputs
of these shapes and strides; `call(pointers)` runs it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingABC
from functools import cached_property

from tcc.backends.c import cache
from tcc.backends.c.emit import Program, emit
from tcc.ir.cascade import Extern
from tcc.ir.diagnostics import CompileError
from tcc.ir.expr import Size, walk
from tcc.ir.index import evaluate_size
from tcc.ir.mapping import Kernel, Mapping, leaves
from tcc.ir.target import Target

Shapes = MappingABC[str, tuple[int, ...]]
_LARGE = 1 << 22  # bytes of a constant input that are worth huge pages


def build(mapping: Mapping, target: Target) -> CProgram:
    """The program of a mapping; its C for row-major arrays is built at once, for others when they come."""
    extern = next((k for k in mapping.kernels if isinstance(k, Extern)), None)
    if extern is not None:
        raise CompileError(
            "T0303", f"`{extern.target}` comes from `{extern.function}`, a call that only PyTorch can make", extern.span,
            helps="compile the function with `tcc.compile`, which runs such calls between kernels",
        )  # fmt: skip
    return CProgram(mapping)


class CProgram:
    """A mapping as C. One shared object per set of dimensions that have stride 1."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self._built: dict[tuple[tuple[str, int | None], ...], _Built] = {}
        self.tensors = [
            *mapping.inputs,
            *(t for t in mapping.outputs if t.name not in {i.name for i in mapping.inputs}),
        ]

    @cached_property
    def source(self) -> str:
        """The C text for row-major arrays."""
        return emit(self.mapping, vector_bytes=_vector_bytes()).source

    def assembly(self) -> str:
        """The compiler's assembly of `source`."""
        from tcc.backends.c.toolchain import assembly, find_toolchain

        return assembly(self.source, find_toolchain())

    def compile(self) -> None:
        """Builds the shared object for row-major arrays; raises T3xx when the compiler is missing or fails."""
        self._variant(())

    def bind(self, shapes: Shapes, strides: Shapes, sizes: MappingABC[str, int]) -> Call:
        """A call for arrays of the given shapes and strides (in elements), with every rank's size."""
        unit: list[tuple[str, int | None]] = []
        flat: list[int] = []
        for t in self.tensors:
            flat += strides[t.name]
            if max(shapes[t.name], default=0) >= 2**31:
                raise CompileError("T0304", f"a dimension of `{t.name}` has 2^31 elements or more", t.span,
                                   helps="split the rank")  # fmt: skip
            found = _unit_dimension(shapes[t.name], strides[t.name])
            if found != len(t.shape) - 1:
                unit.append((t.name, found))
        built = self._variant(tuple(unit))
        numbers = list(_every_size(self.mapping, sizes).values()) + flat
        constant = tuple(
            (t.name, shapes[t.name], strides[t.name]) for t in self.mapping.inputs if t.constant
        )
        return Call(built, numbers, constant, self._large(shapes, strides))

    @cached_property
    def _in_place(self) -> frozenset[str]:
        """Constant inputs that every call reads, and not only a copy of them."""
        kernels = [k for k in self.mapping.kernels if isinstance(k, Kernel) and not k.prepare]
        read = {a.tensor for k in kernels for n in leaves(k.body) for a in n.einsum.reads}
        return frozenset(t.name for t in self.mapping.inputs if t.constant and t.name in read)

    def _large(self, shapes: Shapes, strides: Shapes) -> tuple[tuple[int, int], ...]:
        """By position among the tensors, the bytes of large constant inputs that calls read in place."""
        found = []
        for n, t in enumerate(self.mapping.inputs):
            if t.name in self._in_place and t.dtype.native and min(strides[t.name], default=0) >= 0:
                steps = zip(shapes[t.name], strides[t.name], strict=True)
                size = (1 + sum((n - 1) * s for n, s in steps)) * t.dtype.itemsize
                if size >= _LARGE:
                    found.append((n, size))
        return tuple(found)

    def _variant(self, unit: tuple[tuple[str, int | None], ...]) -> _Built:
        if unit not in self._built:
            wide = _vector_bytes()
            told = pickle.dumps((self.mapping, unit, wide))
            key = cache.digest("emitted", cache.own_source_hash(), told)
            program = cache.recall(key, lambda: emit(self.mapping, dict(unit), vector_bytes=wide))
            self._built[unit] = _Built(program)
        return self._built[unit]


def _vector_bytes() -> int:
    """Bytes of the vectors that the C compiler's target has: 64 with AVX-512, else 32, which others split or pair."""
    from tcc.backends.c.toolchain import find_toolchain

    try:
        return 64 if find_toolchain().simd == "avx512" else 32
    except CompileError:  # without a compiler the text can still be read
        return 32


def _every_size(m: Mapping, sizes: MappingABC[str, int]) -> dict[str, int]:
    """The sizes of the mapping's ranks, those that passes have added included."""
    known = dict(sizes)
    left = [r for r in m.ranks if r.name not in known]
    while left:
        ready = [
            r
            for r in left
            if r.size is not None
            and {n.rank for n in walk(r.size) if isinstance(n, Size)} <= set(known)
        ]
        if not ready:
            raise CompileError("T0126", f"the size of rank `{left[0].name}` is not known", left[0].span,
                               helps="give it, or pass the input that has it")  # fmt: skip
        for r in ready:
            assert r.size is not None
            known[r.name] = evaluate_size(r.size, known)
        left = [r for r in left if r.name not in known]
    return {r.name: known[r.name] for r in m.ranks}


def _unit_dimension(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The last dimension of stride 1; dimensions of one element count when nothing else does."""
    for d in reversed(range(len(shape))):
        if strides[d] == 1 and shape[d] != 1:
            return d
    last = len(shape) - 1
    if last < 0 or shape[last] == 1 or strides[last] == 1:
        return last
    return None


class _Built:
    """A loaded shared object."""

    def __init__(self, program: Program) -> None:
        import ctypes

        from tcc.backends.c.launch import Arena, load
        from tcc.backends.c.toolchain import build as compile_source
        from tcc.backends.c.toolchain import find_toolchain

        self.program = program
        self.library = load(compile_source(program.source, find_toolchain()))
        self.kept: dict[object, _Constants] = {}
        self.memory = Arena()
        self.measure = {}
        for name in ("tcc_arena", "tcc_constants", "tcc_scratch"):
            function = getattr(self.library, name)
            function.restype = ctypes.c_int64
            self.measure[name] = function


class _Constants:
    """The memory of constant buffers, shared by all calls whose constant inputs are stored alike.

    A block that a call is reading is never prepared again: other content gets a block of its own."""

    def __init__(self, size: int) -> None:
        import threading

        self.size = size
        self.lock = threading.Lock()
        self.latest = _Prepared(size)

    def take(self, content: object, prepare: Callable[[int], None]) -> _Prepared:
        """A block that holds what `prepare(address)` makes of the constant inputs; give it back."""
        with self.lock:
            kept = self.latest
            if kept.content is None or kept.content != content:
                if kept.users:
                    self.latest = kept = _Prepared(self.size)
                prepare(kept.block.address)
                kept.content = content
            kept.users += 1
            return kept

    def give(self, kept: _Prepared) -> None:
        with self.lock:
            kept.users -= 1


class _Prepared:
    """A block of constant buffers, the key of the content it was prepared from, and its readers."""

    def __init__(self, size: int) -> None:
        from tcc.backends.c.launch import Arena

        self.block = Arena().take(size)
        self.content: object = None
        self.users = 0


class Call:
    """A program bound to shapes, strides and sizes. Calling it writes the outputs; it is safe to call from many threads."""

    def __init__(
        self,
        built: _Built,
        numbers: Sequence[int],
        constant: object = None,
        large: Sequence[tuple[int, int]] = (),
    ) -> None:
        from tcc.backends.c.launch import Launcher, sizes_array

        tensors = len(built.program.tensors)
        self.sizes = sizes_array([*numbers, 0, 1])
        self.arena_bytes, self.constant_bytes, scratch = (
            int(built.measure[name](self.sizes))
            for name in ("tcc_arena", "tcc_constants", "tcc_scratch")
        )
        per_thread = (scratch + 4095) // 4096 * 4096 + 128 if scratch else 0
        threads = _threads()
        self.sizes = sizes_array([*numbers, per_thread, threads])
        self.scratch_bytes = per_thread * threads
        self._main = Launcher(built.library, "tcc_main", tensors + 3, len(self.sizes))
        self._prepare = (
            Launcher(built.library, "tcc_prepare", tensors + 3, len(self.sizes))
            if built.program.prepared
            else None
        )
        self._memory = built.memory
        self._large, self._seen = large, object()
        self._constants: _Constants | None = None
        if self.constant_bytes:
            self._constants = built.kept.setdefault(
                (self.constant_bytes, constant), _Constants(self.constant_bytes)
            )
        self.total = self.arena_bytes + self.scratch_bytes

    def __call__(self, pointers: Sequence[int], constants: object = 0) -> None:
        """`pointers`: inputs, then outputs. `constants` is a key that changes when a constant input's content does."""
        if self._large and constants != self._seen:
            self._gather(pointers, constants)
        block = self._memory.take(self.total) if self.total else None
        arena = block.address if block is not None else 0
        scratch = arena + self.arena_bytes if block is not None else 0
        kept: _Prepared | None = None
        try:
            if self._constants is not None:
                kept = self._constants.take(
                    constants, lambda at: self._fill((*pointers, arena, at, scratch))
                )
            at = kept.block.address if kept is not None else 0
            self._main((*pointers, arena, at, scratch), self.sizes)
        finally:
            if kept is not None and self._constants is not None:
                self._constants.give(kept)
            if block is not None:
                self._memory.give(block)

    def _gather(self, pointers: Sequence[int], constants: object) -> None:
        """Moves large constant inputs that are read in place to huge pages: where rows of 16 KiB follow each other in pages
        of 4 KiB, a third of the time goes into finding these."""
        from tcc.backends.c.launch import ask_for_huge_pages

        self._seen = constants
        if isinstance(constants, tuple):  # else what they are may be another thing at each call
            for n, size in self._large:
                ask_for_huge_pages(pointers[n], size, now=True)

    def _fill(self, pointers: Sequence[int]) -> None:
        if self._prepare is not None:
            self._prepare(pointers, self.sizes)


def _threads() -> int:
    """The most threads that a parallel region may have."""
    import sys

    torch = sys.modules.get("torch")
    count = (
        int(torch.get_num_threads())
        if torch is not None and hasattr(torch, "get_num_threads")
        else 0
    )
    return max(
        count, os.cpu_count() or 1, int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0] or 1)
    )
