"""lm-eval on an engine says what its own transformers model says, and under a routing what the routing makes of it.

Skipped where lm-eval is not installed: `make test-utility` installs it beside the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.conftest_cli import Cli, behaviors, cli, here, model
from pointsman import load
from pointsman.engine.hf import HFEngine
from pointsman.errors import UsageError
from pointsman.methods.steps import Steps
from pointsman.routing.intervention import Intervention
from pointsman.testbed.language import requests

pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "pointsman[utility]"')
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of lm-eval and what it brings, not of our calls
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
__all__ = ["behaviors", "cli", "here", "model"]

DOCUMENTS = 6


@dataclass
class Request:
    """What lm-eval hands to a model."""

    args: tuple[Any, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Task files of the three kinds, over a few documents in the testbed's language."""
    place = tmp_path / "my-tasks"
    place.mkdir()
    words = [r.text for r in requests("benign")[: 3 * DOCUMENTS]]
    rows = [
        {
            "question": words[3 * n],
            "choices": [words[3 * n + 1], words[3 * n + 2]],
            "label": n % 2,
            "text": words[3 * n],
        }
        for n in range(DOCUMENTS)
    ]
    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
    (place / "choose.yaml").write_text(
        f"task: tiny_choose\n{common}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: label\ndoc_to_choice: choices\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (place / "say.yaml").write_text(
        f"task: tiny_say\n{common}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{choices[0]}}'\ngeneration_kwargs:\n  max_gen_toks: 6\n  until: ['zzz']\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    (place / "read.yaml").write_text(
        f"task: tiny_read\n{common}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n"
    )
    return place


def engine_of(model: Path, batch_size: int | None = None) -> HFEngine:
    found = load(str(model), dtype="float32", batch_size=batch_size)
    assert isinstance(found, HFEngine)
    return found


def some_requests() -> dict[str, list[Request]]:
    words = [r.text for r in requests("benign")[:10]]
    pairs = list(zip(words[:5], words[5:], strict=True))
    return {
        "loglikelihood": [Request((a, " " + b)) for a, b in pairs] + [Request(("", words[0]))],
        "loglikelihood_rolling": [Request((word,)) for word in words],
        "generate_until": [Request((a, {"until": [" "], "max_gen_toks": 6})) for a, _ in pairs]
        + [Request((b, {"until": [], "max_gen_toks": 5})) for _, b in pairs],
    }


def test_it_says_what_lm_evals_own_model_says(model: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from pointsman.integrations.lm_eval import EngineLM

    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(model).eval(),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=1,
    )
    ours = EngineLM(engine_of(model))
    for kind, asked in some_requests().items():
        expected, found = getattr(theirs, kind)(asked, disable_tqdm=True), getattr(ours, kind)(asked)
        assert len(found) == len(expected) == len(asked)
        if kind == "generate_until":
            assert found == expected
        elif kind == "loglikelihood":
            assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
            assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        else:
            assert found == pytest.approx(expected, abs=1e-4)


def test_what_the_model_would_say_is_greedy(model: Path) -> None:
    from pointsman.integrations.lm_eval import EngineLM

    engine = engine_of(model)
    lm, context = EngineLM(engine), list(range(5, 12))
    said = engine.generate([lm._prompt(context)], max_new_tokens=3)[0].ids
    other = (*said[:-1], (said[-1] + 1) % 40)
    asked = [("", context, list(said)), ("", context, list(other))]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(asked)] == [True, False]


def test_the_numbers_do_not_depend_on_the_batch_and_do_on_the_routing(model: Path) -> None:
    from pointsman.integrations.lm_eval import EngineLM

    one, many = engine_of(model, 1), engine_of(model, 7)
    mask = Intervention.force({0: [0, 1], 1: [2, 3]}, phase="both")
    for kind, asked in some_requests().items():
        for routing in (None, mask):
            a, b = (getattr(EngineLM(engine, routing), kind)(asked) for engine in (one, many))
            if kind == "generate_until":
                assert a == b
            else:
                flat = [[each[0] if isinstance(each, tuple) else each for each in found] for found in (a, b)]
                assert flat[0] == pytest.approx(flat[1], abs=1e-4)
    asked = some_requests()["loglikelihood"]
    assert EngineLM(one).loglikelihood(asked) != EngineLM(one, mask).loglikelihood(asked)


