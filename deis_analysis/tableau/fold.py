r"""The one loop over a table.

.. math:: u_k = \sum_{j<k} S_{kj} u_j + \sum_{j<k} F_{kj} p_j + \sum_l Z_{kl} z_l , \qquad p_k = \text{output}(k, u_k) .

It runs over any values that know ``+`` and multiplication by a number: arrays (`run`), coefficients of x_T, outputs and
noises (the Butcher form), affine functions (the law), depths, exact states put in place (local errors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from deis_analysis.tableau.rows import Row

Add = Callable[[list[tuple[Any, Any]]], Any]


def add_up(parts: list[tuple[Any, Any]]) -> Any:
    """Σ c·a."""
    total = parts[0][0] * parts[0][1]
    for c, a in parts[1:]:
        total = total + c * a
    return total


def fold(
    rows: Iterable[Row],
    states: dict[int, Any],
    output: Callable[[int, Any], Any],
    noise: Callable[[int], Any] | None = None,
    *,
    outputs: dict[int, Any] | None = None,
    place: Callable[[int, Any], Any] | None = None,
    add: Add = add_up,
    zero: Any = None,
) -> Any:
    """Walk ``rows`` once; the value at the last node.

    Args:
        rows: the plan of a table, or consecutive rows of it.
        states: node → value known beforehand: {0: x_T}, and earlier ones if ``rows`` starts later. It is worked in:
            values that no later row needs are let go.
        output: (node, its value) → the value of the model's output there.
        noise: column → value of the noise.
        outputs: as ``states``, of outputs known beforehand.
        place: (node, value as computed) → the value to go on with; it sees every node in order.
        add: [(coefficient, value), …] → their combination, a new value.
        zero: what a row without terms is; by default 0 times the value at the first row's predecessor.
    """
    outputs = {} if outputs is None else outputs
    value: Any = None
    for k, of_states, of_outputs, of_noises, evaluate, drop_states, drop_outputs, drop_after_call in rows:
        if k or 0 not in states:
            parts = [(c, states[j]) for c, j in of_states]
            parts += [(c, outputs[j]) for c, j in of_outputs]
            if of_noises:
                assert noise is not None
                parts += [(c, noise(j)) for c, j in of_noises]
            value = None  # no local name keeps a value that the plan lets go
            value = add(parts) if parts else zero
            del parts
            for j in drop_states:
                states.pop(j, None)
            for j in drop_outputs:
                outputs.pop(j, None)
        else:
            value = states[k]
        if place is not None:
            value = place(k, value)
        states[k] = value
        if evaluate:
            outputs[k] = output(k, value)
            if drop_after_call:
                del states[k]
    return value
