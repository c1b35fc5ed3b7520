"""docs/models.md says what Pointsman does with every MoE type of transformers: true, whole, not out of date."""

from __future__ import annotations

import importlib.util
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pointsman.engine.route_gradients import LayerGradient
from pointsman.errors import ControlFailed, UncontrollableRouter
from pointsman.routing.control import prove
from pointsman.routing.routers import find_routers

pytestmark = pytest.mark.versions


def _script() -> Any:
    path = Path(__file__).resolve().parents[2] / "scripts" / "families.py"
    spec = importlib.util.spec_from_file_location("walk_of_families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["walk_of_families"] = module
    spec.loader.exec_module(module)
    return module


walk = _script()
SAME_VERSION = walk.written()[0] == transformers.__version__
# One of every way to say which experts were chosen, and one of every way to be refused.
SAMPLE = [
    *("deepseek_v2", "gemma4_text", "jetmoe", "llama4_text", "longcat_flash", "minimax_m2"),
    *("dbrx", "deepseek_v4", "doge", "zaya"),
]


def table() -> dict[str, str]:
    """Type -> its line of the page."""
    lines = [line for line in walk.written()[1].splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[1:]}


def true_row(row: Any) -> None:
    assert row.outcome != "misread", row
    assert row.own, row  # refused, if at all, by an error of ours
    if row.outcome == "controlled":
        assert row.routers > 0


@pytest.mark.parametrize("name", SAMPLE)
def test_the_page_says_what_is(name: str) -> None:
    if name not in walk.types():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    row = walk.examine(name)
    true_row(row)
    if SAME_VERSION:
        assert walk.alike(walk.page([row]).splitlines()[-1], table()[name])


def test_the_page_is_whole() -> None:
    if not SAME_VERSION:
        pytest.skip(f"the page is of transformers {walk.written()[0]}, not {transformers.__version__}")
    assert sorted(table()) == walk.types()
    assert not any("misread" in line for line in table().values())


def test_control_that_does_nothing_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = walk.build("mixtral")
    assert walk.check(model, find_routers(model)) == ""
    monkeypatch.setattr(walk, "control", lambda *args, **kwargs: nullcontext())
    assert "was forced to" in walk.check(model, find_routers(model))


def test_a_gradient_that_is_wrong_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = walk.build("mixtral")
    real = LayerGradient.gain
    monkeypatch.setattr(LayerGradient, "gain", lambda layer, experts: real(layer, experts) * 1.1)
    assert "estimated gains are not the derivative" in walk.guide(model)[1]


def test_a_model_without_a_gradient_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = walk.build("mixtral")
    said = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: said(x).detach())
    assert walk.guide(model) == ("refused: no gradient", "")


def test_pages_are_alike_but_for_the_last_digit_of_a_correlation() -> None:
    line = "| mixtral | 4 | 16 | 3 | - | 0.98, 0.57 | controlled |"
    assert walk.alike(line, line.replace("0.57", "0.58"))
    assert not walk.alike(line, line.replace("0.57", "0.67"))
    assert not walk.alike(line, line.replace("| 4 |", "| 5 |"))
    assert not walk.alike(line, line.replace("0.98, 0.57", "refused: no gradient"))


def test_a_page_of_another_version_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"{walk.BEGIN}\ntransformers 5.0.0: 1 controlled.\n{walk.END}\n", encoding="utf-8")
    monkeypatch.setattr(walk, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["families.py", "--check"])
    assert walk.main() == 0
    assert "no check" in capsys.readouterr().out


def test_a_stale_page_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    monkeypatch.setattr(walk, "PAGE", page)
    monkeypatch.setattr(walk, "types", lambda: ["mixtral"])
    page.write_text(f"before\n{walk.BEGIN}\n{walk.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["families.py"])
    assert walk.main() == 0
    line = next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| mixtral"))
    assert re.fullmatch(r"\| mixtral \| 4 \| 16 \| 3 \| - \| \d\.\d\d, -?\d\.\d\d \| controlled \|", line)
    monkeypatch.setattr(sys, "argv", ["families.py", "--check"])
    assert walk.main() == 0
    page.write_text(page.read_text(encoding="utf-8").replace("| 4 | 16", "| 5 | 16"), encoding="utf-8")
    assert walk.main() == 1


@pytest.mark.skipif("deepseek_v4" not in walk.types(), reason="this transformers has no deepseek_v4")
def test_deepseek_v4_is_refused_for_its_tables_and_for_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first layers choose experts by token id, from a table; its attention compresses padding with the prompt."""
    with pytest.raises(UncontrollableRouter, match=r"layers\.0\.mlp has experts but not a router"):
        prove(walk.build("deepseek_v4"))
    monkeypatch.setitem(walk._ALSO, "deepseek_v4", {"mlp_layer_types": ["moe"] * 4})
    with pytest.raises(ControlFailed, match="does not say in a left-padded batch what it says alone"):
        prove(walk.build("deepseek_v4"))


@pytest.mark.skipif("zaya" not in walk.types(), reason="this transformers has no zaya")
@pytest.mark.parametrize("width", [16, 17])
def test_zayas_inner_products_are_never_taken_for_logits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Its logits have a column more than it has experts, and come after products of a width of anyone's choice."""
    monkeypatch.setitem(walk._ALSO, "zaya", {"num_experts_per_tok": 1, "router_hidden_size": width})
    row = walk.examine("zaya")
    assert row.outcome == "refused"
    assert row.own, row


@pytest.mark.slow
def test_every_type_of_transformers() -> None:
    walk.quiet()
    rows = [walk.examine(name) for name in walk.types()]
    for row in rows:
        true_row(row)
    assert sum(row.outcome == "controlled" for row in rows) >= 40
    if SAME_VERSION:
        assert walk.alike(walk.page(rows), walk.written()[1])
    assert torch.get_num_threads() == 1
