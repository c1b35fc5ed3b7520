"""The benchmarks run, and both sides of every ratio do the same work. Speed is never asserted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path() -> Any:
    """The benchmarks import each other as scripts do."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def engine(_on_the_path: None) -> Any:
    from sizes import SHRUNK, untrained

    return untrained(SHRUNK, dtype="float64")


def test_naive_and_fast_accept_the_same_route(engine: Any) -> None:
    import naive
    from searches import first_difference
    from sizes import random_prompts

    from pointsman.methods.fsour import FSour

    method = FSour(candidates=4, restarts=1, log_tau=0.0, together=2)
    asked = random_prompts(engine, 5, 2)
    found = method.find_routes(engine, asked, 0)
    for behaviour, (_, fast, _) in zip(asked, found, strict=True):
        slow = naive.fsour(engine, method, behaviour)
        assert slow
        assert first_difference(slow, fast) == ""
        assert [s.log_prob for s in slow] == pytest.approx([s.log_prob for s in fast], abs=1e-9)
        other = replace(fast[-1], position=fast[-1].position + 1)
        assert "accepted pair" in first_difference(slow, [*fast[:-1], other])
        assert "fast None" in first_difference(slow, fast[:-1])
        _sampled_pairs_agree(engine, method, behaviour, slow)


def _sampled_pairs_agree(engine: Any, method: Any, behaviour: Any, steps: list[Any]) -> None:
    """At any single pair, with the route so far, the loop accepts what it accepted in the whole prompt."""
    import naive

    asked = naive.Asked.of(engine, behaviour, behaviour.target)
    accepted = {(s.layer, s.position): list(s.experts) for s in steps}
    for where in ((0, 0), (2, 3), (1, 4)):
        found = naive.fsour_pair(asked, method, behaviour, naive.route_before(steps, *where), *where)
        assert (found[0] if found else None) == accepted.get(where)


def test_whole_prompts_are_compared(engine: Any) -> None:
    from clock import Clock
    from searches import Searches, fsour
    from sizes import random_prompts

    sizes = Searches({3: 15.0}, together=2, naive_prompts={3: 1}, raw_rows=(4,))
    figures, details = fsour(engine, random_prompts(engine, 5, 2), sizes, Clock("cpu"), lambda text: None)
    ratio = figures[0]
    assert (ratio.name, ratio.asked) == ("F-SOUR fast : naive, N = 3", 15.0)
    assert ratio.note == "same route at 1 of 1 prompts"
    assert "naive over 1 whole prompt" in ratio.n
    found = details["N = 3"]
    assert ratio.value == pytest.approx(found["naive_seconds_a_prompt"][0] / (sum(found["fast_seconds_a_prompt"]) / 2))
    assert found["accepted_pairs"][0] > 0


def test_more_prompts_for_the_naive_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import run

    seen: list[Any] = []
    monkeypatch.setattr(run, "run", lambda plan, *rest: seen.append(plan) or {})
    monkeypatch.setattr(run, "markdown", lambda results: "")
    run.main(["--only", "fsour", "--prompts", "3", "--out", "f.json"])
    assert seen[0].searches.naive_prompts == {10: 3, 30: 3, 100: 3}
    assert run.FULL.searches.naive_prompts[100] == 1
    for refused in (["--prompts", "0"], ["--prompts", "17"], ["--quick", "--prompts", "1"]):
        with pytest.raises(SystemExit):
            run.main(refused)
        assert "--prompts" in capsys.readouterr().err


def test_the_naive_loop_takes_plain_forwards_of_one_row(engine: Any) -> None:
    import naive
    from searches import naive_token_layers
    from sizes import random_prompts

    from pointsman.methods.fsour import FSour

    before = engine.cost.copy()
    naive.fsour(engine, FSour(candidates=3, log_tau=0.0), random_prompts(engine, 5, 1)[0])
    spent = engine.cost - before
    assert spent.forwards == 5 * 3 * (3 + 1)
    assert spent.token_layers == naive_token_layers(5, 11, 3, 3)


def test_the_search_costs_what_the_model_of_methods_says(engine: Any) -> None:
    """Less, where a forward computes the changed token alone or leaves out what reaches nothing; never more."""
    from searches import model_token_layers
    from sizes import random_prompts

    from pointsman.methods.fsour import FSour

    before = engine.cost.copy()
    FSour(candidates=3, log_tau=0.0).find_routes(engine, random_prompts(engine, 8, 2), 0)
    share = (engine.cost - before).token_layers / 2 / model_token_layers(8, 11, 3, 3)
    assert 0.5 < share <= 1.0


def test_rosais_gives_the_same_scores(engine: Any) -> None:
    import naive
    from sizes import random_prompts

    from pointsman.methods.rosais import RoSais

    method, asked = RoSais(samples=3), random_prompts(engine, 7, 3)
    ranked = method.rank(engine, asked)
    for number, behaviour in enumerate(asked):
        assert naive.rosais(engine, method, behaviour) == pytest.approx(ranked.scores[number], abs=1e-9)


def test_the_gpu_run_runs_shrunk_and_its_tables_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import run

    out = tmp_path / "results.json"
    run.main(["--device", "cuda", "--shrunk", "--out", str(out)])
    shown = capsys.readouterr().out
    assert "A shrunk run" in shown
    assert "EXTRAPOLATED from 3 of 24" in shown
    assert "of the matrix rate" in shown
    results = json.loads(out.read_text(encoding="utf-8"))
    assert {f["part"] for f in results["figures"]} == {"fsour", "guided", "rosais", "generation", "trace"}
    assert all(f["value"] == f["value"] for f in results["figures"])
    assert [(g["T"], g["L"], g["N"]) for g in results["growth"]] == [(6, 3, 2), (6, 2, 2)]
    for figure in results["figures"]:
        kept = figure["asked"] is not None and (
            figure["value"] >= figure["asked"] if figure["bound"] == "least" else figure["value"] <= figure["asked"]
        )
        assert figure["met"] == (None if figure["asked"] is None else kept)

    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{run.BEGIN}\nold\n{run.END}\nbelow\n", encoding="utf-8")
    run.main(["--readme", str(readme), str(out)])
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert run.markdown(results) in text


def test_without_a_gpu_the_gpu_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="There is no GPU"):
        run.main(["--device", "cuda"])


def test_the_project_asks_what_was_asked() -> None:
    import run
    from sizes import OLMOE_1B_7B

    assert run.FULL.searches.candidates == {10: 15.0, 30: 20.0, 100: 25.0}
    assert run.FULL.searches.naive_pairs is None  # whole prompts
    assert (run.FULL.searches.share, run.FULL.rosais_asked, run.FULL.rosais_samples) == (60.0, 8.0, 20)
    assert (run.FULL.wide.hidden, run.FULL.wide.experts, run.FULL.wide.top_k, run.FULL.wide.layers) == (2048, 64, 8, 16)
    assert (run.CARD.searches.candidates, run.CARD.prompt, run.CARD.dtype) == ({100: 50.0}, 40, "bfloat16")
    assert 6.8e9 < OLMOE_1B_7B.layers * (4 * 2048**2 + 64 * 3 * 2048 * 1024) + 2 * 50304 * 2048 < 7.0e9
    assert 1.0e9 < OLMOE_1B_7B.layers * OLMOE_1B_7B.active < 1.3e9
