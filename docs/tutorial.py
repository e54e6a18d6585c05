"""Pages that run: the Python of a page in one namespace, what it prints and draws put below each block."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)


def write(folder: Path) -> None:
    """Run the pages of ``tutorials/`` in place."""
    for path in sorted((folder / "tutorials").glob("*.md")):
        path.write_text(run(path.read_text(encoding="utf-8"), path), encoding="utf-8")


def run(text: str, path: Path) -> str:
    """``text`` with outputs; figures go beside ``path``.

    Raises:
        Exception: whatever a block raises, noted with the page and the block.
    """
    import matplotlib

    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    parts, end = [], 0
    for number, block in enumerate(BLOCK.finditer(text)):
        shown = block.group(0) + _outputs(block.group(1), namespace, path, number)
        parts += [text[end : block.start()], shown]
        end = block.end()
    return "".join([*parts, text[end:]])


def _outputs(code: str, namespace: dict[str, Any], path: Path, number: int) -> str:
    import matplotlib.pyplot as plt

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{path.name}, block {number + 1}", "exec"), namespace)
    except Exception as error:
        error.add_note(f"in {path.name}, block {number + 1}")
        raise
    shown = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
    for i in plt.get_fignums():
        name = f"{path.stem}-{number + 1}-{i}.png"
        plt.figure(i).savefig(path.with_name(name), dpi=110, facecolor="white")
        shown += f"\n![what the block above draws]({name})\n"
        plt.close(i)
    return shown
