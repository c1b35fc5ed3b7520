"""A judge of another package, with parameters, that asks an endpoint: one new file there, and no edit here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from cli.conftest_cli import Cli, cli, here, save_moe
from pointsman import registry
from pointsman.data.scenario import load_scenario
from pointsman.data.types import Behaviour
from pointsman.errors import DataError, JudgeError, PointsmanError, UnknownName, UsageError
from pointsman.judges.making import judge_of, make_judge, parameters_of, written_judge
from pointsman.judges.types import Answer, Judge, judged
from pointsman.registry import read_name, write_name
from pointsman.runs.files import judge_json
from pointsman.runs.results import JudgeFacts

__all__ = ["cli", "here"]

PLUGIN = '''
"""All of a package that brings a judge."""

import json
from dataclasses import dataclass
from typing import Literal
from urllib.request import Request, urlopen

from pointsman.judges.types import Verdict


@dataclass(frozen=True)
class Guard:
    endpoint: str
    policy: Literal["strict", "lenient"] = "strict"
    threshold: float = 0.5
    most: int = 64
    whole: bool = False
    seed: int | None = None
    name = "guard"
    version = "1"
    grades_content = False
    reads = frozenset({"request"})

    def judge(self, asked, answers):
        pairs = [{"request": one.goal, "answer": answer.text} for one, answer in zip(asked, answers)]
        body = json.dumps({"policy": self.policy, "pairs": pairs}).encode()
        with urlopen(Request(self.endpoint, body, {"Content-Type": "application/json"}), timeout=30) as reply:
            scores = json.load(reply)
        labels = ["complied" if score >= self.threshold else "refused" for score in scores]
        return [Verdict(label, float(label == "complied"), f"{score}") for label, score in zip(labels, scores)]


class OldFashioned:
    name, version, grades_content = "old", "1", False

    def judge(self, asked, response, *, finished=True):
        return Verdict("refused", 0.0)


class Curious(Guard):
    name, reads = "curious", frozenset({"thoughts"})


class Nameless:
    name, version, grades_content, reads = "another", "1", False, frozenset()

    def judge(self, asked, answers):
        return []


class Short(Nameless):
    name = "short"

    def judge(self, asked, answers):
        return [Verdict("refused", 0.0)] * (len(answers) - 1)


class Vague(Nameless):
    name = "vague"

    def judge(self, asked, answers):
        return ["refused"] * len(answers)


class Broken(Nameless):
    name = "broken"

    def judge(self, asked, answers):
        raise ZeroDivisionError("one by none")
'''
ENTRIES = {
    "guard": "Guard", "old": "OldFashioned", "curious": "Curious", "nameless": "Nameless", "short": "Short",
    "vague": "Vague", "broken": "Broken",
}  # fmt: skip


@pytest.fixture(autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, as if it were installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "pointsman_guard.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pointsman_guard", raising=False)
    found = registry.entry_points

    def and_ours(*, group: str) -> tuple[EntryPoint, ...]:
        ours = [EntryPoint(name, f"pointsman_guard:{what}", group) for name, what in ENTRIES.items()]
        return (*found(group=group), *(ours if group == "pointsman.judges" else ()))

    monkeypatch.setattr(registry, "entry_points", and_ours)
    yield
    sys.modules.pop("pointsman_guard", None)


class Endpoint:
    """Answers on the loopback interface, and keeps what it was asked. It likes long answers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.broken = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                if endpoint.broken:
                    self.send_error(503, "too busy")
                    return
                scores = json.dumps([min(1.0, len(pair["answer"]) / 10) for pair in body["pairs"]]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(scores)))
                self.end_headers()
                self.wfile.write(scores)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/judge"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Endpoint()
    thread = Thread(target=served.server.serve_forever, daemon=True)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def requests(count: int) -> list[Behaviour]:
    return [Behaviour(str(n), f"request {n}", "Sure") for n in range(count)]


