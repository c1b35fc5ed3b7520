"""Reports are written whole or not at all, and read nothing that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pointsman.errors import RunError
from pointsman.report.blocks import Page
from pointsman.report.write import read_folder, write_page

PAGE = Page("kind", "title", "headline", [], "", [], [], [])


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_page_with_texts_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "artefacts").mkdir()
    lines = '{"stage": "base", "response": "SECRET a\u2028b"}\n{"stage": "base", "resp'
    (tmp_path / "artefacts" / "completions.jsonl").write_text(lines, encoding="utf-8")
    path = write_page(tmp_path, PAGE, "judge")
    assert path == tmp_path / "report.html"
    assert "SECRET" not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o044
    private = Page(**{**vars(PAGE), "show_text": True})
    html = write_page(tmp_path, private, "judge").read_text(encoding="utf-8")
    assert "SECRET a\ufffdb" in html
    assert "1 line of artefacts/completions.jsonl could not be read" in html
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["artefacts", "report.html"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "pointsman resume"), ('{"schema": ', "not valid JSON"), ("[" * 100_000, "not valid JSON"),
        ("[1]", "does not hold an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(RunError, match=said):
        read_folder(tmp_path)


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path, PAGE, "judge")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunError, match="No space left"):
        write_page(tmp_path, PAGE, "judge")
    assert path.read_bytes() == before
    assert names(tmp_path) == ["report.html"]
