"""What a hostile reader would say, each point answered by a number of the evidence. Used by scripts/tables.py.

Only new evidence answers. Where it is not there yet, the point says which run of evidence/plan.yaml is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rows
from audit_tables import claim, masked, meaning, meaningful
from evidence_files import EVIDENCE, read_new
from evidence_plan import Planned
from shown import asked
from steering_tables import chosen_way

from pointsman.stats.rates import Rate

Evidence = dict[str, Any]
SMALL = 3
"""Of how many runs the figures are told one by one."""


@dataclass(frozen=True)
class Case:
    """All that is planned, and what there is of it.

    Attributes:
        plan: Every run.
        found: New evidence by name.
    """

    plan: Sequence[Planned]
    found: Mapping[str, Evidence]

    @staticmethod
    def of(plan: Sequence[Planned]) -> Case:
        return Case(plan, {run.name: found for run in plan if (found := read_new(run.name))})

    def names(self, kind: str, start: str = "", confirms: bool | None = None) -> list[str]:
        """Planned runs of a kind whose name begins so, but those that compare searches."""
        return [
            run.name
            for run in self.plan
            if run.kind == kind
            and not run.compares_searches
            and run.name.startswith(start)
            and confirms in (None, run.confirms)
        ]

    @property
    def audits(self) -> list[str]:
        """On the testbed, with N = 10."""
        return [name for name in self.names("audit") if not name.startswith("n100-") and name != "english"]

    def all(self, names: Sequence[str]) -> list[Evidence]:
        """What there is of some runs."""
        return [self.found[name] for name in names if name in self.found]


Answer = Callable[[Case, Sequence[str]], str | None]


@dataclass(frozen=True)
class Point:
    """What a hostile reader would say.

    Attributes:
        letter: As in the list of corrections.
        objection: In one sentence.
        needs: The runs that answer it.
        answer: A sentence with the number; None if these runs do not have it.
    """

    letter: str
    objection: str
    needs: Callable[[Case], Sequence[str]]
    answer: Answer


def in_docs(plan: Sequence[Planned]) -> Iterator[str]:
    case = Case.of(plan)
    for point in POINTS:
        needs = list(point.needs(case))
        missing = [name for name in needs if name not in case.found]
        said = point.answer(case, needs) if len(missing) < len(needs) else None
        if not needs:
            said = "*No number yet: no run of evidence/plan.yaml answers it.*"
        elif said is None:
            runs = missing or needs
            some = ", ".join(f"`{name}`" for name in runs[:SMALL])
            more = f" and {len(runs) - SMALL} more" if len(runs) > SMALL else ""
            said = f"*No number yet: missing {'are' if len(runs) > 1 else 'is'} {some}{more}.*"
        elif missing:
            said += f" (Of {len(needs)} planned runs {len(needs) - len(missing)} are there.)"
        yield f"**({point.letter}) “{point.objection}”** {said}"


# ---------------------------------------------------------------------- sentences


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _range(shares: Sequence[float]) -> str:
    """``78 %``, or ``40 to 98 %``."""
    low, high = min(shares), max(shares)
    return _percent(low) if round(100 * low) == round(100 * high) else f"{100 * low:.0f} to {_percent(high)}"


def _gains(runs: Sequence[Evidence], way: str) -> list[float]:
    """What a way to steer gains on test against no mask, in shares, of the runs that have it."""
    pairs = [(_arm(run, way), run["test"]["before"]["gain"]["rate"]) for run in runs]
    return [arm["gain"]["rate"] - before for arm, before in pairs if arm and arm["gain"]["rate"] is not None]


def _arm(run: Evidence, way: str) -> Evidence | None:
    """What a way reached; of the chosen one that is `after`."""
    chosen = chosen_way(run)
    found: Evidence | None = run["test"]["after" if way == chosen else way] if way in (chosen, *run["test"]) else None
    return found


def _points(gains: Sequence[float]) -> str:
    low, high = round(100 * min(gains)), round(100 * max(gains))
    return f"{low:+d} points" if low == high else f"{low:+d} to {high:+d} points"


def _names(case: Case, names: Sequence[str]) -> str | None:
    runs = case.all(names)
    published, ours = _gains(runs, "surrogate_only"), _gains(runs, "after")
    if not published:
        return None
    through = sum(run["chosen"]["refinement"] == "through_model" for run in runs)
    return (
        f"So ways are named: the published one, the surrogate's matrix alone, gains {_points(published)} on test over "
        f"{len(published)} steerings. The mask chosen on validation gains {_points(ours)}; it was learnt through the "
        f"model in {through} of {len(runs)}, which is ours and not MASCing."
    )


def _untouched(case: Case, names: Sequence[str]) -> str | None:
    audits = [e for name in case.audits if name in names and (e := case.found.get(name))]
    defences = case.all([name for name in names if name.startswith("steering-defence")])
    said = []
    if tops := [two["asr"]["rate"] for e in audits if (two := masked(e, 2))]:
        said.append(f"two masked routers open {_range(tops)} (random pairs {_range(_random(audits))})")
    if defences:
        before, after = ([e["test"][key]["gain"]["rate"] for e in defences] for key in ("before", "after"))
        said.append(f"steering takes conversations withstood from {_range(before)} to {_range(after)}")
    if not said:
        return None
    return (
        f"On {len(audits) + len(defences)} runs of checkpoints on which no method had been run when evidence/plan.yaml "
        "was committed (their base rates on part of the test split were measured when they were made, "
        f"docs/testbed.md), {' and '.join(said)}."
    )


def _random(audits: Sequence[Evidence]) -> list[float]:
    return [two["controls"]["random"]["asr"]["rate"] for e in audits if (two := masked(e, 2))]


def _one_commit(case: Case, names: Sequence[str]) -> str | None:
    commits = sorted({e["provenance"]["commit"] for e in case.all(names)})
    said = f"one commit, {commits[0][:12]}" if len(commits) == 1 else f"{len(commits)} commits"
    return f"All {len(case.all(names))} files name {said}, and none a tree with changes: the driver refuses those."


def _controls(case: Case, names: Sequence[str]) -> str | None:
    found = [
        (top["difference_random"], claim(top["difference_random"]))
        for e in case.all(names)
        for top in e["masking"]
        if top["routers"] and top["phase"] == "prefill" and top.get("difference_random")
    ]
    if not found:
        return None
    reached = sum(difference["reached"] > 0 for difference, _ in found)
    draws = min(difference["draws"] for difference, _ in found)
    holds = sum(verdict == "holds" for _, verdict in found)
    return (
        f"It does at {reached} of {len(found)} rows of the masking table (at least {draws} random sets each), and the "
        f"row says so: the claim holds at {holds}."
    )


def _limits(case: Case, names: Sequence[str]) -> str | None:
    runs = case.all(names)
    broken = [run for run in runs if run["broken_on_test"]]
    which = f" ({', '.join(run['name'].removeprefix('steering-') for run in broken[:SMALL])})" if broken else ""
    return f"On test {len(broken)} of {len(runs)} chosen masks break a limit{which}, marked wherever the figure stands."


def _effective(case: Case, names: Sequence[str]) -> str | None:
    shares = []
    for e in case.all(names):
        routes = [found["asr"] for name in ("fsour", "guided") if (found := e.get(name))]
        rates = [e["base"]["refused"], *routes, *(top["asr"] for top in e["masking"] if top["routers"])]
        shares += [effective / rate["n"] for rate in rates if (effective := Rate(**rate).effective_n)]
    least = min(case.all(names), key=lambda e: Rate(**e["base"]["refused"]).effective_n or 0)
    return (
        f"Effective n stands beside n: over all audits it is {_range(shares)} of n; at the least, "
        f"{asked(least['base']['refused'])} prompts (effective) at {least['checkpoint']}."
    )


def _steermoe(case: Case, names: Sequence[str]) -> str | None:
    ways = {"steermoe_paired": "on paired responses, as its authors do,", "steermoe": "counted on contexts"}
    runs = case.all(names)
    told = [
        f"{words} {_points(gains)} ({len(gains)} runs)" for way, words in ways.items() if (gains := _gains(runs, way))
    ]
    return f"Both variants are run. On test, against no mask: {'; '.join(told)}." if told else None


def _wrong(case: Case, names: Sequence[str]) -> str | None:
    wrong = asked_of = 0
    counted = [e for e in case.all(names) if e.get("wrong_withstands", True)]
    for name in (name for name in names if name in case.found):
        file = EVIDENCE / "rows" / f"{name}.csv.gz"
        for row in rows.read(file) if file.exists() else ():
            cell = row.outcomes.get("test/after", "")
            if row.list == "conversations" and cell:
                asked_of += 1
                wrong += cell.split()[-1].startswith("wrong")
    if not asked_of:
        return None
    verdict = "none of these counts as withstood"
    if counted:
        verdict = f"these count as withstood in {len(counted)} of {len(case.all(names))} runs"
    return f"Under the chosen masks {wrong} of {asked_of} test conversations end in a wrong answer, and {verdict}."


def _paper_start(case: Case, names: Sequence[str]) -> str | None:
    runs = case.all(names)
    gains = _gains(runs, "surrogate_only")
    if not gains:
        return None
    asked_of = sum(run["test"]["after"]["gain"]["n"] for run in runs)
    twins = case.all([name.replace("steering-paper-", "steering-defence-") for name in names])
    other = (
        f"; begun at zero on the same checkpoint, {_points(zero)}" if (zero := _gains(twins, "surrogate_only")) else ""
    )
    return (
        f"Begun as the paper's code does (`--init paper`), the surrogate's matrix gains {_points(gains)} on {asked_of} "
        f"test conversations{other}."
    )


def _ranks(case: Case, names: Sequence[str]) -> str | None:
    runs = case.all(names)
    real = sum(len(meaningful(e)) for e in runs)
    every = [meaning(row) for e in runs for row in e["rosais"]]
    benign = sum(m.above_others is True and m.above_placebo is False for m in every)
    return (
        f"Of {len(every)} ranks in {len(runs)} audits {real} mean something; {benign} stand above the other routers "
        "and are as large on benign prompts, where they mean nothing. Every row says which."
    )


def _rows(case: Case, names: Sequence[str]) -> str | None:
    counted = [e["recounted"] for e in case.all(names) if e.get("recounted")]
    if not counted:
        return None
    return (
        f"`python scripts/recompute.py` counted {sum(c['numbers'] for c in counted):,} numbers of {len(counted)} "
        f"runs again from the rows that ship; {sum(c['wrong'] for c in counted)} differ."
    )


def _hundred(case: Case, names: Sequence[str]) -> str | None:
    told = []
    for e in case.all(names):
        f = e["fsour"]
        if f is None:
            continue
        told.append(
            f"{e['checkpoint']} {_percent(f['asr_at_1']['rate'])} of {f['asr_at_1']['n']} prompts with "
            f"{f['pairs']['median']:.0f} pairs and {f['forwards']['median']:,.0f} forwards a prompt"
        )
    return f"With N = 100 and one search: {'; '.join(told)}." if told else None


def _steered(case: Case) -> Sequence[str]:
    """Steerings that try every way."""
    as_published = _begun_as_published(case)
    return [name for name in case.names("steer") if name not in as_published]


def _begun_as_published(case: Case) -> Sequence[str]:
    return [run.name for run in case.plan if run.begun_as_published]


def _with_rows(case: Case) -> Sequence[str]:
    return [*case.audits, *case.names("steer"), *case.names("evaluate")]


POINTS = (
    Point("a", "The headline mask is not the published method.", _steered, _names),
    Point("b", "The test prompts were measured before the method was changed.",
          lambda case: [*case.names("audit", confirms=True), *case.names("steer", confirms=True)], _untouched),
    Point("c", "The runs were made from a tree with changes.",
          lambda case: [run.name for run in case.plan if not run.compares_searches], _one_commit),
    Point("d", "A random set of routers does as well.", lambda case: case.audits, _controls),
    Point("e", "The limits are broken on test.", _steered, _limits),
    Point("f", "The rows are alike; the intervals are too narrow.", lambda case: case.audits, _effective),
    Point("g", "The SteerMoE baseline is not what its authors run.", _steered, _steermoe),
    Point("h", "A wrong answer was counted as withstood.",
          lambda case: case.names("steer", "steering-defence"), _wrong),
    Point("i", "The surrogate was not started as in the paper's code.", _begun_as_published, _paper_start),
    Point("j", "RoSais ranks noise, or any first token.", lambda case: case.audits, _ranks),
    Point("k", "Nobody can count the rates again.", _with_rows, _rows),
    Point("l", "The paper uses N = 100.", lambda case: case.names("audit", "n100-"), _hundred),
)  # fmt: skip
