"""The walks over one rank of one tensor: every definition is put into the earliest pass that its operands allow.

Time runs in half passes: an element-wise result of pass n is there at time 2n - 1, while pass n runs; what needs the
rank from end to end is there at 2n, when it has ended. A definition that walks the rank joins the pass of its operands,
and starts pass n + 1 where one of them is there only at 2n. What walks only summaries of tiles starts no pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcc.ir.cascade import Cascade, Definition, Einsum, Recurrence, Step, steps, targets
from tcc.ir.expr import Access, Expr, Var, accesses, text, variables
from tcc.ir.joint_verify import walk_of
from tcc.passes._count_alignment import (
    backwards,
    kept,
    read,
    written,
)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """A definition that walks the rank in pass `number`: it joins the walk `before`, or had to wait."""

    definition: Definition
    number: int
    before: Walk | None = None
    wait: Wait | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """A tensor that is there only when the walk `end` has ended; `before`: the operand that made it so."""

    end: Walk
    tensor: str
    before: Wait | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The tensors from the end of the walk to this one."""
        found: list[str] = []
        at: Wait | None = self
        while at is not None:
            found.append(at.tensor)
            at = at.before
        return tuple(reversed(found))


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """A tensor's elements lie along the rank at the coordinate `at`, and are there at `time`.

    `whole`: they are no summaries of tiles. `running`: each holds all that lies before it.
    """

    at: Expr
    time: int = 0
    whole: bool = True
    running: bool = False
    walk: Walk | None = None
    wait: Wait | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A tensor depends on the rank from end to end, and is there at `time`, or as it grows inside of a joint."""

    time: int
    wait: Wait
    joint: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What is known of a tensor: the ways in which its elements lie along the rank, and what it waits for."""

    along: tuple[Along, ...] = ()
    done: tuple[Done, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    at: Expr
    names: frozenset[str]
    source: Along


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    done: Done
    own: frozenset[str]  # for each value of these the walk is another one


Key = tuple[str, int | None]  # a tensor; the joint inside of which it is read
WalkKey = tuple[int, int | None, frozenset[str]]  # a definition, a joint, the variables that walk


@dataclass(frozen=True, slots=True, eq=False)
class _Evaluation:
    """A definition as it is evaluated for a reader: inside of which joint, and which states it needs."""

    target: Key
    joint: int | None
    reads: tuple[tuple[Access, Key], ...]


class Program:
    """What all counts of one cascade share: its steps in order, its joints, what is needed of them."""

    def __init__(self, c: Cascade) -> None:
        self.c = c
        walks = [walk_of(c, j) for j in c.joints]
        self.order: list[Step] = list(steps(c))
        self.fields = {t: n for n, w in enumerate(walks) for t in w.fields}
        self.inner = [{d.target for ds in w.between.values() for d in ds} for w in walks]
        self.recurrent = {id(d): s.var for s in self.order if isinstance(s, Recurrence) for d in s.steps}  # fmt: skip
        self.stops = {id(d): s.stop for s in self.order if isinstance(s, Recurrence) for d in s.steps}  # fmt: skip
        self.extents = {id(d): c.extents(d) for d in c.definitions if isinstance(d, Einsum)}
        self._read: dict[tuple[int, str], tuple[Expr, frozenset[str]]] = {}
        self._left: dict[tuple[int, str], tuple[Expr, bool] | None] = {}
        needed = self._needed()
        self.plans = {id(d): list(self._plan(d, needed)) for d in c.definitions}

    def _needed(self) -> set[Key]:
        """Which tensors are read at all, inside of a joint or after it."""
        stack: list[Key] = [(t.name, None) for t in self.c.outputs]
        stack += [(a.tensor, None) for s in self.c.stops for a in accesses(s.condition)]
        found: set[Key] = set()
        while stack:
            key = stack.pop()
            if key in found:
                continue
            found.add(key)
            for d in self.c.defining(key[0]):
                joint = self.joint_of(d, key[1])
                stack += [self.key(a.tensor, joint) for a in d.reads]
        return found

    def read(self, d: Einsum, a: Access, at: Expr) -> tuple[Expr, frozenset[str]]:
        """The coordinate that `a` reads, and its variables."""
        key = id(a), text(at)
        if key not in self._read:
            found = read(at, a, self.extents[id(d)])
            self._read[key] = found, frozenset(variables(found))
        return self._read[key]

    def left(self, d: Einsum, at: Expr) -> tuple[Expr, bool] | None:
        """What the target keeps of a coordinate, over its dimensions, and whether that tells elements apart."""
        key = id(d), text(at)
        if key not in self._left:
            extents = self.extents[id(d)]
            found = kept(self.c, d, at, extents)
            if found is not None:
                found = written(self.c, d, found[0], extents), found[1]
            self._left[key] = found
        return self._left[key]

    def joint_of(self, d: Definition, read_in: int | None) -> int | None:
        """The joint inside of which `d` is evaluated for a reader."""
        return self.fields.get(d.target, read_in)

    def key(self, tensor: str, joint: int | None) -> Key:
        return (tensor, joint if joint is not None and tensor in self.inner[joint] else None)

    def _plan(self, d: Definition, needed: set[Key]) -> Iterator[_Evaluation]:
        stop = self.stops.get(id(d))
        more = accesses(stop.condition) if stop is not None else []
        known = self.extents.get(id(d), {})
        reads = [*d.reads, *(a for a in more if set(variables(a)) <= known.keys())]
        for read_in in (*range(len(self.inner)), None):
            joint = self.joint_of(d, read_in)
            for t in targets(d):
                if (t, read_in) in needed:
                    found = tuple((a, self.key(a.tensor, joint)) for a in reads)
                    yield _Evaluation((t, read_in), joint, found)


class Counter:
    """The walks over the coordinate `at` of `tensor`."""

    def __init__(self, p: Program, tensor: str, at: Expr, running: bool) -> None:
        self.p, self.c = p, p.c
        given = State((Along(at, running=running),))
        self.state: dict[Key, State] = {
            (tensor, joint): given for joint in (None, *range(len(p.inner)))
        }
        self.given = dict(self.state)
        self.parts: dict[Key, dict[int, State]] = {}  # a tensor may have several definitions
        self.walks: dict[WalkKey, Walk] = {}
        self.repeated: tuple[str, Walk] | None = None  # variable of a recurrence, its second step
        for step in p.order:
            if isinstance(step, Recurrence):
                self.recurrence(step)
            else:
                self.definition(step)

    def recurrence(self, r: Recurrence) -> None:
        """All steps at once; one step alone where each needs the one before from end to end."""
        mine = {id(d) for d in r.steps}
        rounds: list[dict[WalkKey, int]] = []
        for n in range(3):
            for d in r.steps:
                self.definition(d)
            rounds.append({k: w.number for k, w in self.walks.items() if k[0] in mine})
            if not rounds[0] and n == 0:
                return
            if n == 0:
                first = dict(self.walks), dict(self.state), {k: dict(v) for k, v in self.parts.items()}  # fmt: skip
        if any(number > rounds[1].get(k, number) for k, number in rounds[2].items()):
            grown = [w for k, w in self.walks.items() if k[0] in mine and w.wait is not None]
            self.repeated = r.var, min(grown, key=lambda w: w.number)
            self.walks, self.state, self.parts = first

    def definition(self, d: Definition) -> None:
        for e in self.p.plans[id(d)]:
            reads = [(a, self.state[key]) for a, key in e.reads if key in self.state]
            if not reads:
                continue
            new = self.einsum(d, e.joint, reads) if isinstance(d, Einsum) else self.call(d, reads)
            parts = self.parts.setdefault(e.target, {})
            parts[id(d)] = new
            given = self.given.get(e.target, State())
            self.state[e.target] = _joined((given, *parts.values()))

    def call(self, d: Definition, reads: list[tuple[Access, State]]) -> State:
        """A call needs its operands as a whole, and gives its results as a whole."""
        along = [f for _, s in reads for f in s.along]
        done = [x for _, s in reads for x in s.done]
        walk = self.walk(d, None, along, [_Waiting(x, frozenset()) for x in done], frozenset())
        if not along:
            return State((), tuple(_later(x, d.target) for x in done))
        return State((), (Done(2 * walk.number, Wait(walk, d.target)),))

    def einsum(self, d: Einsum, joint: int | None, reads: list[tuple[Access, State]]) -> State:
        entries: list[_Entry] = []
        waiting: list[_Waiting] = []
        for a, state in reads:
            own: set[str] = set()
            for f in state.along:
                at, names = self.p.read(d, a, f.at)
                if f.running and (not names or backwards(at)):  # the last step needs all steps
                    waiting += [_Waiting(x, frozenset()) for x in _ended(f, a.tensor)]
                if names:
                    entries.append(_Entry(at, names, f))
                    own |= names
            waiting += [_Waiting(x, frozenset(own)) for x in state.done]
        along: list[Along] = []
        done = [_later(w.done, d.target) for w in waiting]
        for names, group in _grouped(entries):
            sources = [e.source for e in group]
            ready = [w for w in waiting if not w.own & names]
            whole = any(f.whole for f in sources)
            walk = self.walk(d, joint, sources, ready, names, whole)
            time, wait = 2 * walk.number - 1, None
            if not whole and walk.wait is not None:  # tiles' summaries, after the walk has ended
                time, wait = 2 * walk.number - 2, _linked(walk.wait, d.target)
            running = any(f.running for f in sources) or self.p.recurrent.get(id(d)) in names
            for e in group:
                if accesses(e.at):
                    continue  # gathered: in another order
                left = self.p.left(d, e.at)
                if left is not None:
                    along.append(
                        Along(left[0], time, left[1] and e.source.whole, running, walk, wait)
                    )
                elif wait is not None:
                    done.append(Done(time, wait))
                else:
                    mine = joint if d.target in self.p.fields else None
                    done.append(Done(time + 1, Wait(walk, d.target), mine))
        return _joined([State(tuple(along), tuple(done))])

    def walk(
        self, d: Definition, joint: int | None, along: list[Along], waiting: list[_Waiting],
        names: frozenset[str], whole: bool = True,
    ) -> Walk:  # fmt: skip
        """The walk of `d` over what lies along the rank: in the pass of its latest operand, or in the next."""
        time, before, wait = 1, None, None
        for f in along:
            if f.time % 2 == 0 and f.time + 1 > time:
                time, before, wait = f.time + 1, None, f.wait
            elif f.time > time:
                time, before, wait = f.time, f.walk, None
        for w in waiting:
            x = w.done
            inside = x.joint is not None and x.joint == joint
            if inside and x.joint is not None and self.c.joints[x.joint].var in names:
                if x.time - 1 > time:  # its value so far will do
                    time, before, wait = x.time - 1, x.wait.end, None
            elif x.time + 1 > time:
                time, before, wait = x.time + 1, None, x.wait
        new = Walk(d, (time + 1) // 2, before, wait)
        if whole and (along or waiting):
            self.walks[id(d), joint, names] = new
        return new


def _linked(wait: Wait, tensor: str) -> Wait:
    return Wait(wait.end, tensor, wait)


def _later(done: Done, tensor: str) -> Done:
    return Done(done.time, _linked(done.wait, tensor), done.joint)


def _ended(f: Along, tensor: str) -> Iterator[Done]:
    """The last of what runs along the rank."""
    if f.wait is not None:
        yield Done(f.time, f.wait)
    elif f.walk is not None:
        yield Done(f.time + f.time % 2, Wait(f.walk, tensor))


def _grouped(entries: list[_Entry]) -> Iterator[tuple[frozenset[str], list[_Entry]]]:
    """Entries that share variables, however indirectly, are one walk."""
    groups: list[tuple[frozenset[str], list[_Entry]]] = []
    for e in entries:
        names, members = e.names, [e]
        rest = []
        for other, more in groups:
            if other & names:
                names, members = names | other, more + members
            else:
                rest.append((other, more))
        groups = [*rest, (names, members)]
    yield from groups


def _joined(states: Iterable[State]) -> State:
    """What any of the definitions makes of a tensor, the later time where two say the same."""
    along: dict[str, Along] = {}
    done: dict[int | None, Done] = {}
    for s in states:
        for f in s.along:
            key = f.at.name if isinstance(f.at, Var) else " ".join(sorted(variables(f.at)))
            old = along.get(key)
            if old is None or f.time > old.time:
                along[key] = f
        for x in s.done:
            first = done.get(x.joint)
            if first is None or x.time > first.time:
                done[x.joint] = x
    return State(tuple(along.values()), tuple(done.values()))
