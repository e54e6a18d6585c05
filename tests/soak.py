"""What short tests do not see: memory of a long process, runs killed at random, two runs in one folder.

``python tests/soak.py [--runs 10000] [--kills 20] [--seed 0] [--experiment transfer]``
"""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import deis_analysis as da

MOST_MB = 5.0


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(runs: int) -> float:
    """MB by which ``runs`` runs, and a hundredth as many audits, make this process grow after as many warm-up ones."""
    process = da.VPLinear()
    mix = da.GaussianMixture([0.4, 0.6], [-1.0, 0.8], [0.05, 0.1])
    x = np.linspace(-2.0, 2.0, 64)
    names = ("ddim", "tab3", "rhork_2heun", "dpmpp_2m", "ddpm")

    def some(count: int) -> None:
        for i in range(count):
            table = da.build(names[i % len(names)], process, da.grid(process, 5 + i % 7, "t2"))
            da.run(table, mix.eps(process), x, noise=i)
            da.Tableau.from_json(table.to_json())
            if i % 100 == 0:
                da.audit_sampler("registry:tab2", nfe=5)

    some(max(runs // 20, 200))
    before = resident_mb()
    some(runs)
    return resident_mb() - before


def command(name: str, out: Path) -> list[str]:
    """A quick run of an experiment."""
    return [sys.executable, "-m", "experiments", "run", name, "--quick", "--jobs", "1", "--out", str(out)]


def finished(name: str, out: Path) -> bytes:
    """Run to the end; the CSV."""
    subprocess.run(command(name, out), check=True, capture_output=True)
    return (out / f"{name}.csv").read_bytes()


def killed(name: str, kills: int, seed: int) -> tuple[int, int]:
    """(how many of the kills came before the end, CSVs that differ from one of a run in peace)."""
    rng, differ, hit = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        wanted = finished(name, Path(folder) / "peace")
        lasted = time.perf_counter() - begin
        for i in range(kills):
            out = Path(folder) / f"killed{i}"
            child = subprocess.Popen(command(name, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0.0, 1.1 * lasted))
            hit += child.poll() is None
            child.send_signal(signal.SIGKILL)
            child.wait()
            differ += finished(name, out) != wanted
    return hit, differ


def together(name: str) -> bool:
    """Whether two runs into one folder at once leave the CSV of one in peace."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, out = finished(name, Path(folder) / "peace"), Path(folder) / "shared"
        both = [subprocess.Popen(command(name, out), stdout=subprocess.DEVNULL) for _ in range(2)]
        return all(child.wait() == 0 for child in both) and (out / f"{name}.csv").read_bytes() == wanted


def main() -> int:
    """Say what was found; 1 if memory grew, or a result was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiment", default="transfer")
    asked = parser.parse_args()
    grown = memory(asked.runs)
    print(
        f"{asked.runs:,} runs and {asked.runs // 100:,} audits: memory grew by {grown:.1f} MB (at most {MOST_MB:g})",
        flush=True,
    )
    hit, differ = killed(asked.experiment, asked.kills, asked.seed)
    print(f"{asked.kills} kills of {asked.experiment}, {hit} before its end: {differ} CSVs differ", flush=True)
    same = together(asked.experiment)
    print(f"two runs into one folder: {'the same CSV' if same else 'another CSV, or a failure'}")
    return int(grown > MOST_MB or differ > 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
