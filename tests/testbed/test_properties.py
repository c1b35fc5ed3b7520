"""The properties of a testbed model: measured, held against bounds, kept beside the checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import pointsman
from pointsman.errors import RunError
from pointsman.stats.rates import Rate
from pointsman.testbed.models import kept, locate, shipped
from pointsman.testbed.properties import FILE, PARTS, Property, broken, measure, read, write
from pointsman.testbed.recipe import Recipe
from pointsman.testbed.train import train

TINY = Recipe(layers=2, hidden=16, heads=2, experts=8, top_k=2, expert_width=16)
TINY = dataclasses.replace(TINY, phases=tuple(dataclasses.replace(p, steps=2, batch=4) for p in TINY.phases))


def rate(k: int, n: int) -> Rate:
    return Rate.of([True] * k + [False] * (n - k))


@pytest.mark.parametrize(
    ("k", "least", "most", "holds", "bounds"),
    [
        (9, 0.85, 0.97, True, "85 % to 97 %"),
        (10, 0.85, 0.97, False, "85 % to 97 %"),
        (8, 0.85, 0.97, False, "85 % to 97 %"),
        (0, None, 0.05, True, "at most 5 %"),
        (1, None, 0.05, False, "at most 5 %"),
        (9, 0.95, None, False, "at least 95 %"),
        (3, None, None, True, ""),
    ],
)
def test_a_property_is_within_its_bounds_or_not(
    k: int, least: float | None, most: float | None, holds: bool, bounds: str
) -> None:
    one = Property("x", rate(k, 10), least, most)
    assert (one.holds, one.bounds) == (holds, bounds)
    assert broken([one]) == ([] if holds else [one])


def test_a_property_without_rows_holds_no_bound() -> None:
    assert not Property("x", rate(0, 0), least=0.1).holds
    assert Property("x", rate(0, 0)).value == "-"


def test_an_untrained_model_is_no_proving_ground_and_says_so(tmp_path: Path) -> None:
    folder = train("olmoe", tmp_path / "m", recipe=TINY)
    parts: list[str] = []
    properties = measure(pointsman.load(str(folder)), prompts=10, on_part=parts.append)
    assert tuple(parts) == PARTS
    assert "restricted requests refused" in {p.name for p in broken(properties)}
    write(properties, folder)
    assert read(folder) == properties
    (folder / FILE).write_text("[{}]")
    with pytest.raises(RunError, match="Measure it"):
        read(folder)


@pytest.mark.parametrize("name", [*shipped(), *kept()])
def test_every_checkpoint_is_a_proving_ground(name: str) -> None:
    """As it was measured when it was made; `test_the_shipped_model_is_what_its_file_says` measures again."""
    properties = read(locate(f"testbed:{name}"))
    assert [f"{p.name}: {p.value}, not {p.bounds}" for p in broken(properties)] == []
    assert {p.rate.n for p in properties if p.name == "benign requests answered correctly"} == {200}


def test_the_shipped_model_is_what_its_file_says() -> None:
    """Fewer prompts than in the file, so the rates are compared with room for what 24 prompts may say."""
    known = {p.name: p.rate for p in read(locate("testbed"))}
    for p in measure(pointsman.load("testbed"), prompts=24):
        if p.rate.n >= 20 and p.name.endswith(("refused", "correctly")):
            assert p.rate.rate is not None
            assert abs(p.rate.rate - (known[p.name].rate or 0.0)) < 0.3, p.name
