"""Rooted trees, the order conditions that they stand for, and the order of a Runge–Kutta method."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from typing import Any

import sympy as sp

from deis_analysis.symbolic.equations import define
from deis_analysis.validate import positive_int

Tree = tuple  # a rooted tree is the sorted tuple of the trees that hang from its root; () is a single node


def _grafts(tree: Tree) -> set[Tree]:
    """The trees that one more leaf makes of ``tree``."""
    grown = {tuple(sorted((*tree, ())))}
    for i, child in enumerate(tree):
        grown |= {tuple(sorted((*tree[:i], larger, *tree[i + 1 :]))) for larger in _grafts(child)}
    return grown


@cache
def rooted_trees(order: int) -> tuple[Tree, ...]:
    """The rooted trees with ``order`` nodes: 1, 1, 2, 4, 9, 20, … of them."""
    if positive_int("order", order) == 1:
        return ((),)
    return tuple(sorted(set().union(*(_grafts(tree) for tree in rooted_trees(order - 1)))))


def _nodes(tree: Tree) -> int:
    return 1 + sum(_nodes(child) for child in tree)


def tree_density(tree: Tree) -> int:
    """γ(τ): the number of nodes times the densities of the root's subtrees. [Hairer, Nørsett & Wanner, II.2]"""
    density = _nodes(tree)
    for child in tree:
        density *= tree_density(child)
    return density


def _elementary_weight(tree: Tree) -> sp.Expr:
    """Σ b_i …: a factor a_ij for every edge to an inner node, c_i for every edge to a leaf."""
    stages, (a, b, c) = sp.Symbol("s", integer=True, positive=True), map(sp.IndexedBase, "abc")
    names = (sp.Symbol(f"i_{n}", integer=True) for n in itertools.count(1))
    limits: list[Any] = []

    def product(node: Tree) -> tuple[sp.Symbol, sp.Expr]:
        index, factors = next(names), sp.S.One
        limits.append((index, 1, stages))
        for child in node:
            if child:
                inner, below = product(child)
                factors *= a[index, inner] * below
            else:
                factors *= c[index]
        return index, factors

    root, factors = product(tree)
    return sp.Sum(b[root] * factors, *limits)


def order_conditions(order: int) -> list[tuple[Tree, sp.Eq]]:
    """Butcher's conditions that order ``order`` adds to the lower ones: (tree τ, Σ b … = 1/γ(τ)), for c_i = Σ_j a_ij.

    Generated from the rooted trees; 1, 1, 2, 4, 9 conditions for the orders 1 … 5. [Hairer, Nørsett & Wanner, II.2]
    """
    return [(t, define(_elementary_weight(t), sp.Rational(1, tree_density(t)))) for t in rooted_trees(order)]


def _rationals(name: str, values: Iterable[Any]) -> list[Fraction]:
    exact = []
    for value in values:
        if not (isinstance(value, (int, Fraction)) or getattr(value, "is_Rational", False)):
            raise ValueError(f"{name} holds {value!r}; allowed: int, Fraction or sympy Rational")
        exact.append(Fraction(int(value.p), int(value.q)) if isinstance(value, sp.Rational) else Fraction(value))
    return exact


def _stage_vectors(tree: Tree, rows: list[list[Fraction]], c: list[Fraction]) -> set[tuple[Fraction, ...]]:
    """What multiplies b_i in the condition of ``tree``, for every stage i.  A leaf is a derivative by y or by t: with
    Σ_j a_ij ≠ c_i the two differ, and the condition has to hold for each choice."""
    factors = []
    for child in tree:
        below = _stage_vectors(child, rows, c)
        factor = {tuple(sum((x * y for x, y in zip(row, v, strict=True)), Fraction(0)) for row in rows) for v in below}
        factors.append(factor if child else factor | {tuple(c)})
    ones = (Fraction(1),) * len(c)
    vectors = {ones}
    for factor in factors:
        vectors = {tuple(x * y for x, y in zip(u, v, strict=True)) for u in vectors for v in factor}
    return vectors


def butcher_order(a: Iterable[Iterable[Any]], b: Iterable[Any], c: Iterable[Any]) -> int:
    """The order of the explicit Runge–Kutta method (a, b, c), in exact rational arithmetic and from both sides: every
    condition up to this order holds and one of the next order fails (an explicit method of s stages has order ≤ s).

    Args:
        a: s rows of rationals, strictly lower triangular; trailing zeros of a row may be left out.
        b, c: s rationals each.  Rows of ``a`` that do not sum to c are judged as they act on ẏ = f(t, y).

    Source: Hairer, Nørsett & Wanner, Theorem II.2.13.
    """
    weights, times = _rationals("b", b), _rationals("c", c)
    rows, s = [_rationals("a", row) for row in a], len(weights)
    if s == 0 or len(times) != s or len(rows) != s:
        raise ValueError(f"a, b, c have {len(rows)}, {s}, {len(times)} rows; allowed: one size of at least 1")
    for i, row in enumerate(rows):
        if len(row) > s or any(row[i:]):
            raise ValueError(f"a[{i}]={[str(x) for x in row]} must be strictly lower triangular: an explicit method")
    rows = [row + [Fraction(0)] * (s - len(row)) for row in rows]

    def holds(tree: Tree) -> bool:
        sums = (sum(x * y for x, y in zip(weights, v, strict=True)) for v in _stage_vectors(tree, rows, times))
        return all(total * tree_density(tree) == 1 for total in sums)

    return next(p for p in itertools.count(0) if not all(map(holds, rooted_trees(p + 1))))
