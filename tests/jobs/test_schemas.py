"""docs/schemas/ says what results.json holds: it is what the classes say, and what finished runs hold."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from pointsman.registry import jobs

ROOT = Path(__file__).resolve().parents[2]
SPEC = spec_from_file_location("schemas", ROOT / "scripts/schemas.py")
assert SPEC is not None
assert SPEC.loader is not None
schemas = module_from_spec(SPEC)
SPEC.loader.exec_module(schemas)


def test_every_job_has_its_schema_and_none_is_old() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/schemas").glob("*.json")}
    assert kept.keys() == {f"{name}.json" for name in jobs.names()}
    for name, text in schemas.schemas().items():
        assert kept[name] == text, f"{name}: `make schemas` writes it anew"


@pytest.mark.parametrize("job", ["audit", "steer", "evaluate"])
def test_a_schema_allows_nothing_that_it_does_not_name(job: str) -> None:
    schema = json.loads(schemas.schemas()[f"{job}.json"])
    objects = [schema, *(s for s in schema["$defs"].values() if s.get("type") == "object")]
    assert len(objects) > 10
    for one in objects:
        assert one["additionalProperties"] is False
