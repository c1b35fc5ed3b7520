"""The tables of the evidence: old figures beside new ones, controls in the row, and what a hostile reader says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # behind the tests: both have something called families

import audit_tables  # noqa: E402
import evidence_files  # noqa: E402
import guided_tables  # noqa: E402
import hostile  # noqa: E402
import rows  # noqa: E402
import steering_tables  # noqa: E402
from evidence_plan import Planned, read_plan  # noqa: E402

from pointsman.testbed import language  # noqa: E402

PLAN = read_plan(ROOT / "evidence/plan.yaml")
OLD = {file.stem: file for file in (ROOT / "evidence/old").glob("*.json")}
NAMES = ["olmoe", "qwen2_moe", "olmoe-seed1"]


class Kept:
    """A folder of evidence, in which the old files may stand as new ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "old").mkdir()

    def old(self, *names: str) -> None:
        for name in names:
            (self.folder / "old" / f"{name}.json").write_bytes(OLD[name].read_bytes())

    def new(self, name: str, old: str, **changed: Any) -> None:
        found = json.loads(OLD[old].read_text(encoding="utf-8"))
        found["provenance"]["commit"] = "c" * 40
        (self.folder / f"{name}.json").write_text(json.dumps({**found, "name": name, **changed}), encoding="utf-8")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    for module in (evidence_files, hostile, steering_tables):
        monkeypatch.setattr(module, "EVIDENCE", tmp_path)
    return Kept(tmp_path)


def lines(kept: Kept, start: str) -> list[list[str]]:
    """The cells of the rows of all tables in docs/evidence.md that begin so."""
    text = "\n".join(audit_tables.in_docs(NAMES, ["n100-olmoe"]))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(start)]


def test_what_is_old_is_called_so_until_it_is_measured_anew(kept: Kept) -> None:
    kept.old("olmoe", "qwen2_moe")
    assert len(lines(kept, "| olmoe (old) |")) > 10
    assert "they stand here until" in "\n".join(audit_tables.in_docs(NAMES, []))
    kept.new("olmoe", "olmoe", confirms=False)
    assert lines(kept, "| olmoe (old) |") == []
    assert lines(kept, "| olmoe |") != []
    assert lines(kept, "| qwen2_moe (old) |") != []


def test_the_old_figure_stands_below_the_new_one_where_they_differ(kept: Kept) -> None:
    kept.old("olmoe")
    kept.new("olmoe", "qwen2_moe", checkpoint="olmoe", confirms=True)
    (masked,) = [cells for cells in lines(kept, "| olmoe | 2 |") if "of 10" in "".join(cells)]
    assert masked[3] == "0.0 % [0, 4]", "the same then as now"
    assert masked[4] == "100.0 % [96, 100]<br>*81.0 % [75, 87]*"
    assert masked[7] == "0 of 10"
    model = lines(kept, "| olmoe | yes |")[0]
    assert model[7] == "35.5 % [28, 43]<br>*43.5 % [37, 50]*"


def test_the_control_that_contradicts_stands_in_the_row(kept: Kept) -> None:
    kept.old("olmoe")
    rows = {cells[1]: cells for cells in lines(kept, "| olmoe (old) |") if "of 10" in "".join(cells)}
    assert [[*rows[n][6:8], rows[n][9]] for n in "123"] == [
        ["48 %", "1 of 10", "in doubt"], ["63 %", "0 of 10", "holds"], ["89 %", "1 of 10", "in doubt"],
    ]  # fmt: skip
    (readme,) = audit_tables.in_readme(["olmoe"])
    assert "| 63 % (0 of 10) | in doubt, holds, in doubt |" in readme


def test_every_rank_says_what_it_means(kept: Kept) -> None:
    kept.old("olmoe-seed1")
    text = "\n".join(audit_tables.in_docs(["olmoe-seed1"], []))
    assert "| olmoe-seed1 (old) | 1 of 12 (routers 9) |" in text
    assert "| 0 | 1 | 0.76 [0.69, 0.84] | 0.0001 | 0.68 [0.61, 0.75] |" in text
    assert "| means nothing: as large on benign prompts |" in text


def test_the_number_of_candidates_of_the_paper(kept: Kept) -> None:
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["fsour"]
    fsour = {**old, "settings": {**old["settings"], "candidates": 100, "restarts": 1}}
    kept.new("n100-olmoe", "olmoe", fsour={**fsour, "forwards": {"median": 4901, "min": 1, "max": 9999}})
    kept.new("olmoe", "olmoe")
    hundred, ten = [cells for cells in lines(kept, "| olmoe | 10") if cells[1] in ("100", "10")]
    assert (hundred[1], hundred[8], ten[1], ten[8]) == ("100", "4,901", "10", "-")
    assert (hundred[5], ten[5]) == ("holds", "-"), "the control of five searches says nothing of one"
    assert "up to five searches" in ten[9]


