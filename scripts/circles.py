"""Refuse circles of files: `make imports` runs it on Pointsman.

    python scripts/circles.py [folder of a package]

Files of a circle import each other, directly or by way of others of it: none can be read, moved or tested without the
rest. An import counts wherever it stands. One inside a function, or for type checkers only, hides the circle from
Python and not from the reader; it is said of each. What Python does besides (a package's __init__.py runs before its
files) does not count, nor do names that are looked up while the program runs (`import_module`, entry points). Ends
with 1 if there is a circle. Standard library only.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "pointsman"
REMEDY = "Move what they share into a file of its own, which imports none of them."


@dataclass(frozen=True)
class Import:
    """An import of one file of a package by another.

    Attributes:
        importer, imported: Modules, such as ``pointsman.data.types``.
        line: Where it stands in the importer.
        hidden: How it is hidden from Python: ``in a function``, ``for types only``; empty if it is not.
    """

    importer: str
    imported: str
    line: int
    hidden: str


@dataclass
class Package:
    """The files of a package, and what they import of each other.

    Attributes:
        files: Module -> its file.
        imports: All imports, in the order of the files.
    """

    files: dict[str, Path]
    imports: list[Import] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Package:
        """Read every file of the package in a folder; none is run.

        Raises:
            FileNotFoundError: There is no package in it.
            SyntaxError: A file is not Python.
        """
        if not (folder / "__init__.py").is_file():
            raise FileNotFoundError(f"{folder} is no package: it has no __init__.py")
        package = cls({_module(file, folder.parent): file for file in sorted(folder.rglob("*.py"))})
        for module, file in package.files.items():
            _Reader(package, module).visit(ast.parse(file.read_text(encoding="utf-8"), str(file)))
        return package

    def circles(self) -> list[list[str]]:
        """The groups of modules that all import each other, directly or not; each sorted, and all."""
        ways: dict[str, set[str]] = {module: set() for module in self.files}
        for each in self.imports:
            ways[each.importer].add(each.imported)
        reached = {module: _reached(module, ways) for module in ways}
        groups = {
            tuple(sorted(other for other in reached[module] if module in reached[other]))
            for module in ways
            if module in reached[module]
        }
        return [list(group) for group in sorted(groups)]

    def explain(self, circle: list[str]) -> str:
        """The files of a circle, and every import that makes it one."""
        lines = [f"{len(circle)} files import each other in a circle:"]
        lines += [f"  {_shown(self.files[module])}" for module in circle]
        lines += ["by these imports:"]
        for each in self.imports:
            if each.importer in circle and each.imported in circle:
                hidden = f" ({each.hidden})" if each.hidden else ""
                lines.append(f"  {_shown(self.files[each.importer])}:{each.line}: {each.imported}{hidden}")
        return "\n".join(lines)


class _Reader(ast.NodeVisitor):
    """Adds the imports of one file to those of the package."""

    def __init__(self, package: Package, module: str) -> None:
        self._package = package
        self._module = module
        self._hidden = ""

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(name.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = [node.module] if node.module else []
        if node.level:  # one dot is the package that this file is in
            inside = self._package.files[self._module].name == "__init__.py"
            parts = self._module.split(".")
            base = [*parts[: len(parts) - node.level + inside], *base]
        found = ".".join(base)
        for name in node.names:
            whole = f"{found}.{name.name}"
            self._add(whole if whole in self._package.files else found, node.lineno)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).split(".")[-1] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        self._within("for types only", node.body)
        for each in node.orelse:
            self.visit(each)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._within("in a function", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _within(self, hidden: str, body: list[ast.stmt]) -> None:
        before, self._hidden = self._hidden, self._hidden or hidden
        for each in body:
            self.visit(each)
        self._hidden = before

    def _add(self, name: str, line: int) -> None:
        new = Import(self._module, name, line, self._hidden)
        if name in self._package.files and name != self._module and new not in self._package.imports:
            self._package.imports.append(new)


def _reached(module: str, ways: dict[str, set[str]]) -> set[str]:
    """The modules that a module imports, directly or not: itself too, if it is on a circle."""
    reached: set[str] = set()
    waiting = list(ways[module])
    while waiting:
        found = waiting.pop()
        if found not in reached:
            reached.add(found)
            waiting += ways[found]
    return reached


def _module(file: Path, above: Path) -> str:
    """What a file is imported as."""
    parts = file.relative_to(above).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _shown(file: Path) -> str:
    """A path as messages show it."""
    return str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)


def main(arguments: list[str]) -> int:
    package = Package.read(Path(arguments[0]).resolve() if arguments else PACKAGE)
    circles = package.circles()
    for circle in circles:
        print(package.explain(circle), end="\n\n")
    if circles:
        print(REMEDY)
    else:
        print(f"No circles among {len(package.files)} files and {len(package.imports)} imports.")
    return int(bool(circles))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
