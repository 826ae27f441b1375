"""A kernel is one exported function, `void NAME(void *const *pointers, const int64_t *sizes)`.

Threads: an object built with gcc needs `libgomp.so.1` by name, and the dynamic linker gives it
the copy that is loaded already. So torch imported first lends its own copy, and our object loaded
first makes torch use the system's: either way there is one pool, and `torch.set_num_threads` and
`OMP_NUM_THREADS` apply to it. Only a torch whose copy has another name (older wheels:
`libgomp-HASH.so.1`) would bring a second pool; `load` makes that copy's symbols global first, so
that ours bind to it. An object built with clang uses `libomp`, which is a pool of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tcc.ir.diagnostics import CompileError

_ALIGNMENT = 64
_HUGE_PAGE = 2 << 20
_COLLAPSE = 25  # MADV_COLLAPSE, which the module `mmap` does not name


def load(path: Path) -> ctypes.CDLL:
    """The shared object at `path`, loaded; raises T3 when the dynamic linker refuses it."""
    _share_torch_threads()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(
            "T0326",
            f"the built object `{path}` cannot be loaded: {error}",
            helps="delete it, or set `TCC_CACHE_DIR` to a folder on a file system that allows"
            " execution (not `noexec`)",
        ) from None


def sizes_array(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """`values` as the `int64_t` array that a launcher takes; make it once per set of shapes."""
    return (ctypes.c_int64 * max(1, len(values)))(*values)


class Launcher:
    """Calls one kernel function; safe from several Python threads at once (the GIL is released)."""

    __slots__ = ("_function", "_pack", "n_pointers", "n_sizes", "name")

    def __init__(self, library: ctypes.CDLL, name: str, n_pointers: int, n_sizes: int) -> None:
        try:
            function = library[name]
        except AttributeError:
            raise CompileError(
                "T0326",
                f"the built object exports no function `{name}`",
                helps="this is a bug in tcc: the object and the kernel do not belong together;"
                " delete the cache folder",
            ) from None
        function.restype = None  # no argtypes: ctypes then passes bytes and arrays as they are
        self._function: Callable[..., None] = function
        self._pack = struct.Struct(f"{max(1, n_pointers)}P").pack
        self.name = name
        self.n_pointers = n_pointers
        self.n_sizes = n_sizes

    def __call__(self, pointers: Sequence[int], sizes: ctypes.Array[ctypes.c_int64]) -> None:
        """Runs the kernel on `n_pointers` addresses and `n_sizes` prefilled sizes (unchecked)."""
        self._function(self._pack(*pointers), sizes)


def ask_for_huge_pages(address: int, size: int, now: bool = False) -> None:
    """Makes the whole huge pages inside fresh memory one page fault each, where the system has any.

    A fresh result of 64 MiB otherwise costs 16384 page faults, more time than writing it. It is
    only advice: what is in memory already stays as it is, and nothing is touched, unless `now` asks
    the system (Linux 6.1 and later) to move it to huge pages, which takes about 2 ms a MiB, once.
    """
    if _MADVISE is None:
        return
    start = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    end = (address + size) // _HUGE_PAGE * _HUGE_PAGE
    if end > start:
        _MADVISE(start, end - start, mmap.MADV_HUGEPAGE)
        if now:
            _MADVISE(start, end - start, _COLLAPSE)


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int], int] = function
    return found


_MADVISE = _find_madvise()


class Block:
    """Memory at `address`, aligned to 64 bytes, or to 2 MiB and on huge pages from 2 MiB on."""

    __slots__ = ("_memory", "address", "size")

    def __init__(self, size: int) -> None:
        huge = size >= _HUGE_PAGE
        alignment = _HUGE_PAGE if huge else _ALIGNMENT
        self.size = -(-max(size, 1) // alignment) * alignment
        try:
            self._memory = mmap.mmap(-1, self.size + (alignment if huge else 0))
        except (OSError, OverflowError, ValueError):
            raise CompileError(
                "T0327",
                f"no memory for {size} bytes of scratch space",
                helps="choose smaller shapes or tiles, or raise the memory limit (`ulimit -v`)",
            ) from None
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = -(-start // alignment) * alignment
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                return  # a kernel without huge pages


class Arena:
    """Scratch blocks that are kept and only grow.

    `take` and `give` bracket one call; two threads get two blocks (`list.pop` and `append` are
    atomic).
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[Block] = []

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes, its contents undefined, until it is given back."""
        try:
            block = self._free.pop()
        except IndexError:
            return Block(size)
        return block if block.size >= size else Block(size)

    def give(self, block: Block) -> None:
        """Keeps `block` for the next `take`."""
        self._free.append(block)


def _share_torch_threads() -> None:
    """Makes the symbols of torch's own libgomp global, when torch is loaded and has one."""
    torch = sys.modules.get("torch")
    file = getattr(torch, "__file__", None)
    if file is None or not hasattr(ctypes, "RTLD_GLOBAL") or sys.platform != "linux":
        return
    package = Path(file).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        for path in sorted(folder.glob("libgomp*.so*")):
            if path.name == "libgomp.so.1":
                continue  # found by its name anyway; loading it by path could make a second copy
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