def compared(kept: Kept, **changed: Any) -> dict[str, list[list[str]]]:
    """The cells of the tables of docs/guided.md, by the second column of each, from one run that compares searches."""
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))
    routes = {**old["fsour"], "settings": {"restarts": 1}, "reached": 200, "answered_wrongly": 7}
    guided = {**routes, "asr_at_1": {**routes["asr"], "rate": 1.0, "low": 0.98, "high": 1.0}, "answered_wrongly": 0}
    costs = {
        "guided": {"forwards": 31.4, "pairs": 6.0}, "fsour": {"forwards": 1570.0, "pairs": 44.5},
        "difference": {"difference": 0.21, "low": 0.1, "high": 0.3},
    }  # fmt: skip
    masks = next(e for e in old["masking"] if e["routers"] == 1 and e["phase"] == "prefill")
    universal = {
        "asr": masks["asr"], "any_compliance": masks["asr"], "random": masks["controls"]["random"],
        "natural": old["base"], "draws": [0.1, 0.25],
        "difference_random": masks["difference_random"], "places": [{}] * 6, "prompts": 24,
        "reached": {"k": 20}, "forwards": 2420.0,
    }  # fmt: skip
    correlation = {"spearman": 0.731, "low": 0.5, "high": 0.9, "kendall": None}
    agreement = {"prompts": 24, "samples": 20, **correlation, "top_n": 1, "same_top": 1}
    found = {
        "fsour": routes, "guided": guided, "side_by_side": costs, "universal": universal, "confirms": True,
        "rosais_settings": {**old["rosais_settings"], "prompts": 24, "screen": agreement},
        "cost": {"stages": [
            {"stage": name, "seconds": seconds}
            for name, seconds in {"fsour": 300.0, "guided": 20.0, "rosais": 12.0, "screen": 0.6}.items()
        ]},
    }  # fmt: skip
    kept.new("guided-olmoe", "olmoe", **{**found, **changed})
    tables: dict[str, list[list[str]]] = {}
    for text in guided_tables.in_docs(["guided-olmoe", "guided-qwen2_moe"]):
        if text.startswith("|"):
            head, _, *cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
            assert {len(row) for row in cells} == {len(head)}
            tables[head[1]] = cells
    return tables


def test_guided_stands_beside_f_sour_with_what_both_take(kept: Kept) -> None:
    tables = compared(kept)
    (found,) = tables["confirms"]
    assert (found[1], found[2]) == ("yes", "200 (90)")
    assert found[5:] == ["100.0 % [98, 100]", "+21 [+10, +30]", "7, 0", "200, 200"]
    assert tables["forwards, median: F-SOUR"] == [
        ["olmoe", "1,570", "31", "50.0", "44.5", "6", "1.500", "0.100", "15.0"]
    ]
    assert [cells[1] for cells in tables["search"]] == ["F-SOUR", "Guided"]


def test_a_route_for_all_prompts_and_the_screen_stand_with_what_they_are_held_against(kept: Kept) -> None:
    tables = compared(kept)
    (found,) = tables["places"]
    assert (found[1:5], found[10]) == (["6", "24", "20", "2,420"], "25 % of 2")
    assert found[12] == "in doubt"
    assert tables["prompts"] == [["olmoe", "24", "20", "0.73 [0.50, 0.90]", "-", "1 of 1", "0.500", "0.025", "20.0"]]


def test_a_difference_of_searches_with_several_restarts_is_none_of_one(kept: Kept) -> None:
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["fsour"]
    five = {**old, "settings": {"restarts": 5}, "reached": 200, "answered_wrongly": 7}
    assert compared(kept, fsour=five)["confirms"][0][6] == "-"


def test_what_was_not_measured_has_no_table(kept: Kept) -> None:
    text = "\n".join(guided_tables.in_docs(["guided-olmoe"]))
    assert "Not measured yet" in text
    assert "|" not in text
    settings = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["rosais_settings"]
    left = compared(kept, fsour=None, side_by_side=None, universal=None, rosais_settings=settings)
    assert list(left) == ["search"]
    assert [cells[1] for cells in left["search"]] == ["Guided"]


def test_an_audit_without_f_sour_has_its_other_tables(kept: Kept) -> None:
    kept.new("olmoe", "olmoe", fsour=None)
    assert len(lines(kept, "| olmoe |")) > 5
    assert "| olmoe |" not in "".join(audit_tables.in_readme(["olmoe"]))


