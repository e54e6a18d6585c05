"""``python -m docs [FOLDER]``: every page of the site as Markdown, tutorials run, into FOLDER (build/docs)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from docs import derivations, play, reference, results, samplers, tutorial

HERE = Path(__file__).parent
ROOT = HERE.parent
PARTS = (samplers.write, derivations.write, tutorial.write, play.write, results.write, reference.write)
MATHJAX = "django-static-mathjax", "es5/tex-svg.js"


def write(folder: Path) -> None:
    """All pages; what was in ``folder`` is gone."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for path in sorted(HERE.rglob("*")):
        if path.suffix in (".md", ".css", ".js"):
            target = folder / path.relative_to(HERE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(mathjax(), folder / "assets" / "tex-svg.js")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:  # the longest first
        for done in [pool.submit(_timed, part, folder) for part in PARTS]:
            sys.stderr.write(done.result())


def mathjax() -> Path:
    """The one file of MathJax, from the package that brings it."""
    package, name = MATHJAX
    files = importlib.metadata.files(package) or []
    return Path(str(next(file for file in files if file.as_posix().endswith(name)).locate()))


def _timed(part: Callable[[Path], None], folder: Path) -> str:
    start = time.monotonic()
    part(folder)
    return f"{part.__module__}: {time.monotonic() - start:.1f} s\n"


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs")
