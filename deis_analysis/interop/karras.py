"""A table of numbers as a sampler of k-diffusion's kind. This file needs torch only, and may be copied."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def table_sampler(table: dict[str, Any], own_scale: bool = False) -> tuple[Callable[..., Any], list[float]]:
    """(function, levels) of a table.

    ``function(model, x, sigmas=None, extra_args=None, callback=None, disable=None)`` goes from x at the first level to
    the result at the last; ``model(x, sigma, **extra_args)``, sigma (batch,), answers with the denoised x₀. ``sigmas``
    are the levels, or None; ``disable`` is not used, no bar is shown. ``callback`` is called once a step with x, i,
    sigma, sigma_hat, denoised. States are kept in float32 or better; noises are ``torch.randn_like``.

    Args:
        table: see `scheduler.TableauScheduler`; what the network is told is left to ``model``.
        own_scale: the state is the process's α x₀ + σ ε and its level σ, as in ComfyUI's flows; by default it is
            x₀ + ρ ε, and its level is ρ = σ/α.

    Raises:
        ValueError: a node without signal, where ρ is infinite; when called: other levels than the table's.
    """
    alpha, sigma, grid = table["alpha"], table["sigma"], table["grid_nodes"]
    if not own_scale and min(alpha) <= 0.0:
        raise ValueError(
            f"table: alpha=0 at node {alpha.index(min(alpha))}, a level without end; allowed: one that starts later"
        )
    level = sigma if own_scale else [s / a for s, a in zip(sigma, alpha, strict=True)]
    scale = [1.0] * len(alpha) if own_scale else alpha  # the process's state over that of the function
    levels = [level[k] for k in grid]
    parts = _denoised_parts(table)

    def sample_table(
        model: Any, x: Any, sigmas: Any = None, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Any:
        """The table's sampler; see `table_sampler`."""
        _check(sigmas, levels)
        ask = _asked(model, extra_args or {}, callback, x, level, grid, list(parts))
        return _run(table, parts, scale, ask, x)

    return sample_table, levels


def _asked(model: Any, extra: Any, callback: Any, x: Any, level: list[float], grid: list[int], calls: list[int]) -> Any:
    """A function (node, state) → x₀ that calls the model, and the callback at the first call of each step."""
    firsts = {next((k for k in calls if a <= k < b), -1): i for i, (a, b) in enumerate(pairwise(grid))}

    def ask(k: int, seen: Any) -> Any:
        denoised = model(seen, level[k] * x.new_ones([x.shape[0]]), **extra)
        if callback is not None and k in firsts:
            step = firsts[k]
            told = {"i": step, "sigma": level[grid[step]], "sigma_hat": level[k]}
            callback({"x": seen, "denoised": denoised, **told})
        return denoised

    return ask


def _run(table: dict[str, Any], parts: dict[int, tuple[float, float]], scale: list[float], ask: Any, x: Any) -> Any:
    """The result, from x at the first node."""
    like = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    states: dict[int, Any] = {0: scale[0] * like}
    outputs: dict[int, Any] = {}
    noises: dict[int, Any] = {}
    last = len(scale) - 1
    for k in range(last + 1):
        if k:
            states[k] = _row(table, k, states, outputs, noises, like)
        if k in parts:
            from_state, from_denoised = parts[k]
            denoised = ask(k, (states[k] / scale[k]).to(x.dtype))
            outputs[k] = from_state * states[k] + from_denoised * denoised.to(like.dtype)
    return (states[last] / scale[last]).to(x.dtype)


def _denoised_parts(table: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Per call (c, d): the table's prediction is c·(α x₀ + σ ε) + d·x₀."""
    found = {}
    for k in sorted({j for row in table["outputs"] for j, _ in row}):
        a, s = table["alpha"][k], table["sigma"][k]
        if table["prediction"] != "x0" and s <= 0.0:
            raise ValueError(f"table: sigma=0 at node {k}, where the model is called; allowed: a level above 0")
        if table["prediction"] == "x0":
            found[k] = 0.0, 1.0
        elif table["prediction"] == "eps":
            found[k] = 1.0 / s, -a / s
        elif table["kind"] == "flow":
            found[k] = 1.0 / s, -1.0 - a / s
        else:
            found[k] = a / s, -s - a * a / s
    return found


def _row(table: dict[str, Any], k: int, states: dict, outputs: dict, noises: dict, like: Any) -> Any:
    """u_k."""
    for j, _ in table["noise"][k]:
        if j not in noises:
            noises[j] = torch.randn_like(like)
    total = torch.zeros_like(like)
    for known, terms in ((states, table["states"]), (outputs, table["outputs"]), (noises, table["noise"])):
        for j, c in terms[k]:
            total = total + c * known[j]
    return total


def _check(sigmas: Any, levels: list[float]) -> None:
    """ValueError unless ``sigmas`` are the levels, to the rounding of float32."""
    if sigmas is None:
        return
    given = [float(s) for s in sigmas]
    same = len(given) == len(levels) and all(
        abs(a - b) <= 1e-5 * max(b, 1e-3) for a, b in zip(given, levels, strict=True)
    )
    if not same:
        shown = ", ".join(f"{s:.6g}" for s in given[:20])
        wanted = ", ".join(f"{s:.6g}" for s in levels)
        raise ValueError(f"sigmas=[{shown}] are not the table's, whose coefficients go with [{wanted}]; or give None")