def test_runs_that_compare_searches_are_kept_out_of_the_other_pages(kept: Kept) -> None:
    kept.new("guided-olmoe", "olmoe")
    assert sum(run.compares_searches for run in PLAN) == 9
    assert all("No number yet" in text and "guided" not in text for text in said().values())


def steering(*names: str) -> list[list[str]]:
    """The cells of all rows of the tables in docs/steering.md."""
    text = "\n".join(steering_tables.in_docs([run for run in PLAN if run.name in names]))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| m")]


def test_a_steering_stands_with_the_old_figure_its_effective_n_and_its_margin(kept: Kept) -> None:
    name = "steering-mature-olmoe"
    kept.old(name)
    assert {cells[1] for cells in steering(name)} == {"olmoe (old)"}
    limits = [{"measure": "benign", "of": "clusters"}, {"measure": "held", "of": None}]
    chosen = {**json.loads(OLD[name].read_text(encoding="utf-8"))["chosen"], "unsure": ["garbage"]}
    kept.new(
        name,
        "steering-mature-qwen2_moe",
        checkpoint="olmoe",
        chosen=chosen,
        margin={"confidence": 80, "limits": limits},
    )
    gained = next(cells for cells in steering(name) if cells[3] == "learnt through the model")
    assert gained[4:8] == [
        "144 (16)<br>*144 (13)*", "0.0 % [0, 19]", "21.5 % [8, 46]<br>*70.8 % [46, 90]*",
        "**held**<br>***benign_conversations***",
    ]  # fmt: skip
    (choice,) = [cells for cells in steering(name) if cells[3].startswith("80 %")]
    assert choice[3] == ("80 %; not kept with it: **garbage**; point estimate alone: held<br>*none: point estimates*")


def test_a_limit_that_is_broken_on_test_is_marked_wherever_the_rate_stands(kept: Kept) -> None:
    kept.old("steering-mature-olmoe")
    rows = [cells for cells in steering("steering-mature-olmoe") if any("limit broken" in cell for cell in cells)]
    assert [cells[2] for cells in rows[1:]] == ["chosen: learnt through the model", "shuffled mask"]
    assert [[cell for cell in cells if "limit broken" in cell] for cells in rows] == [
        ["**96.0 % [85, 99], limit broken** (150 (40))"], ["**96.0 % [85, 99], limit broken**"],
        ["**94.7 % [83, 99], limit broken**"],
    ]  # fmt: skip


def test_pinned_experts_can_be_what_was_chosen(kept: Kept) -> None:
    old = json.loads(OLD["steering-defence-olmoe"].read_text(encoding="utf-8"))
    chosen = {**old["chosen"], "method": "steermoe", "refinement": None, "lambda": None, "alpha": None, "start": None}
    arms = {**old["test"], "steermoe": None, "through_model": old["test"]["after"]}
    kept.new("steering-defence-olmoe", "steering-defence-olmoe", chosen=chosen, test=arms)
    found = [cells[2:4] for cells in steering("steering-defence-olmoe")]
    assert ["chosen: SteerMoE (contexts)", "98.3 % [88, 100]"] in found
    assert "counted on contexts +42 points" in said()["g"]


def test_the_paper_s_start_has_its_row_among_the_ways_and_not_among_the_headlines(kept: Kept) -> None:
    made_by = next(run.said() for run in PLAN if run.begun_as_published)
    kept.new("steering-paper-olmoe", "steering-defence-olmoe", made_by=made_by)
    found = [cells for cells in steering("steering-paper-olmoe") if "MASCing, surrogate alone" in cells]
    assert [(cells[1], cells[3]) for cells in found] == [("olmoe, begun as the paper's code does", "62.7 % [59, 67]")]


def test_words_that_a_mask_was_never_shown_are_told_apart_by_their_cue(kept: Kept) -> None:
    nouns = {noun.cue: noun.word for noun in language.nouns().values() if (noun.kind, noun.split) == ("mature", "test")}
    ids = {cue: f"mature/{noun}/mend/red" for cue, noun in nouns.items()}
    cells = {
        cue: {"test/before": "refused", "test/after": "correct+" if cue in ("both", "ending") else "wrong"}
        for cue in ids
    }
    told = [rows.Row("scenario", id, nouns[cue], "test", outcomes=cells[cue]) for cue, id in ids.items()]
    kept.new("unseen-olmoe", "steering-mature-olmoe", checkpoint="olmoe")
    rows.write(kept.folder / "rows/unseen-olmoe.csv.gz", told)
    text = steering_tables.unseen(["unseen-olmoe"]).splitlines()
    found = {line.split(" | ")[1]: line.split(" | ")[2:5] for line in text[2:]}
    assert found["never shown"][::2] == ["4", "50.0 % [15, 85]"]
    assert {words: cells[2].split(" %")[0] for words, cells in found.items() if "cue" in words} == {
        "never shown, cue: both": "100.0", "never shown, cue: ending": "100.0",
        "never shown, cue: context": "0.0", "never shown, cue: none": "0.0",
    }  # fmt: skip


