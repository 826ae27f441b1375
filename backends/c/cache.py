"""An entry that `get` returns holds exactly the bytes that some `put` of the same key was given.

One private folder (`TCC_CACHE_DIR`, else the platform's cache folder) holds, per entry, a data
file named by key and content and a small reference file `KEY.SUFFIX.ref` with size, digest and
name of the data. Both are written to a temporary name and moved into place, data first, so
readers and writers in many processes need no lock, a killed writer leaves nothing that is ever
read, and a file that is mapped into a running process is never overwritten. A damaged entry is a
miss. The folder may be deleted at any time. When it cannot be written, a private temporary folder
stands in for it, after one warning.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.util
import os
import pickle
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tcc.ir.diagnostics import CompileError

T = TypeVar("T")

_TEMPORARY = ".tmp-"
_STALE_AFTER_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """Where the cache lies and how much it holds."""

    path: Path
    entries: int
    bytes: int


def directory() -> Path:
    """The cache folder, made private (0700) on first use.

    Raises T3 when the folder belongs to another user or others may write to it, since code is
    loaded from it.
    """
    path = _configured()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        return _fallback(path, error.strerror or str(error))
    _refuse_shared(path, status)
    return path


def get(key: str, suffix: str) -> Path | None:
    """The file put under `key` and `suffix`, if it is there and whole."""
    for folder in _folders():
        path = _whole(folder, key + suffix)
        if path is not None:
            return path
    return None


def put(key: str, suffix: str, data: bytes) -> Path:
    """Keeps `data` under `key` and `suffix`, and returns the file that holds it."""
    folder = directory()
    try:
        return _store(folder, key, suffix, data)
    except OSError as error:
        reason = error.strerror or str(error)
    try:
        return _store(_fallback(_configured(), reason), key, suffix, data)
    except OSError as error:
        raise _nowhere(error) from None


def recall(key: str, make: Callable[[], T]) -> T:
    """What `make` returned under `key` in this or an earlier process. `key` has to say all that the value depends on,
    tcc's own source included; what cannot be kept is made again."""
    path = get(key, ".pickle")
    if path is not None:
        with contextlib.suppress(Exception):  # whatever a foreign or damaged pickle raises: a miss
            found: T = pickle.loads(path.read_bytes())
            return found
    value = make()
    with contextlib.suppress(CompileError, pickle.PicklingError):
        put(key, ".pickle", pickle.dumps(value))
    return value


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A fresh private folder, gone afterwards, also after Ctrl-C; an `OSError` in it becomes T3.

    It lies in the system's temporary folder, so that a full cache disk stops no build.
    """
    _sweep(directory())
    try:
        work = Path(tempfile.mkdtemp(prefix="tcc-build-"))
    except OSError:
        try:
            work = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=directory()))
        except OSError as error:
            raise _nowhere(error) from None
    try:
        yield work
    except OSError as error:
        raise _nowhere(error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def digest(*parts: str | bytes) -> str:
    """The sha256 of `parts`; `("ab", "c")` and `("a", "bc")` differ."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


@functools.cache
def own_source_hash() -> str:
    """The hash of every `.py` file of tcc, so that an entry never outlives the code that made it.

    The files are read only when one of them changed since a previous process did so.
    """
    files = sorted({path for root in _package_roots() for path in root.rglob("*.py")})
    stamps = []
    for path in files:
        status = path.stat()
        stamps.append(f"{path}\0{status.st_mtime_ns}\0{status.st_size}")
    stamp = digest("tcc sources", *stamps)
    known = get(stamp, ".own")
    if known is not None:
        return known.read_text()
    result = digest(*(path.read_bytes() for path in files))
    put(stamp, ".own", result.encode())
    return result


def clear() -> int:
    """Deletes every entry, and returns how many there were."""
    entries = 0
    for folder in _folders():
        for path in list(folder.iterdir()):
            entries += path.name.endswith(".ref")
            if path.is_dir() and path.name.startswith(_TEMPORARY):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and (path.name.startswith(_TEMPORARY) or _is_entry(path.name)):
                with contextlib.suppress(OSError):
                    path.unlink()
    return entries


