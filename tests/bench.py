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
    """Building a table against forming the weights of tab3 by Riemann sums."""
    process, rows = da.VPLinear(), []
    aims = {("tab3", 10): "<= 1 ms", ("tab3", 100): "<= 5 ms", ("tab3", 1000): "<= 40 ms"}
    for name, steps in (*aims, ("unipc3_bh2_x0", 10), ("unipc3_bh2_x0", 100)):
        ts = da.grid(process, steps, "t2", 1.0, 1e-3)
        found = fastest(
            {
                "ours": lambda ts=ts, name=name: da.build(name, process, ts),
                "riemann": lambda ts=ts: riemann_weights(process, ts, 3),
            }
        )
        aim = aims.get((name, steps), "")
        rows.append(
            {
                "what": f"build {name}, {steps} steps",
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


def bench_long() -> list[dict[str, object]]:
    """RK4 with 4,000 steps, 16,001 nodes: building against bare Lagrange sums of NumPy, running against bare updates.

    The last column of a build is also given as the exponent of its growth from 4,000 to 8,000 steps.
    """
    process, rows = da.VPLinear(), []
    grids = {n: da.grid(process, n, "t1") for n in (4000, 8000)}
    found = fastest({n: lambda ts=ts: da.build("rhork_4rk", process, ts) for n, ts in grids.items()}, 8.0)
    exponent = np.log2(found[8000] / found[4000])
    table, x, e = da.build("rhork_4rk", process, grids[4000]), np.ones(16), np.full(16, 0.1)

    def bare() -> np.ndarray:
        y = x
        for _ in range(table.nfe):
            y = 0.99 * y + 0.01 * e
        return y

    ran = fastest({"ours": lambda: da.run(table, lambda x, t: e, x), "bare": bare}, 6.0)
    entries = sum(m.nnz for m in table.matrices)
    kept = sum(part.nbytes for m in table.matrices for part in (m.data, m.indices, m.indptr))
    rows.append(
        {
            "what": "build RK4, 4,000 steps (16,001 nodes)",
            "ours": f"{found[4000] * 1e3:.0f} ms",
            "beside": f"8,000 steps {found[8000] * 1e3:.0f} ms, exponent {exponent:.2f}",
            "ratio": found[8000] / found[4000],
            "aim": "<= 2.3",
        }
    )
    rows.append(
        {
            "what": f"run RK4, 4,000 steps, (16,); {entries} terms, {kept / 1e6:.1f} MB",
            "ours": f"{ran['ours'] * 1e3:.0f} ms",
            "beside": f"bare update a call {ran['bare'] * 1e3:.0f} ms",
            "ratio": ran["ours"] / ran["bare"],
            "aim": "",
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
    """A fresh interpreter that imports what sampling needs against one that imports NumPy."""
    codes = {"ours": "from deis_analysis import VPLinear, build, grid, run", "numpy": "import numpy"}
    found = fastest(
        {
            key: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)
            for key, code in codes.items()
        },
        10.0,
    )
    return [
        {
            "what": "import build, grid, run",
            "ours": f"{found['ours'] * 1e3:.0f} ms",
            "beside": f"import numpy {found['numpy'] * 1e3:.0f} ms",
            "ratio": found["ours"] / found["numpy"],
            "aim": "< 3",
        }
    ]


def main() -> None:
    """Run all benchmarks, print a table, write JSON where an argument names a file."""
    torch.set_num_threads(1)
    rows = [row for bench in (bench_import, bench_build, bench_run, bench_long, bench_denoiser) for row in bench()]
    for row in rows:
        aim = f"   aim {row['aim']}" if row["aim"] else ""
        print(f"{row['what']:42s} {row['ours']:>10s}   {row['beside']:42s} ratio {row['ratio']:6.3f}{aim}")
    if len(sys.argv) > 1:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__}
        Path(sys.argv[1]).write_text(json.dumps({"rows": rows, "versions": versions}, indent=1))


if __name__ == "__main__":
    main()