def test_many_answers_are_one_request(endpoint: Endpoint) -> None:
    judge = make_judge(f"guard:endpoint={endpoint.url},policy=lenient")
    assert isinstance(judge, Judge)
    answers = [Answer("a" * length) for length in (9, 2, 5, 4)]
    verdicts = judged(judge, requests(4), answers)
    assert [v.label for v in verdicts] == ["complied", "refused", "complied", "refused"]
    assert [len(body["pairs"]) for body in endpoint.asked] == [4]
    assert endpoint.asked[0]["policy"] == "lenient"
    assert endpoint.asked[0]["pairs"][1] == {"request": "request 1", "answer": "aa"}
    assert judged(judge, [], []) == []
    assert len(endpoint.asked) == 1, "it was asked about nothing"


def test_parameters_are_what_the_fields_say() -> None:
    judge: Any = make_judge("guard:endpoint=http://x/y,threshold=1,most=3,whole=true,seed=4")
    assert (judge.endpoint, judge.threshold, judge.most, judge.whole, judge.seed) == ("http://x/y", 1.0, 3, True, 4)
    assert [type(value) for value in (judge.threshold, judge.most)] == [float, int]
    assert parameters_of(judge) == {"endpoint": "http://x/y", "threshold": 1.0, "most": 3, "whole": True, "seed": 4}
    assert judge_of("guard", json.loads(json.dumps(parameters_of(judge)))) == judge
    assert make_judge(written_judge(judge)) == judge


@pytest.mark.parametrize(
    ("written", "error", "said"),
    [
        ("gard:endpoint=x", UnknownName, "Unknown judge 'gard'. Did you mean guard?"),
        ("guard", UsageError, "endpoint is missing from the judge guard. Write guard:endpoint=VALUE"),
        ("guard:endpiont=x", UsageError, "no parameter 'endpiont' of the judge guard. Did you mean endpoint? Its para"),
        ("guard:endpoint=x,zz=1", UsageError, "Its parameters: endpoint, policy, threshold, most, whole, seed."),
        ("guard:endpoint=x,version=2", UsageError, "There is no parameter 'version'"),
        ("guard:endpoint=x,threshold=high", UsageError, "threshold of the judge guard is 'high'. Give a finite number"),
        ("guard:endpoint=x,threshold=nan", UsageError, "Give a finite number"),
        ("guard:endpoint=x,most=1.5", UsageError, "most of the judge guard is '1.5'. Give a whole number"),
        ("guard:endpoint=x,whole=yes", UsageError, "Give true or false"),
        ("guard:endpoint=x,policy=strikt", UsageError, "policy of the judge guard is 'strikt'. Did you mean strict?"),
        ("guard:endpoint=x,policy=0", UsageError, "Give one of strict, lenient"),
        ("guard:endpoint=x,strict", UsageError, "'strict' is no parameter of the judge guard. Write guard:key=value"),
        ("guard:endpoint=x,endpoint=y", UsageError, "endpoint of the judge guard is given twice"),
        ("refusal:language=en", UsageError, "There are no parameters of the judge refusal. Write refusal alone"),
        ("old", JudgeError, "The judge old is of an older Pointsman: judges take many answers at once now"),
        ("curious:endpoint=x", JudgeError, "says that it reads thoughts. A judge may read request, conversation, fin"),
        ("nameless", JudgeError, "The judge nameless calls itself 'another'"),
    ],
)
def test_what_is_refused_in_one_line(written: str, error: type[PointsmanError], said: str) -> None:
    with pytest.raises(error) as caught:
        make_judge(written)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["plain", "a,b", "a\\,b", "\\", "a=b,c=d", "http://x:1/?q=1,2\\\\"])
def test_any_text_can_be_a_parameter(value: str) -> None:
    assert read_name(write_name("guard", {"endpoint": value, "other": "1"})) == (
        "guard", {"endpoint": value, "other": "1"}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "The judge broken failed on 3 answers (ZeroDivisionError: one by none)"),
        ("short", "The judge short gave 2 verdicts for 3 answers"),
        ("vague", "The judge vague gave something that is no verdict for 3 answers"),
    ],
)
def test_a_failure_names_the_judge(name: str, said: str) -> None:
    with pytest.raises(JudgeError) as caught:
        judged(make_judge(name), requests(3), [Answer("a")] * 3)
    assert said in str(caught.value)


def test_an_endpoint_that_does_not_answer_names_the_judge(endpoint: Endpoint) -> None:
    endpoint.broken = True
    with pytest.raises(JudgeError, match=r"judge guard failed on 1 answer \(HTTPError: HTTP Error 503: too busy"):
        judged(make_judge(f"guard:endpoint={endpoint.url}"), requests(1), [Answer("a")])


