"""Why an answer is degenerate, so that nobody should count it: loops, symbols, letters at random, the request again.

Found by the text alone; words at random out of one language look like an answer here, and only the likelihood under
the model itself tells (`pointsman.runs.likelihood`). A merely long answer that hits the limit is none of this.

Thresholds. Whisper takes text that zlib packs better than 2.4 to 1 for a loop; honest answers pass that, as they hold
more than speech. So windows of 1,000 characters, as bytes, were measured: English licences reach 2.9, this project's
documents with their tables 3.4, Python's library 6.7 (one window in a hundred passes 4.8), JSON 5.2 and tables of
numbers 6.9; a sentence of 72 characters said again reaches 9.9. Lines and words that stand there again count from more
than Gopher allows (arXiv 2112.11446: 30 % of lines), until no table, refrain or listing of the labelled set in
``tests/judges`` was lost. All other thresholds were chosen on the half of that set that is for tuning and on pieces of
those files; of 2,315 pieces of 300 or 3,000 characters, drawn anew, one was called degenerate (JSON whose keys repeat).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np

from pointsman.judges.scripts import script_of

COMPRESSIBLE = 8.0
"""Bytes of a window over its compressed bytes."""
WINDOW = 1000
"""Characters of a window."""
SHORTEST_WINDOW = 300
"""Shorter text is not compressed: headers weigh too much."""
LOOPS = 4
"""A block that stands so often in a row is a loop, if it is this much of the answer:"""
LOOPED = 0.5
LOOPED_AT_LIMIT = 0.3
"""The same for an answer that the limit cut off within the loop."""
LONGEST_PERIOD = 120
"""Words, or signs, of a block."""
DUPLICATE_LINES = 0.6
"""Share of characters in lines (of three words or more) that stood there before."""
DISTINCT_PAIRS = 0.2
"""Different pairs of neighbouring words among all, in at least `PAIRS`."""
PAIRS = 60
ECHOED = 0.85
"""Share of an answer that stands in the request, in runs of `ECHO_RUN` words; half the request must be in it."""
ECHO_RUN = 4
UNREADABLE = 0.3
"""Share of words whose letters no language of the Latin script puts side by side."""
SWITCHES = 0.3
"""Share of neighbouring words, with only blanks between them, that change the script; in three scripts at least."""

_WORD = re.compile(r"\w+|[^\w\s]")
_LETTERS = re.compile(r"[^\W\d_]+")
_FENCED = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)
_UNREADABLE = re.compile(
    r"q(?!u|$)|[jvz](?=[bcdfgjkmpqx])|w(?=[cfgjmpqx])|x(?=[bdfgjkmqx])|[cfghjkmpqtvwz](?=[jqx])|[fjkmpqvwx](?=[vwx])|"
    r"h(?=[vx])|z(?=[vx])|[gpbmf](?=[kvzc])|v(?=[mnpt])"
)
_JOINED = {"Hiragana": "CJK", "Katakana": "CJK", "Han": "CJK", "Hangul": "CJK"}


def degeneration(text: str, request: Sequence[str] = (), *, finished: bool = True) -> str | None:
    """Why an answer is degenerate, in a few words, or None.

    Args:
        text: The answer, without reasoning.
        request: What the user said, turn by turn.
        finished: False if the answer hit the token limit.
    """
    compact = "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")
    if not compact:
        return "empty"
    if not any(c.isalnum() for c in compact):
        return "no word in it"
    return _loop(text, finished) or _echo(text, request) or _soup(text)


def without_echo(text: str, request: Sequence[str]) -> str:
    """What follows if an answer begins with the request, word for word; else the answer as it is."""
    for turn in request:
        said = turn.strip()
        if len(said.split()) >= ECHO_RUN or len(said) >= 4 * ECHO_RUN:
            rest = text.lstrip()
            if rest.startswith(said) and rest[len(said) :].strip():
                return rest[len(said) :].lstrip()
    return text


def _loop(text: str, finished: bool) -> str | None:
    cut = "" if finished else ", cut off within it"
    whole = " ".join(text.split())
    words = _WORD.findall(whole.lower())
    most = max(_longest_loop(words), _longest_loop(list("".join(words))))
    if most >= (LOOPED if finished else LOOPED_AT_LIMIT):
        return f"the same again and again{cut}"
    lines = [line.strip() for line in text.splitlines() if len(_LETTERS.findall(line)) >= 3]
    seen, again = set[str](), 0
    for line in lines:
        again += len(line) if line in seen else 0
        seen.add(line)
    if len(lines) >= 5 and again >= DUPLICATE_LINES * len(whole):
        return f"the same lines again and again{cut}"
    windows = [whole[n : n + WINDOW] for n in range(0, len(whole), WINDOW)]
    packed = [_compressed(w) >= COMPRESSIBLE for w in windows if len(w) >= SHORTEST_WINDOW]
    if packed and sum(packed) >= len(packed) / 2:
        return f"the same again and again, by its compressed size{cut}"
    spoken = [word for word in words if word[0].isalnum()]
    pairs = Counter(pairwise(spoken))
    if len(spoken) > PAIRS and len(pairs) <= DISTINCT_PAIRS * (len(spoken) - 1):
        return f"few words again and again{cut}"
    return None


def _longest_loop(units: Sequence[str]) -> float:
    """Share of the units in the longest loop: a block that stands `LOOPS` times in a row or more, and ten units in all.

    A loop without letters (a rule, a table of zeros) counts only if it is nearly everything.
    """
    names: dict[str, int] = {}
    ids = np.array([names.setdefault(unit, len(names)) for unit in units])
    lettered = np.array([any(c.isalpha() for c in unit) for unit in units], dtype=bool)
    n, best = len(units), 0
    for period in range(1, min(n // LOOPS, LONGEST_PERIOD) + 1):
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        ends = np.concatenate([[-1], breaks, [n - period]])
        longest = int(np.argmax(np.diff(ends)))
        run = int(np.diff(ends)[longest]) - 1
        start, length = int(ends[longest]) + 1, run + period
        if run < (LOOPS - 1) * period or length < 10 or length <= best:
            continue
        if lettered[start : start + length].any() or length >= 0.9 * n:
            best = length
    return best / n if n else 0.0


def _compressed(window: str) -> float:
    raw = window.encode(errors="replace")
    return len(raw) / len(zlib.compress(raw))


def _echo(text: str, request: Sequence[str]) -> str | None:
    said = _spread(text)
    for turn in request:
        asked = _spread(turn)
        if len(asked) < ECHO_RUN or len(said) < ECHO_RUN:
            continue
        blocks = SequenceMatcher(None, said, asked, autojunk=False).get_matching_blocks()
        runs = [b for b in blocks if b.size >= ECHO_RUN]
        reached = sum(b.size for b in runs)
        if reached >= ECHOED * len(said) and reached >= len(asked) / 2:
            return "the request again"
        if len(said) > len(asked) and _covered(said, asked) >= ECHOED:
            return "the request again"
    return None


def _covered(said: Sequence[str], asked: Sequence[str]) -> float:
    """Share of an answer in copies of the whole request."""
    n, at, covered = len(asked), 0, 0
    while at < len(said):
        if list(said[at : at + n]) == list(asked):
            covered, at = covered + n, at + n
        else:
            at += 1
    return covered / len(said)


def _spread(text: str) -> list[str]:
    """Words, casefolded; in scripts without spaces, signs."""
    found: list[str] = []
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        found += list(word) if _JOINED.get(script_of(word[0]), "") == "CJK" else [word]
    return found


def _soup(text: str) -> str | None:
    """Letters at random, or scraps of many scripts. Code blocks do not count."""
    plain = _FENCED.sub("", text)
    words = re.findall(r"\b[A-Za-z][a-z]{3,}\b", plain)
    odd = sum(_UNREADABLE.search(word.lower()) is not None for word in words)
    if len(words) >= 8 and odd >= UNREADABLE * len(words):
        return "letters at random"
    scripts: list[list[str]] = []
    for line in plain.splitlines():
        for run in re.split(r"[^\w\s]*\s[^\w\s]+\s|[,;:|/()=\-–—](?:\s|$)", line):
            found = [_JOINED.get(s, s) for s in (script_of(w[0]) for w in _LETTERS.findall(run)) if s]
            if found:
                scripts.append(found)
    shares = Counter(s for run in scripts for s in run)
    neighbours = sum(len(run) - 1 for run in scripts)
    switches = sum(a != b for run in scripts for a, b in pairwise(run))
    if len(shares) >= 3 and neighbours >= 8 and switches >= SWITCHES * neighbours:
        return "scraps of many scripts"
    return None
