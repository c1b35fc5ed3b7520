"""The page of a steer run as it was, until it is made of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pointsman.report.geometry import rate_bar
from pointsman.report.steer.view import steer_view
from pointsman.report.values import STEER, check_schema, tick_text
from pointsman.report.write import read_completions, write_html


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


def render_steer(
    results: Mapping[str, Any],
    *,
    completions: Iterable[Mapping[str, Any]] | None = None,
    show_text: bool = False,
) -> str:
    """Render the results of a steer run as one self-contained HTML page."""
    view = steer_view(check_schema(results, STEER), completions if show_text else None, show_text=show_text)
    return _environment().get_template("steer/page.html.j2").render(view)


def write_steer(folder: Path, results: Mapping[str, Any], *, show_text: bool) -> Path:
    """The report of a steer run."""
    completions = read_completions(folder) if show_text else None
    html = render_steer(results, completions=completions, show_text=show_text)
    return write_html(folder, html, private=show_text)