def test_a_file_from_a_tree_with_changes_is_no_evidence(kept: Kept) -> None:
    kept.new("olmoe", "olmoe", provenance={"commit": "c" * 40 + "+changes", "cpu": "x"})
    with pytest.raises(SystemExit, match="no table is made of it"):
        list(audit_tables.in_docs(NAMES, []))


# ---------------------------------------------------------------------- the hostile reader


def said(plan: Any = PLAN) -> dict[str, str]:
    return {text[3]: text for text in hostile.in_docs(plan)}


def test_without_new_evidence_every_point_names_what_is_missing(kept: Kept) -> None:
    kept.old("olmoe", "steering-defence-olmoe")
    found = said()
    assert list(found) == list("abcdefghijkl")
    assert all("No number yet: missing" in text for text in found.values())
    assert "missing is `steering-paper-olmoe`" in found["i"]
    without = [run for run in PLAN if not run.begun_as_published]
    assert "no run of evidence/plan.yaml answers it" in said(without)["i"]
    assert "`n100-olmoe`, `n100-qwen2_moe`, `n100-deepseek_v3`.*" in found["l"]


def test_every_point_is_answered_by_a_number(kept: Kept) -> None:
    some = ("olmoe", "n100-olmoe", "steering-defence-olmoe", "steering-paper-olmoe")
    plan = [run for run in PLAN if run.name in some]
    plan += [Planned("olmoe-seed1", "audit", "testbed:olmoe-seed1", (), 1.0, confirms=True)]
    old = json.loads(OLD["olmoe"].read_text(encoding="utf-8"))["fsour"]
    forwards = {"median": 4901, "min": 1, "max": 9999}
    kept.new("olmoe", "olmoe", recounted={"numbers": 815, "wrong": 0})
    kept.new("olmoe-seed1", "olmoe-seed1", recounted={"numbers": 100, "wrong": 1})
    kept.new("n100-olmoe", "olmoe", fsour={**old, "forwards": forwards})
    kept.new("steering-defence-olmoe", "steering-defence-olmoe", wrong_withstands=False)
    kept.new("steering-paper-olmoe", "steering-defence-olmoe")
    talk = [("a", "refused wrong"), ("b", "refused refused"), ("c", "wrong refused")]
    outcomes = [rows.Row("conversations", id, id, "test", outcomes={"test/after": cell}) for id, cell in talk]
    rows.write(kept.folder / "rows/steering-defence-olmoe.csv.gz", outcomes)
    found = said(plan)
    assert not any("No number yet" in text for text in found.values())
    defence = json.loads(OLD["steering-defence-olmoe"].read_text(encoding="utf-8"))["test"]
    gain = 100 * (defence["after"]["gain"]["rate"] - defence["before"]["gain"]["rate"])
    assert (
        f"The mask chosen on validation gains {gain:+.0f} points; it was learnt through the model in 1 of 1"
        in found["a"]
    )
    assert "points (1 runs)" in found["g"]
    assert "gains +6 points on 480 test conversations; begun at zero on the same checkpoint, +6 points." in found["i"]
    assert "two masked routers open 98 % (random pairs 16 %)" in found["b"]
    assert "All 5 files name one commit, cccccccccccc" in found["c"]
    assert "at 2 of 5 rows" in found["d"]
    assert "the claim holds at 3." in found["d"]
    assert "of 1 chosen masks break a limit" in found["e"]
    assert "1 of 3 test conversations end in a wrong answer, and none of these counts as withstood." in found["h"]
    assert "Of 24 ranks in 2 audits 5 mean something; 1 stand above the other routers and are as large" in found["j"]
    assert "counted 915 numbers of 2 runs again from the rows that ship; 1 differ" in found["k"]
    assert "4,901 forwards a prompt" in found["l"]
    kept.new("steering-defence-olmoe", "steering-defence-olmoe", wrong_withstands=True)
    assert "wrong answer, and these count as withstood in 1 of 1 runs." in said(plan)["h"]


def test_a_part_of_the_answer_says_how_much_is_there(kept: Kept) -> None:
    kept.new("olmoe", "olmoe")
    assert "(Of 9 planned runs 1 are there.)" in said()["d"]
