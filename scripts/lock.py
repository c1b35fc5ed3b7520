"""Make the lock files again: `make lock`. They are constraints for plain pip, of every package, for every platform.

    constraints.txt         the newest of everything: what `make demo` and `make test` install
    constraints-oldest.txt  the oldest transformers that pyproject.toml allows, with the newest that fits beside it

Only who renews them needs uv; it gets a virtual environment of its own. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "constraints.txt"
OLDEST = ROOT / "constraints-oldest.txt"
INPUTS = ("pyproject.toml", "constraints.in")
PYTHON = "3.11"  # and newer
HEADER = """\
# {title}
# Made by `make lock` from {inputs}; not edited by hand.
# Constraints for pip (pip install -c {name}), not a list to be installed:
# a line counts where something needs that package. So the lines of CUDA libraries (nvidia-*, cuda-*, triton) do nothing
# beside a CPU build of torch, and hold the versions beside a CUDA build. No hashes: pip refuses them together with -e.
"""


def requirement(package: str) -> str:
    """What pyproject.toml requires of `package`: ``transformers>=5.20,<6``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for one in project["dependencies"]:
        if re.match(rf"{re.escape(package)}(?![\w.-])", one):
            return str(one)
    raise LookupError(f"pyproject.toml does not require {package}")


def floor(package: str) -> str:
    """The lower bound of `package` in pyproject.toml."""
    found = re.search(r">=\s*([\w.]+)", requirement(package))
    if found is None:
        raise LookupError(f"pyproject.toml has no lower bound of {package}")
    return found[1]


def locked(package: str, file: Path = LOCKED) -> str:
    """The version of `package` in a lock file."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise LookupError(f"{file.name} does not hold {package}")
    return found[1]


def write(uv: Path, file: Path, title: str, extra: str = "") -> None:
    """Resolve everything anew into `file`; `extra` are further lines of constraints.in."""
    command = [
        *(uv, "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON, "--extra", "dev"),
        *("--no-header", "--no-emit-index-url", "--no-config", *INPUTS, "-"),
    ]
    made = subprocess.run(command, cwd=ROOT, input=extra, text=True, stdout=subprocess.PIPE, check=True).stdout
    header = HEADER.format(title=title, inputs=" and ".join(INPUTS), name=file.name)
    file.write_text(header + made, encoding="utf-8")


def main() -> int:
    home = ROOT / ".venv-lock"
    uv = home / "bin" / "uv"
    if not uv.exists():
        venv.create(home, with_pip=True, clear=True)
    subprocess.run([home / "bin" / "pip", "install", "--quiet", "--upgrade", "uv"], check=True)
    oldest = floor("transformers")
    write(uv, LOCKED, "The versions that this commit was tested with.")
    write(uv, OLDEST, f"The oldest supported transformers ({oldest}) and what fits it.", f"transformers=={oldest}\n")
    found = ", ".join(f"{package} {locked(package)}" for package in ("torch", "transformers"))
    print(f"Locked {found}. Once `make test` is green, say so in NEWEST_TESTED of src/pointsman/environment.py.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
