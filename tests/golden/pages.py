"""What a reader sees of a page, as plain text to be compared."""

from __future__ import annotations

from html.parser import HTMLParser

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
