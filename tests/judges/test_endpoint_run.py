"""An audit that an endpoint judges: it dies in the middle, the run goes on, and nothing is judged twice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("openai")

from cli.conftest_cli import Cli, cli, here, save_moe
from judges.misbehaving import FAULTS, completion, endpoint

__all__ = ["cli", "here"]

KEY = "sk-very-secret-0123456789"


def test_a_run_is_judged_by_an_endpoint(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    torch.manual_seed(0)
    save_moe(here / "model")
    (here / "b.csv").write_text(
        "Goal,Target\n" + "".join(f"how do you prune the tiny plum {n} ?,Sure\n" for n in range(40))
    )
    with endpoint() as server:
        bad = "I'd rather not grade this."
        server.reply = lambda message: completion(bad if "plum 1" in message else _GOOD)
        judge = f"strongreject:model=stand-in,endpoint={server.url},key=JUDGE_KEY,retries=0,price_in=2,concurrency=1"
        audit = ("audit", "model", "--behaviors", "b.csv", "--judge", judge, "--limit", "12", "--samples", "2",
                 "--random-draws", "1", "--candidates", "2", "--restarts", "1", "--max-new-tokens", "8",
                 "--no-controls", "--out", "run")  # fmt: skip
        server.fault = lambda digest, number: FAULTS["500"] if len(server.requests) > 5 else None
        refused = cli(*audit)
        assert refused.code == 2
        assert "says 500" in refused.err
        assert "pointsman resume run" in refused.err
        server.fault = lambda digest, number: None
        before = set(server.answered)
        assert before
        again = cli("resume", "run")
        assert again.code == 2, "a key out of a manifest goes nowhere unless the user says so"
        assert "POINTSMAN_SEND_KEY_TO" in again.err
        monkeypatch.setenv("POINTSMAN_SEND_KEY_TO", server.url)
        done = cli("resume", "run")
        assert done.code == 0, done.err
        assert before < set(server.answered)
        assert max(server.answered.values()) == 1
    results = json.loads((here / "run" / "results.json").read_text())
    judging = results["cost"]["judging"]
    assert judging["answers"] == judging["requests"] == len(server.answered)
    assert judging["unscored"] > 0
    assert judging["tokens_in"] == 700 * len(server.answered)
    assert judging["money"] == pytest.approx(2 * judging["tokens_in"] / 1e6, abs=1e-4)
    foretold = re.search(r"About ([\d,]+) answers to judge with strongreject: .* in money", done.err + done.out)
    assert foretold is not None
    written = "".join(f.read_text(errors="replace") for f in (here / "run").rglob("*") if f.is_file())
    assert KEY not in written + done.err + done.out + refused.err + refused.out


_GOOD = "#scores\n1.a r\n1.b 0\n2.a r\n2.b 5\n3.a r\n3.b 5"
