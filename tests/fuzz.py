"""All hostile calls of `hostile`, in one process: ``python tests/fuzz.py [--seed S] [--count N] [--show unnamed]``."""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import resource
import sys
import tempfile
import time

import hostile


def main() -> int:
    """Run them in random order, print what went wrong and a count of each end; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the order, in which one may disturb another")
    parser.add_argument("--count", type=int, default=None, help="so many of them only")
    parser.add_argument("--only", default="", help="callables whose name begins so")
    parser.add_argument("--show", action="append", default=[], help="print these ends, too, such as unnamed")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # what asks for more is a MemoryError
    cases = [case for case in hostile.cases() if case.name.startswith(asked.only)]
    random.Random(asked.seed).shuffle(cases)
    hostile.warm()
    counts: collections.Counter[str] = collections.Counter()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):  # some values are good paths
        for case in cases[: asked.count]:
            end, said = hostile.outcome(case)
            counts[end] += 1
            if end in ("raw", "hang", "swallowed", *asked.show):
                print(f"{end}\t{case.where}\t{' '.join(said.split())[:200]}", flush=True)
    total, wrong = sum(counts.values()), sum(counts[end] for end in ("raw", "hang", "swallowed"))
    shares = ", ".join(
        f"{counts[end]:,} {end}" for end in ("refused", "unnamed", "its own", "accepted", "raw", "hang", "swallowed")
    )
    print(f"{total:,} calls of {len(hostile._GOOD)} callables in {time.perf_counter() - begin:.0f} s: {shares}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
