"""What short tests do not see: memory of a long process, a run that is killed again and again, two runs in one folder.

``python tests/soak.py [--runs 10000] [--kills 20] [--seed 0] [--only memory|killed|together]``
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import deis_analysis as da
from experiments.core.paths import FIGURES

MOST_MB = 5.0
NAMES = (  # quick runs of seconds each, of exact models and networks, with cached references and without; no clocks
    *("transfer", "convergence", "appendix_sde", "fig3_discretization", "floors", "rectified_flow"),
    *("appendix_time_grids", "teleportation", "guidance", "appendix_vesde"),
    *("budget_of_errors", "appendix_blackbox", "fig4_extrapolation"),
)
LONGER = 1.2  # than in peace, as the work of the experiment that a kill hits is done again
FEW = NAMES[:3]
# the caches are the run's own, so that a kill can hit them as well
_RUN = "import sys; from experiments.core import paths; paths.FIGURES = paths.Path(sys.argv.pop(1)); "
_RUN += "from experiments.__main__ import main; main()"


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(runs: int) -> float:
    """MB by which ``runs`` runs, and a hundredth as many audits, make this process grow after a twentieth of both."""
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


class Place:
    """A folder of results, with a copy of the committed ones and caches of its own beside it."""

    def __init__(self, folder: Path) -> None:
        self.out, self.figures = folder / "out", folder / "figures"
        shutil.copytree(FIGURES, self.figures, ignore=shutil.ignore_patterns(".*", "*.png", "*.svg"))

    def start(self, names: tuple[str, ...]) -> subprocess.Popen[bytes]:
        """Quick runs of experiments, one after the other in one process."""
        command = [sys.executable, "-c", _RUN, str(self.figures), "run", *names, "--quick", "--jobs", "1"]
        with (self.out.parent / "said").open("ab") as said:
            return subprocess.Popen([*command, "--out", str(self.out)], stdout=said, stderr=said)

    def finish(self, names: tuple[str, ...]) -> float:
        """Run them to the end; the seconds of processor time that it took."""
        child = self.start(names)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0, (self.out.parent / "said").read_text()
        return used.ru_utime + used.ru_stime

    def done(self) -> int:
        """How many results are finished."""
        return len(list((self.out / ".done").glob("*.json")))

    def csvs(self) -> dict[str, bytes]:
        """Bytes of the CSVs."""
        return {path.name: path.read_bytes() for path in self.out.glob("*.csv")}


def processor_seconds(pid: int) -> float:
    """What a process has used, of its time in the kernel too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def killed(names: tuple[str, ...], kills: int, seed: int, folder: Path) -> tuple[list[int], int, list[str]]:
    """One run, killed again and again and started again each time, beside one in peace.

    The kills are uniform in `LONGER` times the run's work, measured in processor time, which other processes do not
    stretch; each start adds what it takes to find out what is finished.

    Returns:
        how many results were finished at each kill, how many kills hit it alive, CSVs that are not as in peace.
    """
    peace, other = Place(folder / "peace"), Place(folder / "killed")
    lasts = peace.finish(names)
    start = peace.finish(names)  # all is kept
    print(f"in peace {lasts:.0f} s of processor time, of which {start:.0f} s to start", flush=True)
    rng, found, hit = random.Random(seed), [], 0
    moments = [0.0, *sorted(rng.uniform(0.0, LONGER * max(lasts - start, 0.0)) for _ in range(kills))]
    for before, after in itertools.pairwise(moments):
        child, limit = other.start(names), start + after - before
        while child.poll() is None and processor_seconds(child.pid) < limit:
            time.sleep(0.02)
        hit += child.poll() is None
        found.append(other.done())
        child.send_signal(signal.SIGKILL)
        child.wait()
    other.finish(names)
    wanted, got = peace.csvs(), other.csvs()
    assert len(wanted) == len(names)
    return found, hit, sorted(name for name in {*wanted, *got} if wanted.get(name) != got.get(name))


def together(names: tuple[str, ...], folder: Path) -> bool:
    """Whether two runs into one folder at once leave the CSVs of one in peace."""
    peace, shared = Place(folder / "alone"), Place(folder / "shared")
    peace.finish(names)
    both = [shared.start(names) for _ in range(2)]
    return [child.wait() for child in both] == [0, 0] and shared.csvs() == peace.csvs()


def main() -> int:
    """Say what was found; 1 if memory grew, or a result was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--only", choices=["memory", "killed", "together"])
    asked = parser.parse_args()
    wrong = False
    if asked.only in (None, "memory"):
        grown = memory(asked.runs)
        wrong |= grown > MOST_MB
        print(f"{asked.runs:,} runs, {asked.runs // 100:,} audits: {grown:+.1f} MB (at most {MOST_MB:g})", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if asked.only in (None, "killed"):
            found, hit, differ = killed(tuple(asked.names), asked.kills, asked.seed, Path(folder))
            wrong |= bool(differ)
            print(f"{asked.kills} kills, {hit} before the end, of a run of {len(asked.names)} experiments, when "
                  f"{', '.join(map(str, found))} were finished: {len(differ)} CSVs differ {' '.join(differ)}",
                  flush=True)  # fmt: skip
        if asked.only in (None, "together"):
            same = together(FEW, Path(folder))
            wrong |= not same
            print(
                f"two runs of {', '.join(FEW)} into one folder: {'the same CSVs' if same else 'other CSVs, or an end'}"
            )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
