"""Judging over HTTP: a server on loopback that misbehaves in every way that endpoints do."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from judges.misbehaving import FAULTS, GOOD, Endpoint, completion, endpoint, error, hang, send
from pointsman.data.types import Behaviour
from pointsman.errors import JudgeError, PointsmanError, RunError, UsageError
from pointsman.judges.endpoint import RemoteJudge, Usage
from pointsman.judges.making import make_judge, parameters_of, written_judge
from pointsman.judges.strongreject import StrongRejectJudge
from pointsman.judges.types import Answer, Verdict, judged
from pointsman.runs.run import Run
from pointsman.runs.verdicts import RememberedVerdicts, judging_cost, judging_foretold, remembering

KEY = "sk-very-secret-0123456789"
SECRET = "the marzipan request"
ANSWER = "First, take the almonds and grind them finely with the sugar."


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with endpoint() as state:
        yield state


def judge_at(server: Endpoint, **more: Any) -> StrongRejectJudge:
    return StrongRejectJudge(model="stand-in", endpoint=server.url, **{"timeout": 1.0, "retries": 3, **more})


def rows(count: int) -> tuple[list[Behaviour], list[Answer]]:
    asked = [Behaviour(f"b{n}", f"{SECRET} {n}", "Sure") for n in range(count)]
    return asked, [Answer(f"{ANSWER} Step {n}.") for n in range(count)]


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_asked_again(server: Endpoint, name: str) -> None:
    server.fault = lambda digest, number: FAULTS[name] if number == 1 else None
    verdicts = judge_at(server, retries=2).judge(*rows(2))
    assert verdicts == [Verdict("correct", 0.875, "convincing 5, specific 4")] * 2
    assert list(server.requests.values()) == [2, 2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("429", "says 429"),
        ("500", "says 500"),
        ("half JSON", "not JSON"),
        ("HTML", "no chat completion"),
        ("hang", "no answer within"),
        ("drip", "no answer within"),
        ("closed", "cannot be reached"),
    ],
)
def test_what_does_not_pass_is_an_error_that_quotes_nothing(server: Endpoint, name: str, said: str) -> None:
    server.fault = lambda digest, number: FAULTS[name]
    with pytest.raises(JudgeError, match=said) as caught:
        judged(judge_at(server, retries=1, timeout=0.3), *rows(1))
    assert sum(server.requests.values()) == 2
    assert SECRET not in str(caught.value)
    assert ANSWER not in str(caught.value)


@pytest.mark.parametrize("name", ["empty choices", "wrong schema", "choices of another kind", "a list", "no text"])
def test_a_reply_without_text_is_no_verdict(server: Endpoint, name: str) -> None:
    """Or an error, where it is no completion at all; never a score."""
    server.fault = lambda digest, number: FAULTS[name]
    judge = judge_at(server, retries=1)
    if name == "a list":
        with pytest.raises(JudgeError, match="no chat completion"):
            judge.judge(*rows(1))
    else:
        (verdict,) = judge.judge(*rows(1))
        assert (verdict.label, verdict.score) == ("unscored", None)
    assert sum(server.requests.values()) == 2


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (completion(ended="length"), "cut off"),
        (completion(ended="content_filter"), "filter"),
        (completion(None, refusal="I cannot judge that"), "declined"),
        (completion("I'm sorry, I cannot grade this."), "no scores"),
        (completion("#scores\n1.b 0\n2.b 6\n3.b 5"), "out of range"),
        (completion("#scores\n1.b 0\n2.b 5"), "3.b 0 times"),
        (completion("#scores\n2.b 5\n1.b 0\n3.b 5"), "out of order"),
        (completion("1.b 0\n2.b 5\n3.b 5"), "no scores"),
        (completion("#scores\n1.b N/A\n2.b 5\n3.b 5"), "out of range"),
    ],
)
def test_what_is_no_verdict_is_asked_once_and_stays_unscored(server: Endpoint, body: str, why: str) -> None:
    server.reply = lambda message: body
    (verdict,) = judge_at(server).judge(*rows(1))
    assert (verdict.label, verdict.score) == ("unscored", None)
    assert why in verdict.reason
    assert sum(server.requests.values()) == 1


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_a_request_that_is_refused_for_what_it_holds_is_no_verdict(server: Endpoint, code: str) -> None:
    server.fault = lambda digest, number: error(400, f"Your prompt {SECRET} is bad", code=code)
    (verdict,) = judge_at(server).judge(*rows(1))
    assert verdict.label == "unscored"
    assert SECRET not in verdict.reason
    assert sum(server.requests.values()) == 1


@pytest.mark.parametrize(
    ("status", "more", "said"),
    [
        (401, {"code": "invalid_api_key"}, "Check the key in JUDGE_KEY"),
        (403, {}, "does not accept the key"),
        (404, {"code": "model_not_found"}, "there is no model stand-in"),
        (400, {"code": SECRET}, "says 400 to a request"),
        (429, {"code": "insufficient_quota"}, "insufficient_quota"),
        (400, {"code": {"a": 1}, "param": ["max_tokens"]}, "says 400 to a request"),
    ],
)
def test_what_no_retry_mends_is_said_at_once(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int, more: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.fault = lambda digest, number: error(status, f"Bad key {KEY}; you said {SECRET}", **more)
    with pytest.raises(JudgeError, match=said) as caught:
        judged(judge_at(server, key="JUDGE_KEY", concurrency=1), *rows(20))
    assert sum(server.requests.values()) == 1
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_nothing_secret_is_logged_or_shown_by_a_traceback(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import traceback

    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.fault = lambda digest, number: error(401, f"Bad key {KEY}; you said {SECRET}")
    with caplog.at_level(logging.INFO), pytest.raises(JudgeError) as caught:
        judged(judge_at(server, key="JUDGE_KEY"), *rows(1))
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert KEY not in shown
    assert SECRET not in shown
    assert ANSWER not in shown


def test_retry_after_is_heeded_by_all(server: Endpoint) -> None:
    first: list[str] = []

    def fault(digest: str, number: int) -> Any:
        if not first:
            first.append(digest)
            return lambda to: send(to, "{}", 429, Retry_After="1")
        return None

    server.fault = fault
    judge_at(server, concurrency=1).judge(*rows(2))
    assert server.times[1] - server.times[0] >= 0.9


def test_a_long_retry_after_is_not_sat_out(server: Endpoint) -> None:
    server.fault = lambda digest, number: lambda to: send(to, "{}", 429, Retry_After="3600")
    begun = time.monotonic()
    with pytest.raises(JudgeError, match="asks to wait 3,600 seconds"):
        judge_at(server).judge(*rows(1))
    assert time.monotonic() - begun < 5


def test_newer_models_take_other_parameters(server: Endpoint) -> None:
    def fault(digest: str, number: int) -> Any:
        for name, code in (("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")):
            if name in server.bodies[-1]:
                return error(400, "no", code=code, param=name)
        return None

    server.fault = fault
    (verdict,) = judge_at(server, max_tokens=77).judge(*rows(1))
    assert verdict.score == 0.875
    assert server.bodies[-1]["max_completion_tokens"] == 77
    assert "temperature" not in server.bodies[-1]


def test_order_concurrency_and_the_request(server: Endpoint) -> None:
    def reply(message: str) -> str:
        time.sleep(random.Random(message).uniform(0, 0.05))
        number = int(message.split("Step ")[1].split(".")[0])
        return completion(GOOD.replace("2.b 5", f"2.b {1 + number % 5}"))

    server.reply = reply
    asked, answers = rows(40)
    verdicts = judge_at(server, concurrency=6).judge(asked, answers)
    assert [v.score for v in verdicts] == [(1 + n % 5 + 4 - 2) / 8 for n in range(40)]
    assert 2 <= server.most <= 6
    body = server.bodies[0]
    assert body["temperature"] == 0
    assert body["max_tokens"] == 1000
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"].startswith("Below is an interaction between a user and an AI model.\n\nUser ")


def test_requests_are_paced(server: Endpoint) -> None:
    judge_at(server, per_minute=600.0, concurrency=8).judge(*rows(5))
    gaps = [b - a for a, b in zip(sorted(server.times), sorted(server.times)[1:], strict=False)]
    assert sum(gaps) >= 0.35


def test_it_can_be_asked_from_within_a_loop(server: Endpoint) -> None:
    async def notebook() -> list[Verdict]:
        return judge_at(server).judge(*rows(3))

    assert [v.score for v in asyncio.run(notebook())] == [0.875] * 3


def test_the_key_goes_to_the_endpoint_that_it_is_named_for_and_nowhere_else(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    judge_at(server).judge(*rows(1))
    assert KEY not in str(server.heads)
    assert "secret" not in str(server.heads)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge_at(server, key="JUDGE_KEY").judge(*rows(1))
    assert server.heads[-1]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "written",
    [
        "strongreject:model=m,key=sk-very-secret-0123456789",
        "strongreject:model=m,key=gsk0123456789abc",
        "strongreject:model=m,endpoint=https://user:sk-very-secret@host/v1",
        "strongreject:model=m,endpoint=https://host/v1?api-key=sk-very-secret",
    ],
)
def test_a_key_where_it_would_be_stored_is_refused_and_not_repeated(written: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_judge(written)
    assert "secret" not in str(caught.value)
    assert "gsk" not in str(caught.value)


@pytest.mark.parametrize(
    "more",
    ["concurrency=0", "retries=-1", "timeout=0", "per_minute=0", "max_tokens=0", "threshold=0", "threshold=1.1",
     "price_in=-1", "endpoint=ftp://host", "endpoint=host", "backend=transformers", "endpoint=http://[", "model= "],
)  # fmt: skip
def test_parameters_out_of_range(more: str) -> None:
    model = "" if more.startswith("model") else "model=m,"
    url = "" if more.startswith("endpoint") else ",endpoint=http://127.0.0.1:9/v1"
    with pytest.raises(UsageError):
        make_judge(f"strongreject:{model}{more}{url}")


def test_a_key_that_is_not_there_is_missed_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        make_judge("strongreject:model=m")


def test_openai_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(JudgeError, match=r"pip install 'pointsman\[judges\]'"):
        make_judge("strongreject:model=m,endpoint=http://127.0.0.1:9/v1")


def test_it_is_made_of_what_it_writes() -> None:
    written = "strongreject:model=m,endpoint=http://127.0.0.1:9/v1,concurrency=3,price_in=0.5"
    judge = make_judge(written)
    assert isinstance(judge, RemoteJudge)
    assert make_judge(written_judge(judge)) == judge


# ---------------------------------------------------------------------- verdicts that a run remembers


def test_a_thousand_answers_with_five_faults_in_a_hundred(server: Endpoint, tmp_path: Path) -> None:
    """All scored; none answered, so paid, twice; and the fault of each request is drawn by seed."""
    names = [name for name in FAULTS if name not in ("hang", "drip")] + ["hang"]

    def fault(digest: str, number: int) -> Any:
        draw = random.Random(f"{digest}{number}")
        return FAULTS[draw.choice(names)] if draw.random() < 0.05 else None

    server.fault = fault
    asked, answers = rows(1000)
    with Run.create(tmp_path / "run", "audit", {}) as run:
        judge = remembering(judge_at(server, concurrency=16, price_in=1.0, price_out=2.0), run)
        verdicts = judged(judge, asked, answers)
        cost = judging_cost(judge, run)
    assert [v.score for v in verdicts] == [0.875] * 1000
    assert len(server.answered) == 1000
    assert max(server.answered.values()) == 1
    assert cost is not None
    assert sum(server.requests.values()) > 1030
    assert cost.requests == sum(server.requests.values())
    assert (cost.answers, cost.unscored, cost.tokens_in, cost.tokens_out) == (1000, 0, 700_000, 100_000)
    assert cost.money == pytest.approx(0.9)


def test_an_endpoint_that_dies_loses_nothing(server: Endpoint, tmp_path: Path) -> None:
    server.fault = lambda digest, number: FAULTS["500"] if len(server.requests) > 60 else None
    asked, answers = rows(100)
    folder = tmp_path / "run"
    with Run.create(folder, "audit", {}) as run, pytest.raises(JudgeError, match="says 500"):
        judged(remembering(judge_at(server, retries=0, concurrency=4), run), asked, answers)
    done = set(server.answered)
    assert 50 <= len(done) <= 60
    sent = sum(server.requests.values())
    assert sent <= 60 + 4  # no request goes out after the first that failed for good
    server.fault = lambda digest, number: None
    with Run.open(folder) as run:
        again = judge_at(server, retries=2, concurrency=9)  # how it is asked decides nothing
        verdicts = judged(remembering(again, run), asked, answers)
        cost = judging_cost(again, run)
    assert [v.score for v in verdicts] == [0.875] * 100
    assert max(server.answered.values()) == 1
    assert sum(server.requests.values()) - sent == 100 - len(done)
    assert cost is not None
    assert cost.answers == 100
    assert cost.money is None


def test_what_decides_a_verdict_is_its_key(server: Endpoint, tmp_path: Path) -> None:
    asked, answers = rows(2)
    with Run.create(tmp_path / "run", "audit", {}) as run:
        judge = judge_at(server)
        judged(remembering(judge, run), [asked[0], asked[0], asked[1]], [answers[0], answers[0], answers[0]])
        assert sum(server.requests.values()) == 2  # the same answer to the same request is judged once
        judged(remembering(judge_at(server, threshold=1.0), run), asked[:1], answers[:1])
        assert sum(server.requests.values()) == 3
        assert remembering(make_judge("refusal"), run).name == "refusal"
        assert judging_cost(make_judge("refusal"), run) is None


def test_a_judge_that_hands_over_too_little(server: Endpoint, tmp_path: Path) -> None:
    class Lazy(StrongRejectJudge):
        def judge_each(self, asked: Any, answers: Any, done: Any) -> None:
            done(0, Verdict("refused", 0.0), Usage(1))

    with Run.create(tmp_path / "run", "audit", {}) as run, pytest.raises(JudgeError, match="gave no verdict"):
        judged(RememberedVerdicts(Lazy(model="m", endpoint=server.url), run), *rows(2))


def test_the_wrapper_has_the_parameters_of_the_judge(server: Endpoint, tmp_path: Path) -> None:
    judge = judge_at(server)
    with Run.create(tmp_path / "run", "audit", {}) as run:
        assert parameters_of(remembering(judge, run)) == parameters_of(judge)


def test_no_key_prompt_or_answer_in_the_journal(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with Run.create(tmp_path / "run", "audit", {}) as run:
        judged(remembering(judge_at(server, key="JUDGE_KEY"), run), *rows(2))
    written = "".join(file.read_text() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert "convincing 5" in written
    for secret in (KEY, SECRET, ANSWER):
        assert secret not in written


def test_it_is_foretold_what_judging_will_cost(server: Endpoint) -> None:
    said = judging_foretold(judge_at(server, price_in=1.0, price_out=4.0), 1000, 500)
    assert said == (
        "About 1,000 answers to judge with strongreject: 0.95 million tokens to read and 0.2 million to write, "
        "1.75 in money"
    )
    assert "give price_in" in (judging_foretold(judge_at(server), 10, 500) or "")
    assert judging_foretold(make_judge("refusal"), 10, 500) is None


def test_a_manifest_cannot_have_a_key_sent_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run may come from a stranger, who may name any variable and any endpoint."""
    from pointsman.runs.files import judge_again

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    url = "http://127.0.0.1:9/v1"
    judge = make_judge(f"strongreject:model=m,key=AWS_SECRET_ACCESS_KEY,endpoint={url}")
    saved = {"name": judge.name, "version": judge.version, "parameters": parameters_of(judge)}
    with Run.create(tmp_path / "run", "audit", {"judge": saved}) as run:
        with pytest.raises(RunError, match="AWS_SECRET_ACCESS_KEY") as caught:
            judge_again(run, lambda text: None)
        assert KEY not in str(caught.value)
        monkeypatch.setenv("POINTSMAN_SEND_KEY_TO", url)
        assert judge_again(run, lambda text: None) == judge


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_stops_at_once(server: Endpoint) -> None:
    server.fault = lambda digest, number: hang
    program = (
        "from pointsman.judges.strongreject import StrongRejectJudge as J\n"
        "from pointsman.judges.types import Answer\nfrom pointsman.data.types import Behaviour\n"
        f"judge = J(model='m', endpoint={server.url!r}, timeout=60.0)\n"
        "try:\n    judge.judge([Behaviour('a', 'b', 'c')] * 50, [Answer('d')] * 50)\n"
        "except KeyboardInterrupt:\n    print('stopped')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not server.requests and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 2
    assert (out.strip(), err.strip()) == ("stopped", "")


def test_every_failure_is_ours(server: Endpoint) -> None:
    """Whatever bytes come back: a verdict, or an error of Pointsman's."""
    draw = random.Random(4)
    whole = completion()
    for _ in range(60):
        cut = draw.randrange(len(whole))
        body = whole[:cut] + draw.choice(["", "null", "\x00", "{}", '"', "[", "1e999", whole[cut:].replace('"', "'")])
        server.reply = lambda message, body=body: body
        said = "unscored"
        try:
            said = judge_at(server, retries=0).judge(*rows(1))[0].label
        except PointsmanError as failed:
            said = str(failed)
        assert said in ("unscored", "correct") or ("127.0.0.1" in said or "The endpoint" in said)
        assert ANSWER not in said
