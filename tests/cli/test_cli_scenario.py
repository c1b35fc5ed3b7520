"""``pointsman scenario``: files are written once, listed and checked without a model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_cli import Cli, testbed_rows, write_csv

from pointsman.data.scenario import load_scenario
from pointsman.errors import DataError
from pointsman.jobs.steer.enough import FEWEST_SOURCES


@pytest.mark.parametrize("verb", ["", "init", "list", "check"])
def test_help(cli: Cli, verb: str) -> None:
    done = cli("scenario", *verb.split(), "--help")
    assert done.code == 0
    assert "Usage: pointsman scenario" in done.out


def test_list(cli: Cli) -> None:
    done = cli("scenario", "list")
    assert done.code == 0
    assert done.err == ""
    for word in ("multi_turn_defence", "mature_content", "defend", "allow", "testbed-steering"):
        assert word in done.out
    listed = cli("scenario", "list", "--json").json
    assert listed["schema"] == "pointsman.scenarios/1"
    assert {"mature_content", "multi_turn_defence"} <= {each["name"] for each in listed["scenarios"]}


@pytest.mark.parametrize("name", ["multi_turn_defence", "mature_content"])
def test_init_writes_what_check_accepts(cli: Cli, here: Path, name: str) -> None:
    done = cli("scenario", "init", name)
    assert (done.code, done.out, done.err) == (0, f"{name}.yaml\n", "")
    assert load_scenario(here / f"{name}.yaml") == load_scenario(name)
    assert "#" in (here / f"{name}.yaml").read_text()
    checked = cli("scenario", "check", f"{name}.yaml")
    assert checked.code == 0, checked.err
    assert "Everything needed is in order." in checked.out
    assert "700 (96)" in checked.out


def test_init_overwrites_nothing(cli: Cli, here: Path) -> None:
    assert cli("scenario", "init").code == 0
    (here / "multi_turn_defence.yaml").write_text("mine")
    assert "exists already" in cli("scenario", "init").refusal()
    assert (here / "multi_turn_defence.yaml").read_text() == "mine"


def test_init_refuses_names_and_places(cli: Cli, here: Path) -> None:
    assert "Did you mean mature_content" in cli("scenario", "init", "mature_contend").refusal()
    assert "Did you mean mature_content" in cli("scenario", "init", "mature_contend", "--template", "real").refusal()
    assert "does not end in .yaml" in cli("scenario", "init", "--out", "x.csv").refusal()
    (here / "file").write_text("")
    assert "cannot be written" in cli("scenario", "init", "--out", "file/x.yaml").refusal()
    assert not list(here.glob("*.yaml"))


def test_a_real_template_is_filled_in_and_checked(cli: Cli, here: Path) -> None:
    done = cli("scenario", "init", "mature_content", "--template", "real", "--out", "sub/mine.yaml")
    assert (done.code, done.out) == (0, "sub/mine.yaml\n")
    assert "pointsman scenario check sub/mine.yaml" in done.err
    assert "3 files do not exist" in cli("scenario", "check", "sub/mine.yaml").refusal()
    write_csv(here / "sub/mature_requests.csv", testbed_rows("mature", 30))
    write_csv(here / "sub/harmful_behaviors.csv", testbed_rows("restricted", 30))
    write_csv(here / "sub/benign_behaviors.csv", testbed_rows("benign", 30))
    done = cli("scenario", "check", "sub/mine.yaml", "--json", "--seed", "1")
    assert done.code == 0, done.err
    assert done.json["schema"] == "pointsman.scenario-check/1"
    assert done.json["scenario"]["hold"] == "all"
    splits = done.json["splits"]
    assert sum(splits[split]["scenario"]["prompts"] for split in splits) == 30
    assert all(splits[split]["scenario"]["sources"] >= 2 for split in splits)
    assert "conversations" not in splits["test"], "not asked"


def test_check_says_what_is_wrong_in_one_line(cli: Cli, here: Path) -> None:
    assert "Unknown scenario 'nonsense'" in cli("scenario", "check", "nonsense").refusal()
    (here / "s.yaml").write_text("schema: pointsman.scenario/1\nname: x\nobjektive: defend\n")
    assert "Did you mean objective" in cli("scenario", "check", "s.yaml").refusal()
    assert "seed" in cli("scenario", "check", "multi_turn_defence", "--seed", "-1").err


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from pointsman.cli import scenario; scenario.list_(); scenario.check('multi_turn_defence'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_what_steer_refuses_is_refused_and_fine_limits_are_named(cli: Cli, here: Path) -> None:
    def write(count: int) -> str:
        write_csv(here / "m.csv", testbed_rows("mature", count))
        write_csv(here / "h.csv", testbed_rows("restricted", count))
        write_csv(here / "b.csv", testbed_rows("benign", count))
        (here / "s.yaml").write_text(
            "schema: pointsman.scenario/1\nname: mine\nobjective: allow\njudge: testbed\n"
            "prompts: {scenario: m.csv, restricted: h.csv, benign: b.csv}\nlimits: {held: 0.5, over_refusal: 0}\n"
        )
        return "s.yaml"

    line = cli("scenario", "check", write(6)).refusal()
    assert "at most 4 source questions in the discovery split, and 8 are needed" in line
    assert line.replace("scenario check", "steer") == cli("steer", "testbed", "--scenario", "s.yaml").refusal()
    benign = cli("steer", "testbed", "--scenario", "s.yaml", "--contrast", "benign").refusal()
    assert "at most 6 source questions" in benign  # those of benign requests as well
    done = cli("scenario", "check", write(30))
    assert done.code == 0, done.err
    said = re.search(r"Note: limits.benign is 2 points and is measured on (\d+) validation prompts, .*", done.out)
    assert said
    assert f"of which one is {100 / int(said[1]):.1f} points: a single change breaks it" in said[0]
    assert said[0].endswith("give 50 or more, or a wider limit.")
    assert "limits.over_refusal is 0 points" in done.out
    assert "limits.held" not in done.out


@pytest.mark.parametrize(("sources", "learnt"), [(7, False), (8, True)])
def test_the_fewest_sources_are_those_of_the_surrogate(sources: int, learnt: bool) -> None:
    """At best: half of them of each label."""
    from pointsman.methods.surrogate import split

    labels, groups = [n % 2 for n in range(sources)], [f"q{n}" for n in range(sources)]
    assert learnt == (sources >= FEWEST_SOURCES)
    if learnt:
        assert len(split(labels, groups, 0)[1]) == 2
        return
    with pytest.raises(DataError, match="Too few contexts to train a surrogate and to test it"):
        split(labels, groups, 0)