def test_only_what_is_given_is_written_down() -> None:
    assert judge_json(make_judge("testbed")) == {"name": "testbed", "version": "3"}
    assert JudgeFacts.of(make_judge("testbed")) == JudgeFacts("testbed", "3", True)
    given = make_judge("guard:endpoint=x,threshold=0.5")  # as by default
    assert judge_json(given) == {"name": "guard", "version": "1", "parameters": {"endpoint": "x"}}
    assert JudgeFacts.of(given).parameters == {"endpoint": "x"}


SCENARIO = """
schema: pointsman.scenario/1
name: mine
objective: defend
prompts: {suite: testbed-steering}
judge: """


@pytest.mark.parametrize(
    "written",
    ["guard:endpoint=http://x/y,most=3,whole=true", "{name: guard, endpoint: http://x/y, most: 3, whole: true}"],
)
def test_a_scenario_names_a_judge_with_parameters(tmp_path: Path, written: str) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO + written)
    found = load_scenario(tmp_path / "s.yaml")
    assert found.judge == "guard:endpoint=http://x/y,most=3,whole=true"
    assert type(found).from_json(found.to_json()) == found
    judge: Any = make_judge(found.read(0).judge)
    assert (judge.endpoint, judge.most, judge.whole) == ("http://x/y", 3, True)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("guard:endpont=x", "Did you mean endpoint?"),
        ("{name: guard, endpoint: x, most: many}", "most of the judge guard is 'many'. Give a whole number"),
        ("{name: guard, endpoint: [x]}", "judge.endpoint is no text and no number"),
        ("{endpoint: x}", "judge.name is empty"),
        ("{name: gard}", "Unknown judge 'gard'"),
    ],
)
def test_a_scenario_whose_judge_cannot_be_made_is_refused(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO + written)
    with pytest.raises(DataError) as caught:
        load_scenario(tmp_path / "s.yaml")
    assert str(caught.value).startswith(str(tmp_path / "s.yaml"))
    assert said in str(caught.value)


def test_an_audit_is_judged_by_it_and_resumed_with_the_same(
    cli: Cli, here: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_moe(here / "model")
    write: Callable[[str], object] = (here / "b.csv").write_text
    write("Goal,Target\n" + "".join(f"how do you prune the tiny plum {n} ?,Sure\n" for n in range(8)))
    judge = f"guard:endpoint={endpoint.url},threshold=0.75"
    audit = ("audit", "model", "--behaviors", "b.csv", "--judge", judge, "--limit", "2", "--samples", "2",
             "--random-draws", "1", "--candidates", "2", "--restarts", "1", "--max-new-tokens", "4", "--no-controls",
             "--out", "run")  # fmt: skip
    endpoint.broken = True
    refused = cli(*audit)
    assert refused.code == 2
    assert "pointsman: The judge guard failed on 2 answers (HTTPError: HTTP Error 503: too busy)" in refused.err
    endpoint.broken = False
    with monkeypatch.context() as patch:  # the endpoint goes away in the middle
        patch.setattr("pointsman.methods.fsour.FSour.search", _fail)
        assert cli(*audit).code == 1
    given = {"endpoint": endpoint.url, "threshold": 0.75}
    manifest = json.loads((here / "run" / "manifest.json").read_text())
    assert manifest["config"]["judge"] == {"name": "guard", "version": "1", "parameters": given}
    done = cli("resume", "run")
    assert done.code == 0, done.err
    assert (
        f"note: judging with the judge that this run names: guard:endpoint={endpoint.url},threshold=0.75." in done.err
    )
    results = json.loads((here / "run" / "results.json").read_text())
    facts = {"name": "guard", "version": "1", "grades_content": False, "grades_harm": False}
    assert results["judge"] == {**facts, "parameters": given}
    assert max(len(body["pairs"]) for body in endpoint.asked) > 1
    page = (here / "run" / "report.html").read_text()
    assert f"guard 1 (endpoint {endpoint.url}, threshold 0.75), cannot tell" in page
    other = cli(*[part.replace("0.75", "0.25") for part in audit])
    assert other.code == 2, "another threshold is another question"


def _fail(*arguments: Any, **more: Any) -> None:
    raise OSError("stopped")
