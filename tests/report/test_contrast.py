"""Whatever is written on a page can be read: its colours differ enough, in light, in dark and in print (WCAG 1.4.3)."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

import pointsman

TEMPLATES = Path(pointsman.__file__).parent / "report/templates"
CSS = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "answers.css"))
THEMES = dict(zip(("light", "dark", "print"), re.findall(r":root \{([^}]*)\}", CSS), strict=True))
WORDS = ("ink", "muted", "attack", "control", "warn", "steermoe")
GROUNDS = ("paper", "wash", "attack-wash", "control-wash", "warn-wash")


def colours(theme: str) -> dict[str, str]:
    """Custom properties that are colours; dark and print change some of those of light."""
    found = {}
    for block in (THEMES["light"], THEMES[theme]):
        found.update(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", block))
    return found


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mixed(colour: str, ground: str, part: float) -> str:
    """``color-mix(in srgb, colour part, transparent)`` on a ground."""
    pairs = [[int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in (colour, ground)]
    return "#" + "".join(f"{round(part * a + (1 - part) * b):02x}" for a, b in zip(*pairs, strict=True))


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


@pytest.mark.parametrize(("theme", "word", "ground"), list(product(THEMES, WORDS, GROUNDS)))
def test_words_stand_out(theme: str, word: str, ground: str) -> None:
    known = colours(theme)
    assert contrast(known[word], known[ground]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
def test_lines_and_marks_can_be_seen(theme: str) -> None:
    known = colours(theme)
    assert contrast(known["faint"], known["paper"]) >= 3  # WCAG 1.4.11


@pytest.mark.parametrize("theme", THEMES)
def test_tinted_tokens_can_be_read(theme: str) -> None:
    known = colours(theme)
    shares = re.findall(r"\.t\d \{ background: color-mix\(in srgb, var\(--attack\) (\d+)%", CSS)
    shades = [int(share) / 100 for share in shares]
    assert len(shades) == 5
    for shade in shades:
        assert contrast(known["ink"], mixed(known["attack"], known["wash"], shade)) >= 4.5


def test_nothing_is_written_in_any_other_colour() -> None:
    used = set(re.findall(r"(?<![-\w])color: var\(--([\w-]+)\)", CSS))
    assert used <= set(WORDS)
    assert not re.search(r"(?<![-\w])color: (?!var\()", CSS.replace("color: inherit", ""))
    texts = re.findall(r"(?:svg text|\.token)[^{]*\{[^}]*fill: var\(--([\w-]+)\)", CSS)
    assert texts
    assert set(texts) <= set(WORDS)
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", CSS))
    assert grounds <= set(GROUNDS)


def test_a_page_on_paper_opens_what_is_folded() -> None:
    printed = CSS[CSS.index("@media print") :]
    assert "details:not([open])::details-content" in printed
    assert '"Not printed: "' in printed
