"""Files that import each other in a circle are found wherever the imports stand, and Pointsman has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

import circles  # noqa: E402


def package(folder: Path, **files: str) -> Path:
    """A package ``shop`` of these files; two underscores in a name divide folder and file."""
    home = folder / "shop"
    for name, text in files.items():
        file = home / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    return home


def found(folder: Path, **files: str) -> list[list[str]]:
    return circles.Package.read(package(folder, **files)).circles()


def test_pointsman_has_none() -> None:
    read = circles.Package.read(circles.PACKAGE)
    assert len(read.files) == len(list(circles.PACKAGE.rglob("*.py")))
    known = {(each.importer, each.imported) for each in read.imports}
    assert ("pointsman.routing.control", "pointsman.routing.controller") in known  # it has seen something
    assert [read.explain(circle) for circle in read.circles()] == []


HIDDEN = {
    "at the top": "from shop.till import Till",
    "another name for it": "import shop.till as counter",
    "the file itself": "from shop import till",
    "relative": "from .till import Till",
    "relative to the folder": "from . import till",
    "in a function": "def pay():\n    from shop.till import Till",
    "in a method": "class Customer:\n    async def pay(self):\n        import shop.till",
    "in a branch": "try:\n    import fast\nexcept ImportError:\n    from shop.till import Till",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.till import Till",
    "for types, in full": "import typing\nif typing.TYPE_CHECKING:\n    from shop.till import Till",
    "beside types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import shop.till",
}


@pytest.mark.parametrize("back", HIDDEN.values(), ids=HIDDEN)
def test_a_circle_of_two_is_found_however_it_is_imported(tmp_path: Path, back: str) -> None:
    files = {"till": "from shop.customer import Customer", "customer": back, "other": "import shop.till"}
    assert found(tmp_path, **files) == [["shop.customer", "shop.till"]]


def test_one_way_is_no_circle(tmp_path: Path) -> None:
    """Two ways to one file, a package and its files, and modules of others with the same names."""
    files = {
        "top": "from shop import left, right",
        "left": "from shop.base import A\nimport base",
        "right": "from shop.base import B\nfrom shop.base.deep import C",
        "base__deep": "import top, json",
    }
    assert found(tmp_path, **files) == []


def test_circles_of_several_files_are_told_apart(tmp_path: Path) -> None:
    files = {
        "a": "import shop.b", "b": "import shop.c", "c": "import shop.a, shop.x",
        "x": "from .inner import y", "inner__y": "from ..x import X\nfrom . import z", "inner__z": "",
    }  # fmt: skip
    assert found(tmp_path, **files) == [["shop.a", "shop.b", "shop.c"], ["shop.inner.y", "shop.x"]]


def test_a_package_and_its_file_can_be_a_circle(tmp_path: Path) -> None:
    home = package(tmp_path, till="from shop import TAX")
    (home / "__init__.py").write_text("from .till import Till\nTAX = 0.2\n")
    assert circles.Package.read(home).circles() == [["shop", "shop.till"]]


def test_it_says_which_files_and_which_imports(tmp_path: Path) -> None:
    home = package(
        tmp_path,
        till="import os\nfrom shop.customer import Customer",
        customer="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.till import Till\n"
        "def pay():\n    import shop.till",
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "circles.py"), str(home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "2 files import each other in a circle:",
        f"  {home / 'customer.py'}",
        f"  {home / 'till.py'}",
        "by these imports:",
        f"  {home / 'customer.py'}:3: shop.till (for types only)",
        f"  {home / 'customer.py'}:5: shop.till (in a function)",
        f"  {home / 'till.py'}:2: shop.customer",
        "",
        circles.REMEDY,
    ]


def test_a_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no package"):
        circles.Package.read(tmp_path)
