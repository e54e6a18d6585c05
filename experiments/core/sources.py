"""On which code does a result depend? The modules that its module reaches by imports, docstrings and comments aside.

What is read is the text: ``import`` anywhere in a module but for type checkers, attributes of packages whose names are
loaded when they are asked for (``da.build``), files that a package loads without a list, modules that a string names
(for child processes), and files beside a module that a string names (a style sheet). Not seen: a name that is put
together at run time.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

import deis_analysis

_LOADS_ALL = "iter_modules(__path__)"  # in the text of a package that loads every file of its folder


class Sources:
    """The modules of packages that lie side by side in one folder.

    Args:
        folder: where the packages lie. packages: their names.
    """

    def __init__(self, folder: Path, packages: tuple[str, ...]) -> None:
        found = [path for package in packages for path in sorted((folder / package).rglob("*.py"))]
        self.paths = {".".join(p.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): p for p in found}
        self._known: dict[str, tuple[bytes, set[str]]] = {}

    def reached(self, *modules: str) -> list[str]:
        """All modules whose code runs when ``modules`` do, in alphabetical order."""
        waiting, seen = list(modules), set[str]()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += [*self._read(name)[1], *([name.rpartition(".")[0]] if "." in name else [])]
        return sorted(seen)

    def digest(self, *modules: str) -> str:
        """Hash of what `reached` finds; a package's own table of names counts only where it runs code."""
        digest = hashlib.sha256()
        for name in self.reached(*modules):
            digest.update(name.encode() + self._read(name)[0])
        return digest.hexdigest()

    def _read(self, module: str) -> tuple[bytes, set[str]]:
        """(digest of a module's code, the modules it names)."""
        if module not in self._known:
            path = self.paths[module]
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            nodes = _nodes(tree)
            strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
            digest = hashlib.sha256(b"" if module in self._tables else ast.dump(tree).encode())
            named = {*self._named(nodes), *(strings & self.paths.keys())}
            if _LOADS_ALL in text:
                named |= {name for name in self.paths if name.rpartition(".")[0] == module}
            for beside in sorted(strings & {file.name for file in path.parent.iterdir() if file.is_file()}):
                digest.update((path.parent / beside).read_bytes())
            self._known[module] = digest.digest(), named
        return self._known[module]

    @cached_property
    def _tables(self) -> dict[str, dict[str, str]]:
        """Of packages whose names are loaded when they are asked for: name → module."""
        found = {}
        for package, path in self.paths.items():
            text = path.read_text(encoding="utf-8") if path.name == "__init__.py" else ""
            if "__getattr__" in text:
                found[package] = dict(self._table(package, ast.parse(text)))
        return found

    def _table(self, package: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
        """From dictionaries {module: "name name"} or {name: "module"}."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                        a, b = str(key.value), str(value.value)
                        if f"{package}.{b}" in self.paths:
                            yield a, f"{package}.{b}"
                        elif f"{package}.{a}" in self.paths:
                            yield from ((name, f"{package}.{a}") for name in b.split())

    def _inside(self, module: str, name: str) -> str | None:
        """The module that is, or that holds, ``name`` of a package; None if the package itself holds it."""
        if f"{module}.{name}" in self.paths:
            return f"{module}.{name}"
        found = self._tables.get(module, {}).get(name)
        return found and (self._inside(found, name) or found)

    def _named(self, nodes: list[ast.AST]) -> Iterator[str]:
        """The modules that imports, and attributes of what was imported, lead to."""
        bound: dict[str, str] = {}  # names of this module that may be modules
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.split(".")[0]
                    bound[alias.asname or top] = alias.name if alias.asname else top
                    yield from {alias.name} & self.paths.keys()
            elif isinstance(node, ast.ImportFrom) and node.module in self.paths:
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    yield self._inside(node.module, alias.name) or node.module
        for node in nodes:
            if isinstance(node, ast.Attribute) and (chain := _chain(node)) and chain[0] in bound:
                yield from self._along(bound[chain[0]], chain[1:])

    def _along(self, module: str, names: list[str]) -> Iterator[str]:
        """``a.b.c`` of a module: each step that leads into a module."""
        for name in names:
            found = self._inside(module, name) if module in self.paths else None
            if found is None:
                return
            yield found
            module = found


def _chain(node: ast.expr) -> list[str]:
    """``[a, b, c]`` of the expression a.b.c, [] of another one."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = _chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*inner, node.attr] if inner and isinstance(node, ast.Attribute) else []


def _is_docstring(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """All nodes; docstrings and what is for type checkers alone are taken out of the tree."""
    found: list[ast.AST] = [tree]
    for node in found:
        body = getattr(node, "body", None)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        elif isinstance(body, list) and _is_docstring(body[0] if body else None):
            del body[0]
        found.extend(ast.iter_child_nodes(node))
    return found


@cache
def installed() -> Sources:
    """The package and its experiments, as they were when this process asked first."""
    return Sources(Path(__file__).parents[2], ("deis_analysis", "experiments"))


@cache
def depends_on(*modules: str) -> str:
    """Hash of the version and of all code that ``modules`` reach: their results change with it."""
    return f"{deis_analysis.__version__} {installed().digest(*modules)}"
