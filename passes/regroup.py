"""Sums of products of whole numbers are added up as integers, group by group."""

from __future__ import annotations

from dataclasses import replace

from tcc.ir.cascade import Cascade, Definition, Einsum, targets
from tcc.ir.infer import build
from tcc.ir.target import Target
from tcc.passes._prune import drop, drop_ranks, share
from tcc.passes._regroup_sum import regrouped
from tcc.passes.derive import derive


def regroup(c: Cascade, target: Target) -> Cascade:
    """A sum over k of whole numbers of at most 8 bits, times what depends on k through k // G alone, becomes a sum over
    groups of what is common to a group times an integer sum, which is exact.

    Y[m,n] = f32(Q[m,k]) * S[m,k//G] * (f32(W[n,k]) - 8) * R[n,k//G]
      -->  D[m,n,g] = i32(Q[m,G*g+j]) * i32(W[n,G*g+j]);  A[m,g] = i32(Q[m,G*g+j])
           Y[m,n] = f32(D[m,n,g] - A[m,g] * 8) * S[m,g] * R[n,g]

    What a group has in common leaves its sum, also as a summand of a factor: sums of the other factor alone come of it,
    which products with equal first operands share. A group's sum has to fit in 32 bits, whatever the values are; a
    summand leaves a factor only where it is a whole number itself, so that nothing cancels that did not before. Products
    that `derive` computes tile by tile in a walk, such as scores, stay as they are.
    """
    if target.kind != "cpu" or c.groups:
        return c
    out: list[Definition] = []
    program = c
    walked: set[str] | None = None
    for d in c.definitions:
        found = regrouped(program, d)
        if found is not None:
            walked = _walked(derive(c, target)) if walked is None else walked
        if found is None or (walked and walked & set(targets(d))):
            out.append(d)
            continue
        program, made = found
        out += made
    if program is c:
        return c
    return drop_ranks(drop(share(build(replace(program, definitions=tuple(out))))))


def _walked(c: Cascade) -> set[str]:
    """What the joint reductions of a program read, through element-wise definitions."""
    found: set[str] = set()
    stack = [f.tensor for j in c.joints for f in j.fields]
    while stack:
        for d in c.defining(stack.pop()):
            for name in {a.tensor for a in d.reads} - found:
                found.add(name)
                if not any(isinstance(x, Einsum) and x.reduced for x in c.defining(name)):
                    stack.append(name)
    return found
