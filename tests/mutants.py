"""Small errors planted in the package at random, one at a time in a copy of the checkout: which test sees each?

``python tests/mutants.py [--seed 2026] [--count 60] [--shard 0/1] [--only INDEX] [--stages 3] [--tests FILE …]``

Stage 1 runs the test files nearest to the place, 2 all that name something of its module, 3 the rest. A catch counts if
the test that fails passes without the error. What is in ``--out`` is not run again. A seed draws from the places of the
package as it is: a change of the package draws others. Known tools do not fit: Cosmic Ray runs one command for all
mutants and draws no sample; mutmut traces the whole suite first, and draws none.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LONGEST = 300  # seconds of one test; what hangs longer ends the run and is caught
DIES = "hangs or dies"
OPERATORS = {  # what is written, and what may be written instead
    ast.Add: "+ -", ast.Sub: "- +", ast.Mult: "* /", ast.Div: "/ *", ast.FloorDiv: "// * /", ast.Mod: "% *",
    ast.Pow: "** *", ast.Lt: "< <= >=", ast.LtE: "<= < >", ast.Gt: "> >= <=", ast.GtE: ">= > <", ast.Eq: "== !=",
    ast.NotEq: "!= ==", ast.And: "and or", ast.Or: "or and",
}  # fmt: skip


class Place(NamedTuple):
    """Characters of a source file, what may stand there instead, and the outermost definition around them."""

    file: str
    begin: int
    end: int
    choices: tuple[str, ...]
    within: str


def walk(node: ast.AST, within: str = "") -> Iterator[tuple[ast.AST, str]]:
    """All nodes but annotations, with the name of the outermost definition around each."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        within = within or node.name
    yield node, within
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield from walk(child, within)


def pairs(node: ast.AST) -> list[tuple[ast.expr, ast.AST, ast.expr]]:
    """What stands on both sides of each operator."""
    if isinstance(node, ast.BinOp):
        return [(node.left, node.op, node.right)]
    if isinstance(node, ast.BoolOp):
        return [(left, node.op, right) for left, right in itertools.pairwise(node.values)]
    if isinstance(node, ast.Compare):
        sides = itertools.pairwise([node.left, *node.comparators])
        return [(left, operator, right) for (left, right), operator in zip(sides, node.ops, strict=True)]
    return []


def places(path: Path) -> list[Place]:
    """Operators, comparisons, signs, `not` and numbers (by one, up or down) of a file, in the order of the text."""
    text, found = path.read_text(), list[Place]()
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def at(line: int, column: int) -> int:
        start = starts[line - 1]
        return start + len(text[start:].encode()[:column].decode())  # columns are bytes

    def add(within: str, begin: int, sign: str, *choices: str) -> None:
        found.append(Place(str(path.relative_to(ROOT)), begin, begin + len(sign), choices, within))

    for node, within in walk(ast.parse(text)):
        for left, operator, right in pairs(node):
            sign, *choices = OPERATORS.get(type(operator), " ").split(" ")
            begin = at(left.end_lineno, left.end_col_offset)
            part = re.sub(r"#.*", lambda match: " " * len(match[0]), text[begin : at(right.lineno, right.col_offset)])
            if sign and part.strip("() \n") == sign:
                add(within, begin + part.index(sign), sign, *choices)
        if isinstance(node, ast.UnaryOp | ast.Constant):
            begin = at(node.lineno, node.col_offset)
            part = text[begin : at(node.end_lineno, node.end_col_offset)]
            if isinstance(node, ast.UnaryOp) and (sign := re.match("-|not ", part)):
                add(within, begin, sign[0], "")
            elif isinstance(node, ast.Constant) and re.fullmatch(r"\d[\d_.e+-]*", part):
                add(within, begin, part, repr(node.value + 1), f"({node.value - 1!r})")
    return sorted(found, key=lambda place: place.begin)


def drawn(seed: int, count: int) -> list[tuple[Place, str]]:
    """The sample: places, and what is put there."""
    rng = random.Random(seed)
    every = [place for path in sorted((ROOT / "deis_analysis").rglob("*.py")) for place in places(path)]
    return [(place, rng.choice(place.choices)) for place in rng.sample(every, count)]


