"""Which intermediates share memory: a buffer takes the place of one of the same size that nothing reads any more."""

from __future__ import annotations


def slots(
    buffers: list[tuple[str, str]], order: list[list[str]], reuse: bool
) -> list[tuple[str, list[str]]]:
    """(bytes, names) per place. `buffers` are (name, bytes as C text), `order` the buffers that each kernel touches.

    >>> slots([("A", "n"), ("B", "n"), ("C", "n")], [["A"], ["A", "B"], ["B", "C"]], True)
    [('n', ['A', 'C']), ('n', ['B'])]
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, names in enumerate(order):
        for name in names:
            first.setdefault(name, i)
            last[name] = i
    out: list[tuple[str, list[str]]] = []
    free: dict[str, list[int]] = {}
    live: list[tuple[int, int, str]] = []  # last use, place, bytes
    for name, size in sorted((b for b in buffers if b[0] in first), key=lambda b: first[b[0]]):
        if reuse:
            for done in [x for x in live if x[0] < first[name]]:
                live.remove(done)
                free.setdefault(done[2], []).append(done[1])
        if free.get(size):
            place = free[size].pop()
            out[place][1].append(name)
        else:
            place = len(out)
            out.append((size, [name]))
        live.append((last[name], place, size))
    return out
