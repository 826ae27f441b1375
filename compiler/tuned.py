"""What `tcc tune` has measured is kept in the cache, per target, machine and version of tcc, and never believed unseen."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, field, replace

from tcc.backends.c import cache
from tcc.ir.target import Target

_WORSE = 0.98  # part of the usual time that other tiles have to come down to


@dataclass(slots=True)
class Measured:
    """The candidates of one kernel: seconds of the whole program with each, as a part of those with the usual tiles."""

    usual: tuple[int, ...]
    ratios: dict[tuple[int, ...], float] = field(default_factory=dict)

    @property
    def best(self) -> tuple[int, ...]:
        """The fastest tiles; the usual ones unless others are 2 % faster."""
        found = min(self.ratios, key=lambda t: (self.ratios[t], t), default=self.usual)
        return found if self.ratios.get(found, 1.0) < _WORSE else self.usual


def tuned(target: Target) -> Target:
    """The target with the tiles that were measured for it on this machine; the same object where there are none."""
    if target.kind != "cpu" or not target.tiles:
        return target
    found = load(target)
    return replace(target, tuned={k: m.best for k, m in found.items()}) if found else target


def load(target: Target) -> dict[str, Measured]:
    """What has been measured, by kernel; what cannot be read counts as nothing."""
    path = cache.get(_key(target), ".tuned")
    if path is None:
        return {}
    try:
        return {
            str(e["kernel"]): Measured(
                _tiles(e["usual"]), {_tiles(t): float(r) for t, r in e["ratios"]}
            )
            for e in json.loads(path.read_text(encoding="utf-8"))
        }
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def save(target: Target, found: dict[str, Measured]) -> None:
    """Keeps what has been measured, beside what other processes have kept meanwhile."""
    kept = load(target)
    for k, m in found.items():
        kept.setdefault(k, m).ratios.update(m.ratios)
    entries = [
        {"kernel": k, "usual": m.usual, "ratios": sorted(m.ratios.items())} for k, m in kept.items()
    ]
    before = cache.get(_key(target), ".tuned")
    path = cache.put(_key(target), ".tuned", json.dumps(entries).encode())
    if before is not None and before != path:
        before.unlink(missing_ok=True)


def _tiles(numbers: list[int]) -> tuple[int, ...]:
    from tcc.passes._cpu_tiles import stored_tiles

    return astuple(stored_tiles(numbers))


def _key(target: Target) -> str:
    from tcc.machine import this_machine

    plain = replace(target, tuned={})
    return cache.digest("tuned", cache.own_source_hash(), repr(this_machine()), repr(plain))