def stages(place: Place, nearest: int = 3) -> list[list[str]]:
    """Test files: the nearest, all that name something of the module, the rest."""
    path = Path(place.file)
    names = {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, "name")} | {path.stem}
    folder, near = "tests" / path.parent.relative_to("deis_analysis"), dict[str, tuple[bool, bool, int]]()
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        words = set(re.findall(r"\w+", test.read_text()))
        name = test.relative_to(ROOT)
        near[str(name)] = (place.within in words, folder == name.parent, len(names & words))
    ranked = sorted(near, key=near.__getitem__, reverse=True)
    related = [test for test in ranked if any(near[test])]
    return [related[:nearest], related[nearest:], ranked[len(related) :]]


def failing(copy: Path, tests: list[str]) -> str | None:
    """What fails first of some tests in a copy, `DIES` if that is not said, None where nothing fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=no", "-rfE"]
    command += ["-o", f"faulthandler_timeout={LONGEST}", "-o", "faulthandler_exit_on_timeout=true", *tests]
    options = {"env": os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}, "start_new_session": True}
    child = subprocess.Popen(command, cwd=copy, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    try:
        said, _ = child.communicate()
    finally:  # with what it started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    if child.returncode in (0, 5):
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+?\.py(?:::.*?)?)(?: - |$)", said, re.MULTILINE)
    return found[1] if found else DIES


def look(copy: Path, place: Place, instead: str, groups: list[list[str]]) -> str | None:
    """Plant one error in the copy and run groups of tests until one fails that passes without it; its name."""
    source, fine = ROOT / place.file, list[str]()
    for tests in filter(None, groups):
        while True:
            text = source.read_text()
            (copy / place.file).write_text(text[: place.begin] + instead + text[place.end :])
            found = failing(copy, [*tests, *fine])
            shutil.copy2(source, copy / place.file)
            if found is None:
                break
            if failing(copy, tests if found == DIES else [found]) is None:
                return found
            if found == DIES:
                raise RuntimeError(f"{tests} do not run without the error either")
            fine.append(f"--deselect={found}")
    return None


def main() -> int:
    """Look at those asked for, print a line of each; 1 if any survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--shard", default="0/1", help="i/N: of N parts the i-th")
    parser.add_argument("--only", type=int, default=None, help="one of them, anew")
    parser.add_argument("--stages", type=int, default=3, help="so many of the three")
    parser.add_argument("--tests", nargs="+", default=[], help="these instead, as pytest takes them")
    parser.add_argument("--out", type=Path, default=ROOT / "build/mutants.jsonl")
    asked = parser.parse_args()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in (asked.out.read_text().splitlines() if asked.out.exists() else [])]
    (part, parts), survived = map(int, asked.shard.split("/")), 0
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        left_out = shutil.ignore_patterns(".*cache", ".venv", ".git", "build", "__pycache__", ".done", ".hypothesis")
        copy = shutil.copytree(ROOT, Path(folder) / "checkout", ignore=left_out)
        for index, (place, instead) in enumerate(drawn(asked.seed, asked.count)):
            if index % parts != part if asked.only is None else index != asked.only:
                continue
            begin, text = time.perf_counter(), (ROOT / place.file).read_text()
            line = text.count("\n", 0, place.begin) + 1
            row = {"seed": asked.seed, "index": index, "place": f"{place.file}:{line}", "at": place.begin}
            row |= {"was": text[place.begin : place.end], "is": instead}
            known = [old for old in done if row.items() <= old.items() and asked.only is None]
            if known:
                row = known[-1]
            else:
                groups = [asked.tests] if asked.tests else stages(place)[: asked.stages]
                row["caught"] = look(copy, place, instead, groups)
                row["seconds"] = round(time.perf_counter() - begin)
                with asked.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
            survived += row["caught"] is None
            what = f"{row['was']:>4} → {row['is']:4} {row['seconds']:5} s"
            print(f"{index:3} {row['place']:45} {what}  {row['caught'] or 'SURVIVED'}", flush=True)
    print(f"{survived} survived")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