def info() -> CacheInfo:
    """Path, number of entries and bytes of the cache in use."""
    folder = directory()
    names = [path for path in folder.iterdir() if path.is_file() and _is_entry(path.name)]
    entries = sum(path.name.endswith(".ref") for path in names)
    return CacheInfo(folder, entries, sum(path.stat().st_size for path in names))


def _configured() -> Path:
    chosen = os.environ.get("TCC_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tcc"))


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise CompileError(
            "T0321",
            f"the cache folder `{path}` is not a folder",
            helps="set `TCC_CACHE_DIR` to a folder of your own",
        )
    if not hasattr(os, "getuid"):
        return
    if status.st_uid != os.getuid():
        raise CompileError(
            "T0321",
            f"the cache folder `{path}` belongs to user {status.st_uid}, not to you"
            f" (user {os.getuid()})",
            helps="tcc loads code from its cache: set `TCC_CACHE_DIR` to a folder of your own",
        )
    if status.st_mode & 0o022:
        raise CompileError(
            "T0321",
            f"the cache folder `{path}` can be written by others"
            f" (mode {stat.S_IMODE(status.st_mode):04o})",
            helps=f"tcc loads code from its cache: run `chmod go-w {path}`, or set `TCC_CACHE_DIR`"
            " to a folder of your own",
        )


def _fallback(wanted: Path, reason: str) -> Path:
    """The stand-in folder, one per process; its first use warns."""
    first = _stand_in.cache_info().currsize == 0
    path = _stand_in()
    if first:
        print(
            f"warning: cannot write to the cache folder `{wanted}` ({reason}):"
            " nothing is kept after this process",
            file=sys.stderr,
        )
    return path


@functools.cache
def _stand_in() -> Path:
    try:
        path = Path(tempfile.mkdtemp(prefix="tcc-cache-"))
    except OSError as error:
        raise _nowhere(error) from None
    atexit.register(_remove_if_ours, os.getpid(), path)
    return path


def _remove_if_ours(process: int, path: Path) -> None:
    if os.getpid() == process:  # a forked child must not take it from its parent
        shutil.rmtree(path, ignore_errors=True)


def _nowhere(error: OSError) -> CompileError:
    return CompileError(
        "T0322",
        f"no folder to build code in ({error.strerror or error})",
        helps="set `TCC_CACHE_DIR` or `TMPDIR` to a folder with free space that you may write to",
    )


def _folders() -> list[Path]:
    """The folders to read from: the configured one, then the stand-in if it is in use."""
    folders = [directory()]
    if _stand_in.cache_info().currsize and _stand_in() not in folders:
        folders.append(_stand_in())
    return folders


def _is_entry(name: str) -> bool:
    key = name.split(".", 1)[0]
    return len(key) == 64 and all(letter in "0123456789abcdef" for letter in key)


def _store(folder: Path, key: str, suffix: str, data: bytes) -> Path:
    content = hashlib.sha256(data).hexdigest()
    path = folder / f"{key}.{content[:16]}{suffix}"
    replace(path, data)
    replace(folder / f"{key}{suffix}.ref", f"{len(data)} {content} {path.name}".encode())
    return path


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: under a temporary name, then moved into place."""
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _whole(folder: Path, name: str) -> Path | None:
    try:
        text, content, file = (folder / f"{name}.ref").read_text().split()
        size = int(text)
        path = folder / os.path.basename(file)
        data = path.read_bytes()
    except (OSError, ValueError):
        return None
    whole = len(data) == size and hashlib.sha256(data).hexdigest() == content
    return path if whole else None


def _sweep(folder: Path) -> None:
    """Removes what killed processes left behind more than a day ago."""
    for path in folder.glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _STALE_AFTER_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _package_roots() -> list[Path]:
    """The folders of tcc's packages: nested in a wheel, side by side in a checkout."""
    roots = set()
    for name in ("tcc", "tcc.ir", "tcc.passes", "tcc.backends", "tcc.frontends"):
        found = importlib.util.find_spec(name)
        for folder in (found.submodule_search_locations or ()) if found else ():
            roots.add(Path(folder).resolve())
    return sorted(roots)
