"""Benchmarks as ratios, each pair measured side by side in one run: ``make bench``.

Every timing is the fastest of many short rounds in which the competitors alternate, on one thread.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import deis_analysis as da


def fastest(competitors: dict[str, Callable[[], object]], seconds: float = 1.5) -> dict[str, float]:
    """Seconds per call of each competitor: the fastest round, rounds alternating."""
    inner = {}
    for name, call in competitors.items():
        call()
        start = time.perf_counter()
        call()
        inner[name] = max(1, int(2e-3 / max(time.perf_counter() - start, 1e-7)))
    best = dict.fromkeys(competitors, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in competitors.items():
            start = time.perf_counter()
            for _ in range(inner[name]):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / inner[name])
    return best


def riemann_weights(process: da.Process, ts: np.ndarray, degree: int, points: int = 10_000) -> np.ndarray:
    """The released DEIS rule: each weight a left Riemann sum of 10,000 points."""
    weights = np.zeros((ts.size - 1, degree + 1))
    for i in range(ts.size - 1):
        nodes = ts[max(0, i - degree) : i + 1][::-1]
        tau = np.linspace(ts[i], ts[i + 1], points, endpoint=False)
        rate = process.kappa_rate("eps", tau) * (ts[i + 1] - ts[i]) / points
        for j in range(nodes.size):
            others = np.delete(nodes, j)
            weights[i, j] = np.sum(rate * np.prod((tau[:, None] - others) / (nodes[j] - others), axis=1))
    return weights


def bench_build() -> list[dict[str, object]]:
    """Building a tab3 table against forming its weights by Riemann sums."""
    process, rows = da.VPLinear(), []
    for steps in (10, 100):
        ts = da.grid(process, steps, "t2", 1.0, 1e-3)
        found = fastest(
            {
                "ours": lambda ts=ts: da.build("tab3", process, ts),
                "riemann": lambda ts=ts: riemann_weights(process, ts, 3),
            }
        )
        aim = "< 2 ms" if steps == 10 else ""
        rows.append(
            {
                "what": f"build tab3, {steps} steps",
                "ours": f"{found['ours'] * 1e3:.2f} ms",
                "beside": f"10,000-point Riemann sums {found['riemann'] * 1e3:.1f} ms",
                "ratio": found["ours"] / found["riemann"],
                "aim": aim,
            }
        )
    return rows


def bench_run() -> list[dict[str, object]]:
    """Per model call, `run` of tab3 against a bare ``x = c*x + d*e``; the model returns a stored tensor."""
    process, rows = da.VPLinear(), []
    table = da.build("tab3", process, da.grid(process, 20, "t2", 1.0, 1e-3))
    for shape, aim in (((16,), 4.0), ((64, 3, 32, 32), 2.3)):
        x, e = torch.randn(2, *shape, dtype=torch.float32)

        def bare(x: torch.Tensor = x, e: torch.Tensor = e) -> torch.Tensor:
            for _ in range(table.nfe):
                x = 0.99 * x + 0.01 * e
            return x

        found = fastest({"ours": lambda x=x, e=e: da.run(table, lambda x, t: e, x), "bare": bare}, 4.0)
        per_call = {name: value / table.nfe * 1e6 for name, value in found.items()}
        rows.append(
            {
                "what": f"run tab3 per call, {shape}",
                "ours": f"{per_call['ours']:.1f} µs",
                "beside": f"bare update {per_call['bare']:.1f} µs",
                "ratio": found["ours"] / found["bare"],
                "aim": f"<= {aim}",
            }
        )
    return rows


def bench_denoiser() -> list[dict[str, object]]:
    """The ideal denoiser against its two matrix products, x·mᵀ and r·m."""
    process, rows = da.VPLinear(), []
    for batch, count, dimension in ((64, 1797, 64), (16, 10_000, 3072)):
        data, x = torch.randn(count, dimension, dtype=torch.float64), torch.randn(batch, dimension, dtype=torch.float64)
        share = torch.rand(batch, count, dtype=torch.float64)
        model = da.ideal_denoiser(data, process)
        found = fastest(
            {
                "ours": lambda model=model, x=x: model(x, 0.3),
                "products": lambda x=x, data=data, share=share: (x @ data.T, share @ data),
            },
            4.0,
        )
        rows.append(
            {
                "what": f"ideal denoiser, batch {batch}, {count} x {dimension}",
                "ours": f"{found['ours'] * 1e3:.2f} ms",
                "beside": f"its two matrix products {found['products'] * 1e3:.2f} ms",
                "ratio": found["ours"] / found["products"],
                "aim": "< 3",
            }
        )
    return rows


def bench_import() -> list[dict[str, object]]:
    """A fresh interpreter that imports the package against one that imports NumPy."""
    names = {"ours": "deis_analysis", "numpy": "numpy"}
    found = fastest(
        {
            key: lambda name=name: subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            for key, name in names.items()
        },
        10.0,
    )
    return [
        {
            "what": "import deis_analysis",
            "ours": f"{found['ours'] * 1e3:.0f} ms",
            "beside": f"import numpy {found['numpy'] * 1e3:.0f} ms",
            "ratio": found["ours"] / found["numpy"],
            "aim": "< 3",
        }
    ]


def main() -> None:
    """Run all benchmarks, print a table, write JSON where an argument names a file."""
    torch.set_num_threads(1)
    rows = [row for bench in (bench_import, bench_build, bench_run, bench_denoiser) for row in bench()]
    for row in rows:
        aim = f"   aim {row['aim']}" if row["aim"] else ""
        print(f"{row['what']:42s} {row['ours']:>10s}   {row['beside']:42s} ratio {row['ratio']:6.3f}{aim}")
    if len(sys.argv) > 1:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        Path(sys.argv[1]).write_text(json.dumps({"rows": rows, "versions": versions}, indent=1))


if __name__ == "__main__":
    main()
