"""What a reader sees of a page, as plain text to be compared."""

from __future__ import annotations

from contextlib import chdir, redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

_INLINE = {
    "a", "abbr", "b", "bdi", "code", "dfn", "em", "i", "kbd", "mark", "q", "s", "samp", "small", "span", "strong",
    "sub", "sup", "time", "tspan", "u", "var", "wbr",
}  # fmt: skip
_UNSEEN = {"style", "script"}
_CELLS = {"td", "th"}


def page_text(html: str) -> str:
    """The words of a page, one block a line and one table row a line; whatever is drawn says its labels and titles.

    Space is normalised, and nothing is said of tags, classes and coordinates: these may change, what is said may not.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.said).split("\n"))
    return "".join(f"{line}\n" for line in lines if line)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.said: list[str] = []
        self._unseen = 0
        self._rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in _UNSEEN
        self._rows += tag == "tr"
        if tag not in _INLINE:
            self.said.append(" | " if tag in _CELLS else " " if self._rows and tag != "tr" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self._unseen -= tag in _UNSEEN
        self._rows -= tag == "tr"
        if tag not in _INLINE and tag not in _CELLS:
            self.said.append("\n" if not self._rows else " ")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.said.append(" ".join(f" {data} ".split("\n")) if "\n" in data else data)


def terminal_text(said: str) -> str:
    """What a command printed, without the space that fills its lines."""
    return "".join(f"{line.rstrip()}\n" for line in said.splitlines())


def freeze(folder: Path) -> None:
    """Write down what the pages and the terminal say of the golden runs. README.md tells when that may be done."""
    from pointsman.cli import main

    with chdir(folder):
        for run in ("audit", "steer", "evaluate"):
            said = StringIO()
            with redirect_stdout(said):
                assert main(["resume", run]) == 0
            (folder / f"{run}.terminal.txt").write_text(terminal_text(said.getvalue()), encoding="utf-8")
            page = folder / run / "report.html"
            (folder / f"{run}.page.txt").write_text(page_text(page.read_text(encoding="utf-8")), encoding="utf-8")
            page.unlink()
            (folder / run / "lock").unlink()


if __name__ == "__main__":
    freeze(Path(__file__).resolve().parent)
