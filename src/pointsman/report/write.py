"""Reading what a report is made of from a run folder, which may come from a stranger, and writing it there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pointsman.errors import RunError
from pointsman.report.answers import BESIDE, FILE, Kept
from pointsman.report.blocks import Page
from pointsman.report.html import render
from pointsman.report.sections.answers import with_answers
from pointsman.runs.folder import PRIVATE, USUAL, read_file, refuse_links, replace_file
from pointsman.runs.run import REPORT, RESULTS

VERDICTS = "artefacts/verdicts"
"""Where judges that were asked later leave a file each."""


def read_folder(folder: Path) -> dict[str, Any]:
    """What ``results.json`` of a run holds, as JSON. Nothing in the folder is followed.

    Raises:
        RunError: There are no results yet, they cannot be read, or something in the folder leads out of it.
    """
    path = folder / RESULTS
    if folder.is_dir() and os.path.lexists(path):
        refuse_links(folder)
    try:
        results = json.loads(read_file(path).decode("utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no {RESULTS}, so there is nothing to report yet",
            f"Finish the run with `pointsman resume {folder}`",
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})", "Check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is not valid JSON ({error})", f"Write it again with `pointsman resume {folder}`"
        ) from error
    if not isinstance(results, dict):
        raise RunError(f"{path} does not hold an object", "Point to the folder of a finished run")
    return results


def write_page(folder: Path, page: Page, judge: str) -> Path:
    """Write the report of a run, whole or not at all.

    Where the page shows texts, prompts and answers are read from the folder, and the report is for its owner's eyes
    alone, as they are.

    Args:
        judge: Name of the run's own.

    Returns:
        The path of the report.

    Raises:
        RunError: The prompts and answers cannot be read, or the report cannot be written.
    """
    if page.show_text:
        page = with_answers(page, read_kept(folder, judge))
    return write_html(folder, render(page), private=page.show_text)


def write_html(folder: Path, html: str, *, private: bool) -> Path:
    """Write the report of a run, whole or not at all; see `write_page`."""
    target = folder / REPORT
    try:
        replace_file(target, html.encode("utf-8", "replace"), PRIVATE if private else USUAL)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror})", "Check the folder's permissions and free space"
        ) from error
    return target


def read_kept(folder: Path, judge: str) -> Kept:
    """Prompts and answers of a run, and what judges say of them.

    Args:
        judge: Name of the run's own.
    """
    place = folder / VERDICTS
    names = sorted(p.name for p in place.iterdir() if p.suffix == ".jsonl") if place.is_dir() else []
    verdicts = {name.removesuffix(".jsonl"): _read_lines(place / name) or [] for name in names}
    beside = {name: _read_lines(folder / f"artefacts/{name}.jsonl") or [] for name in BESIDE}
    return Kept(_read_lines(folder / FILE), **beside, verdicts=verdicts, judge=judge)


def _read_lines(path: Path) -> list[dict[str, Any]] | None:
    """Records of a file, None if there is none. A line that cannot be read becomes an empty record."""
    try:
        lines = read_file(path).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})", "Check its permissions") from error
    found: list[dict[str, Any]] = []
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = {}
        found.append(record if isinstance(record, dict) else {})
    return found
