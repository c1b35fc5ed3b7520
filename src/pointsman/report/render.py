"""`render_audit`, `render_steer` and `write_report`: from results to one HTML file that needs nothing else.

The page makes no request and runs no script (a Content-Security-Policy says so to the browser).  Model output
is untrusted: Jinja escapes every value, and prompts, answers and prompt tokens are redacted unless the caller
asks for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pointsman.errors import RunError
from pointsman.report.geometry import rate_bar
from pointsman.report.steer.view import steer_view
from pointsman.report.values import STEER, check_schema, schema_of, tick_text
from pointsman.report.view import audit_view
from pointsman.runs.folder import PRIVATE, USUAL, read_file, refuse_links, replace_file

RESULTS = "results.json"
COMPLETIONS = Path("artefacts") / "completions.jsonl"
REPORT = "report.html"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pointsman.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(rate_bar=rate_bar, number=tick_text)
    return environment


def render_audit(
    results: Mapping[str, Any],
    *,
    completions: Iterable[Mapping[str, Any]] | None = None,
    show_text: bool = False,
) -> str:
    """Render the results of an audit as one self-contained HTML page.

    Args:
        results: The content of `results.json`, schema ``pointsman.audit/2``.
        completions: The lines of `artefacts/completions.jsonl`; read only with `show_text`.
        show_text: Show prompts, answers and prompt tokens. They are escaped either way.

    Raises:
        RunError: The results are of another schema, or an entry is missing or of the wrong type.
    """
    view = audit_view(check_schema(results), completions if show_text else None, show_text=show_text)
    return _environment().get_template("audit.html.j2").render(view)


def render_steer(
    results: Mapping[str, Any],
    *,
    completions: Iterable[Mapping[str, Any]] | None = None,
    show_text: bool = False,
) -> str:
    """Render the results of a steer run as one self-contained HTML page.

    Args:
        results: The content of `results.json`, schema ``pointsman.steer/1``.
        completions: The lines of `artefacts/completions.jsonl`; read only with `show_text`.
        show_text: Show prompts and answers. They are escaped either way.

    Raises:
        RunError: The results are of another schema, or an entry is missing or of the wrong type.
    """
    view = steer_view(check_schema(results, STEER), completions if show_text else None, show_text=show_text)
    return _environment().get_template("steer/page.html.j2").render(view)


def write_report(run_folder: Path, *, show_text: bool = False) -> Path:
    """Render `run_folder` into its `report.html`, which appears whole or not at all.

    Args:
        run_folder: A finished audit or steer run, with `results.json`, whose schema decides which page it is. It may
            come from a stranger: nothing in it is followed.
        show_text: Show prompts and answers, read from `artefacts/completions.jsonl`. The page is then for its owner's
            eyes alone, as that file is.

    Returns:
        The path of the report.

    Raises:
        RunError: There are no results yet, they cannot be read, something in the folder leads out of it, or it cannot
            be written.
    """
    run_folder = Path(run_folder)
    if run_folder.is_dir() and os.path.lexists(run_folder / RESULTS):
        refuse_links(run_folder)
    results = _read_results(run_folder / RESULTS)
    completions = _read_completions(run_folder / COMPLETIONS) if show_text else None
    render = render_steer if schema_of(results) == STEER else render_audit
    page = render(results, completions=completions, show_text=show_text)
    target = run_folder / REPORT
    try:
        replace_file(target, page.encode("utf-8", "replace"), PRIVATE if show_text else USUAL)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror})", "Check the folder's permissions and free space"
        ) from error
    return target


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(read_file(path).decode("utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path.parent} has no {path.name}, so there is nothing to report yet",
            f"Finish the run with `pointsman resume {path.parent}`",
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})", "Check its permissions") from error
    except ValueError as error:
        raise RunError(
            f"{path} is not valid JSON ({error})", f"Write it again with `pointsman resume {path.parent}`"
        ) from error
    if not isinstance(results, dict):
        raise RunError(f"{path} does not hold an object", "Point to the folder of a finished run")
    return results


def _read_completions(path: Path) -> list[dict[str, Any]] | None:
    """The lines of the file, None if it is not there. A line that cannot be read becomes an empty record."""
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
        except ValueError:
            record = {}
        found.append(record if isinstance(record, dict) else {})
    return found