def test_what_is_remembered_is_not_asked_again(model: Path, folder: Path) -> None:
    from pointsman.integrations.lm_eval import CHUNK, Tasks

    class Killed(Exception):
        """In the middle."""

    engine, memory, computed = engine_of(model), dict[str, Any](), list[str]()
    names = ["tiny_choose", "tiny_say", "tiny_read"]

    def remember(key: str, compute: Any, most: int = 99) -> Any:
        if key not in memory:
            if len(memory) >= most:
                raise Killed
            computed.append(key)
            memory[key] = json.loads(json.dumps(compute()))
        return memory[key]

    whole = Tasks(names, folder, limit=None).solve(engine, None, Steps())
    with pytest.raises(Killed):
        Tasks(names, folder, limit=None).solve(engine, None, Steps(lambda key, compute: remember(key, compute, 2)))
    first = list(computed)
    again = Tasks(names, folder, limit=None).solve(engine, None, Steps(remember))
    assert again == whole
    assert len(first) == 2
    assert len(computed) == len(set(computed)) == 3
    assert CHUNK >= 2 * DOCUMENTS
    metrics = {(o.task, o.metric): o for o in whole}
    assert {m for _, m in metrics} == {
        "acc", "acc_norm", "exact_match", "log-likelihood per word", "log-likelihood per byte",
    }  # fmt: skip
    assert all(len(o.values) == DOCUMENTS for o in whole)
    assert all(v < 0 for v in metrics["tiny_read", "log-likelihood per word"].values)


def test_tasks_are_named_never_paths_or_patterns(model: Path, folder: Path) -> None:
    from pointsman.integrations.lm_eval import _manager

    for name in (str(folder / "choose.yaml"), "tiny_*"):
        with pytest.raises(UsageError, match="knows no task"):
            _manager([name], folder)


def test_an_audit_solves_tasks_and_resumes(cli: Cli, here: Path, model: Path, behaviors: Path, folder: Path) -> None:
    from pointsman.jobs.finished import read_results

    quick = (
        "--no-controls", "--samples", 2, "--routers", 1, "--random-draws", 1, "--candidates", 2, "--restarts", 1,
        "--limit", 4, "--max-new-tokens", 4,
    )  # fmt: skip
    asked = ("audit", model, "--behaviors", behaviors, *quick, "--out", "run")
    done = cli(*asked, "--utility", "tiny_choose,tiny_read", "--utility-tasks", folder, "--utility-limit", 4)
    assert done.code == 0, done.err
    assert "12 requests under each routing" in done.err
    _, results = read_results(json.loads((here / "run/results.json").read_text()))
    tasks = results.tasks  # type: ignore[attr-defined]
    assert [arm.kind for arm in tasks.arms] == ["none", "routing", "control"]
    acc = [value for value in tasks.arms[1].values if value.metric == "acc"]
    assert (acc[0].value.n, acc[0].difference.n) == (4, 4)
    claim = results.claim("still_solves_tasks")
    assert claim is not None
    assert claim.verdict in ("holds", "in doubt", "fails")
    page = (here / "run/report.html").read_text()
    assert "What else it can do" in page
    assert "tasks" in {stage.stage for stage in results.cost.stages}
    manifest = (here / "run/manifest.json").read_text() + (here / "run/local.json").read_text()
    assert str(folder) not in manifest

    then = (here / "run/results.json").read_text()
    (here / "run/results.json").unlink()
    assert "--utility-tasks" in cli("resume", "run").refusal(notes=1)
    again = cli("resume", "run", "--utility-tasks", folder)
    assert again.code == 0, again.err
    assert json.loads((here / "run/results.json").read_text())["tasks"] == json.loads(then)["tasks"]

    (folder / "more.yaml").write_text("task: another\n")
    (here / "run/results.json").unlink()
    assert "are not those that the run began with" in cli("resume", "run", "--utility-tasks", folder).refusal()
