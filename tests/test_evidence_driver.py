"""`make evidence`: the plan is one that can be done, and the driver survives whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pointsman.cli import main as pointsman
from pointsman.testbed.scenarios import multi_turn_defence

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

from clean import require_same_commit  # noqa: E402
from evidence import Driver, held  # noqa: E402
from evidence_plan import Planned, longest_first, pace, read_plan, together  # noqa: E402

COMMIT = "a" * 40
RUN = """
import json, os, signal, sys, time
from pathlib import Path
from pointsman.runs.lock import FolderLock
folder, mode, commit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
FolderLock(folder / "lock").acquire()
steps = folder / "steps"
for number in range(len(steps.read_text()) if steps.exists() else 0, 3):
    with steps.open("a") as file:
        file.write(str(number))
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while mode == "slow" and not (folder / "go").exists():
        time.sleep(0.02)
if mode == "fails":
    sys.exit("no such model")
if mode == "nothing to show":
    sys.exit(3)
found = {"provenance": {"commit": commit, "command": "private"}, "headline": "said"}
(folder / "results.json").write_text(json.dumps(found))
sys.exit(3 if mode == "in vain" else 0)
"""


def planned(name: str, minutes: float = 1.0, **more: Any) -> Planned:
    return Planned(name, "dominant", "olmoe", (), minutes, confirms=True, **more)


def driver(evidence: Path, plan: list[Planned], modes: dict[str, str], commit: str = COMMIT) -> Driver:
    """A driver of runs that do three steps in their folder."""
    (evidence / "work").mkdir(parents=True, exist_ok=True)

    def command(run: Planned, root: Path, folder: Path) -> list[str]:
        return [sys.executable, "-c", RUN, str(folder), modes.get(run.name, "works"), commit]

    return Driver(plan, evidence, COMMIT, poll=0.02, command=command, still_clean=lambda root: COMMIT)


def kept(evidence: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evidence / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_what_is_found_is_kept_with_what_was_planned_and_not_done_again(tmp_path: Path) -> None:
    plan = [planned("one"), planned("two"), planned("three")]
    assert driver(tmp_path, plan, {}).drive(plan)
    for run in plan:
        found = kept(tmp_path, run.name)
        assert (found["made_by"], found["confirms"], found["headline"]) == (run.said(), True, "said")
        assert found["minutes"]["expected"] == 1.0
        assert found["provenance"] == {"commit": COMMIT}
    again = driver(tmp_path, plan, {})
    assert again.queue(plan) == []
    assert again.foretold(plan) == 0.0
    assert again.queue([replace(plan[0], name="four")]) != []
    assert "3 of 3 runs to do" in (tmp_path / "work" / "log.txt").read_text(encoding="utf-8")


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    plan = [planned("one")]
    assert driver(tmp_path, plan, {"one": "killed"}).drive(plan)
    assert (tmp_path / "work/one/steps").read_text() == "012", "killed at every step, and none was done twice"
    assert kept(tmp_path, "one")["headline"] == "said"


def test_a_run_that_fails_stops_no_other_and_says_what_it_needs(tmp_path: Path) -> None:
    plan = [planned("one", 9.0, needs="a model"), planned("two"), planned("three")]
    drives = driver(tmp_path, plan, {"one": "fails"})
    assert not drives.drive(plan)
    assert drives.failed == {"one": "ended with 1: no such model (needs a model)"}
    assert not (tmp_path / "one.json").exists()
    assert {kept(tmp_path, name)["headline"] for name in ("two", "three")} == {"said"}


def test_a_mask_that_does_nothing_is_a_result_and_no_failure(tmp_path: Path) -> None:
    """Pointsman ends with 3 then, after it has written its results; without any it is a failure like others."""
    plan = [planned("one"), planned("two"), planned("unseen", of="one")]
    drives = driver(tmp_path, plan, {"one": "in vain", "two": "nothing to show"})
    assert not drives.drive(plan)
    assert {kept(tmp_path, name)["headline"] for name in ("one", "unseen")} == {"said"}
    assert set(drives.failed) == {"two"}
    assert drives.failed["two"].startswith("ended with 3")


def test_an_evaluation_waits_for_the_run_whose_steering_it_is_of(tmp_path: Path) -> None:
    plan = [planned("unseen", 9.0, of="steered"), planned("other", 2.0), planned("steered")]
    drives = driver(tmp_path, plan, {})
    assert drives.drive(plan)
    log = (tmp_path / "work" / "log.txt").read_text(encoding="utf-8")
    assert log.index("other: begins") < log.index("steered: done") < log.index("unseen: begins")
    assert kept(tmp_path, "unseen")["headline"] == "said"


def test_an_evaluation_is_given_up_if_what_it_is_of_is_not_there(tmp_path: Path) -> None:
    plan = [planned("steered"), planned("unseen", of="steered"), planned("other")]
    drives = driver(tmp_path, plan, {"steered": "fails"})
    assert not drives.drive(plan)
    assert drives.failed["unseen"] == "the steering of steered is not there"
    assert not (tmp_path / "work" / "unseen").exists()
    assert kept(tmp_path, "other")["headline"] == "said"


def test_an_evaluation_takes_the_steering_beside_it(tmp_path: Path) -> None:
    run = Planned("unseen", "evaluate", "testbed:olmoe", ("--limit", "5"), 1.0, confirms=False, of="steered")
    assert run.command(ROOT, tmp_path / "unseen")[2:] == [
        "pointsman.cli", "evaluate", "testbed:olmoe", "--steering", str(tmp_path / "steered"), "--limit", "5",
        "--out", str(tmp_path / "unseen"),
    ]  # fmt: skip
    assert run.said() == "pointsman evaluate testbed:olmoe --steering evidence/work/steered --limit 5"


@pytest.mark.parametrize("commit", ["b" * 40, f"{COMMIT}+changes"])
def test_what_was_made_on_another_commit_is_not_kept(tmp_path: Path, commit: str) -> None:
    plan = [planned("one")]
    drives = driver(tmp_path, plan, {}, commit)
    assert not drives.drive(plan)
    assert drives.failed["one"] == f"made on {commit}, and not on {COMMIT}"
    assert not (tmp_path / "one.json").exists()


def test_a_tree_that_changes_fails_the_run_that_begins_or_ends_on_it(tmp_path: Path) -> None:
    plan = [planned("one"), planned("two")]
    drives = driver(tmp_path, plan, {})
    drives.processes, looks = 1, iter([COMMIT, "", "b" * 40])  # begins, ends, begins the next one

    def look(root: Path) -> str:
        return next(looks) or sys.exit("code.py differs from the commit")

    drives.still_clean = look
    assert not drives.drive(plan)
    assert drives.failed == {
        "one": "code.py differs from the commit",
        "two": f"the checkout was on {COMMIT[:12]}, and is on bbbbbbbbbbbb now",
    }
    assert not (tmp_path / "one.json").exists()
    assert not (tmp_path / "work/two").exists(), "it never began"
    with pytest.raises(SystemExit, match="The tree changed while"):
        require_same_commit(tmp_path / "work/one", COMMIT)


def test_a_driver_that_is_killed_leaves_a_run_that_the_next_one_waits_for(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT / 'tests'), str(ROOT / 'scripts')]!r}\n"
        "from pathlib import Path\nfrom test_evidence_driver import driver, planned\n"
        f"plan = [planned('one')]\ndriver(Path({str(tmp_path)!r}), plan, {{'one': 'slow'}}).drive(plan)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    folder = tmp_path / "work" / "one"
    until(lambda: (folder / "steps").exists())
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert held(folder), "its process is still at work"

    plan = [planned("one")]
    second = driver(tmp_path, plan, {"one": "slow"})
    say, heard = second.say, list[str]()

    def hear(text: str) -> None:
        heard.append(text)
        say(text)
        if "waits" in text:
            (folder / "go").touch()

    second.say = hear  # type: ignore[method-assign]
    assert second.drive(plan)
    assert any("waits" in text for text in heard)
    assert (folder / "steps").read_text() == "012", "no step was done twice"
    assert kept(tmp_path, "one")["headline"] == "said"


def until(happened: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---------------------------------------------------------------------- what is foretold


def test_how_long_it_takes_knows_what_is_done_and_how_fast_that_was(tmp_path: Path) -> None:
    plan = [planned("a", 30.0), planned("b", 20.0), planned("c", 20.0), planned("d", 10.0)]
    drives = driver(tmp_path, plan, {})
    assert drives.foretold(plan) == 40.0  # 30 + 10 beside 20 + 20
    assert [run.name for run in drives.queue(plan)] == ["a", "b", "c", "d"]
    (tmp_path / "work" / "c").mkdir()
    (tmp_path / "work" / "c.seconds").write_text('{"seconds": 600}')
    assert [run.name for run in drives.queue(plan)] == ["c", "a", "b", "d"], "what is begun comes first"
    (tmp_path / "c.json").write_text(json.dumps({"provenance": {"commit": COMMIT}}))
    assert drives.foretold(plan) == pytest.approx(15.0), "20 minutes took 10, so the rest takes half as long"
    (tmp_path / "c.json").write_text(json.dumps({"provenance": {"commit": "b" * 40}}))
    assert not drives.is_done(plan[2])


def test_the_pace_of_little_is_not_believed() -> None:
    assert pace([]) == pace([(19.0, 100.0)]) == 1.0
    assert pace([(10.0, 20.0), (10.0, 10.0)]) == 1.5


# ---------------------------------------------------------------------- the plan


def test_the_plan_takes_at_most_five_hours_on_two_cores() -> None:
    plan = read_plan(ROOT / "evidence/plan.yaml")
    assert together((run.minutes for run in longest_first(plan)), 2) <= 300
    assert together([1.0, 1.0, 1.0], 2) == 2.0


def test_every_command_of_the_plan_is_one_that_pointsman_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # as the driver does
    plan = [run for run in read_plan(ROOT / "evidence/plan.yaml") if run.kind != "dominant"]
    for number, options in enumerate(dict.fromkeys((run.kind, run.options) for run in plan)):
        file = tmp_path / f"{number}.yaml"
        kind, rest = options
        steering = ["--steering", "evidence/work/steered"] if kind == "evaluate" else []
        assert pointsman([kind, "testbed", *steering, *rest, "--save-plan", str(file)]) == 0
        if kind != "evaluate":
            assert "random_draws: 10\n" in file.read_text(encoding="utf-8")


def test_the_paper_s_start_differs_from_the_testbed_s_scenario_in_the_way_to_learn_alone() -> None:
    ours, shipped = (
        yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in (ROOT / "evidence/paper-start.yaml", multi_turn_defence())
    )
    assert ours["grid"].pop("refinement") == ["surrogate"]
    assert shipped["grid"].pop("refinement") == ["surrogate", "on_policy", "through_model"]
    assert ours == shipped


def test_every_shipped_mask_is_asked_about_words_that_it_was_never_shown() -> None:
    plan = read_plan(ROOT / "evidence/plan.yaml")
    starts = ("steering-mature-", "conditional-mature-")
    shipped = [run.name for run in plan if run.name.startswith(starts) and not run.confirms]
    assert sorted(run.of for run in plan if run.kind == "evaluate") == sorted(shipped)
    assert all("mature_unseen" in run.options for run in plan if run.of)


def test_three_families_and_three_seeds_are_planned_for_every_job_and_new_seeds_confirm() -> None:
    plan = read_plan(ROOT / "evidence/plan.yaml")
    for start in ("", "steering-defence-", "steering-mature-", "conditional-defence-", "conditional-mature-"):
        for family in ("olmoe", "qwen2_moe", "deepseek_v3"):
            for seed in ("", "-seed1", "-seed2"):
                (run,) = (run for run in plan if run.name == f"{start}{family}{seed}")
                assert run.model == f"testbed:{family}{seed}"
                assert run.confirms == bool(seed)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("kind: audit", "has no name"),
        ("name: a", "a has no 'confirms'"),
        ("name: a, kind: audit, model: m, minutes: 1, confirms: maybe", "neither true nor false"),
        ("name: a, kind: guess, model: m, minutes: 1, confirms: true", "unknown kind 'guess'"),
        ("name: a, kind: audit, model: m, minutes: 1, confirms: true, sees: b", "unknown key 'sees'"),
        ("name: a, kind: evaluate, model: m, minutes: 1, confirms: true", "names the steering of an evaluation"),
        ("name: a, kind: audit, of: b, model: m, minutes: 1, confirms: true", "names the steering of an evaluation"),
        ("name: a, kind: evaluate, of: b, model: m, minutes: 1, confirms: true", "a is of 'b', which steers no m"),
        ("name: a, kind: audit, model: 3, minutes: 1, confirms: true", "not plain text"),
        ("name: a, kind: audit, model: --out, minutes: 1, confirms: true", "not plain text"),
        ("name: a, kind: audit, model: m, minutes: 1, confirms: true, options: [b]", "not plain text"),
        ("name: a, kind: audit, model: m, minutes: 1, confirms: true, options: --limit 3 --out=b", "with --out=b"),
        ("name: a, kind: audit, model: m, minutes: 1, confirms: true, options: --trust-remote-code", "with --trust"),
        ("name: ../a, kind: audit, model: m, minutes: 1, confirms: true", "cannot name a file"),
    ],
)
def test_a_plan_that_says_too_little_is_refused(tmp_path: Path, entry: str, said: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(f"runs:\n  - {{{entry}}}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_plan(file)


def test_a_name_stands_for_one_run(tmp_path: Path) -> None:
    entry = "  - {name: a, kind: audit, model: m, minutes: 1, confirms: true}\n"
    (tmp_path / "plan.yaml").write_text(f"runs:\n{entry}{entry}", encoding="utf-8")
    with pytest.raises(ValueError, match="a is planned twice"):
        read_plan(tmp_path / "plan.yaml")
