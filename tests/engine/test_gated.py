"""An engine behind a gate: what is flagged is steered, what is not is untouched, whatever is beside it; and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import behaviours, behaviours_of_one_length, small_engine
from plain_engine import EXPERTS, LAYERS, PlainEngine
from pointsman.data.types import Conversation
from pointsman.engine import last_message as module
from pointsman.engine.gated import Gated
from pointsman.engine.hf import HFEngine
from pointsman.engine.last_message import last_message_logits, user_span
from pointsman.engine.types import Engine, Prompt
from pointsman.errors import DataError, InterventionError, UsageError, WrongModel
from pointsman.judges.refusal import RefusalJudge
from pointsman.methods.gate import Gate, LabelledTraces
from pointsman.methods.play import play
from pointsman.routing.intervention import Intervention
from pointsman.routing.store import TraceStore, TraceWriter

MASK = Intervention.mask({layer: [0, 1, 2] for layer in range(LAYERS)})
OTHER = Intervention.mask({1: [0, 1, 3, 4]})
TEXTS = ["take the rope", "go", "how is the sorry rope here", "no rope", "take and go"]


class Says:
    """A gate that flags what a test says, and remembers what it read."""

    identity = "says"

    def __init__(self, flag: bool | Sequence[bool]) -> None:
        self.flag = flag
        self.read: list[list[np.ndarray]] = []

    def check(self, routers: object, fingerprint: str) -> None:
        pass

    def flags(self, contexts: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        said = []
        for context in contexts:
            said.append(self.flag if isinstance(self.flag, bool) else self.flag[len(self.read)])
            self.read.append(list(context))
        return np.array(said, dtype=bool)


def asked(engine: Engine, texts: Sequence[str] = TEXTS) -> list[Prompt]:
    return [engine.encode(text) for text in texts]


@pytest.fixture
def plain() -> PlainEngine:
    return PlainEngine()


@pytest.fixture(scope="module")
def hf() -> HFEngine:
    return small_engine("olmoe")


def bias(engine: HFEngine) -> Intervention:
    """A strong one, so that it changes answers."""
    rng = np.random.default_rng(3)
    return Intervention.bias({r.layer: rng.normal(scale=20, size=r.experts) for r in engine.routers})


# ---------------------------------------------------------------------- what it says


def test_always_on_is_the_steered_engine_and_always_off_the_untouched_one(plain: PlainEngine) -> None:
    prompts, targets = asked(plain), [plain.encode_target("Sure take the rope")] * len(TEXTS)
    ways = {True: MASK, False: None}
    said = {flag: plain.generate(prompts, routing=way, max_new_tokens=8) for flag, way in ways.items()}
    assert said[True] != said[False]
    for flag, way in ways.items():
        gated = Gated(plain, Says(flag), MASK)
        assert gated.generate(prompts, max_new_tokens=8) == said[flag]
        assert gated.score(prompts, targets) == plain.score(prompts, targets, routing=way)
        mine, wanted = gated.trace(prompts), plain.trace(prompts, routing=way)
        assert all(np.array_equal(a.experts, b.experts) for a, b in zip(mine.layers, wanted.layers, strict=True))


def test_of_a_transformers_model_too_and_mixed_rows_are_as_rows_alone(hf: HFEngine) -> None:
    prompts = [hf.encode(b.turns) for b in behaviours(6)]
    assert len({len(p) for p in prompts}) > 1  # padded
    steering = bias(hf)
    with_it, without = (hf.generate(prompts, routing=r, max_new_tokens=6) for r in (steering, None))
    assert all(a.ids != b.ids for a, b in zip(with_it, without, strict=True))
    flags = [True, False, False, True, True, False]
    wanted = [a if flag else b for flag, a, b in zip(flags, with_it, without, strict=True)]
    assert Gated(hf, Says(flags), steering).generate(prompts, max_new_tokens=6) == wanted
    alone = [
        Gated(hf, Says(flag), steering).generate([prompt], max_new_tokens=6)[0]
        for flag, prompt in zip(flags, prompts, strict=True)
    ]
    assert alone == wanted


def test_the_gate_reads_the_untouched_model_at_the_last_message(
    plain: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOGETHER", 2)  # in pieces
    prompts, gate = asked(plain), Says(True)
    Gated(plain, gate, MASK).generate(prompts, max_new_tokens=2)
    for prompt, read in zip(prompts, gate.read, strict=True):
        alone = plain.trace([prompt])
        for layer, logits in enumerate(read):
            assert logits.tolist() == alone[layer].logits[:-1].tolist()  # all but "answer:"


def test_what_a_fitted_gate_flags_depends_on_nothing_beside_it(plain: PlainEngine, tmp_path: Path) -> None:
    """Requests about ropes are flagged, alone, in any company and in any order; and answered as if each was alone."""
    words = ["take", "the", "go", "no", "here", "how", "is", "and"]
    rng = np.random.default_rng(0)

    def labelled(folder: Path, count: int) -> LabelledTraces:
        texts = [" ".join(rng.choice(words, 3)) + (" rope" if n % 2 else " sorry") for n in range(count)]
        with TraceWriter(folder, experts=[EXPERTS] * LAYERS) as writer:
            for n, logits in enumerate(last_message_logits(plain, asked(plain, texts), [None] * count)):
                writer.add(f"c{n}", logits)
        return LabelledTraces(TraceStore.open(folder), [n % 2 for n in range(count)], [f"q{n}" for n in range(count)])

    gate = Gate(epochs=60).fit(
        labelled(tmp_path / "d", 60), labelled(tmp_path / "v", 40), fingerprint=plain.info.fingerprint
    )
    assert gate.chosen.auroc.value == 1.0
    texts = ["take the rope", "go here now", "how is the rope", "no", "a rope", "and the sorry"]
    wanted = ["rope" in text for text in texts]
    prompts, gated = asked(plain, texts), Gated(plain, gate, MASK)
    assert gated.flags(prompts).tolist() == wanted
    assert [bool(gated.flags([p])[0]) for p in prompts] == wanted
    assert gated.flags(prompts[::-1]).tolist() == wanted[::-1]
    each = [
        plain.generate([p], routing=MASK if flag else None, max_new_tokens=8)[0]
        for p, flag in zip(prompts, wanted, strict=True)
    ]
    assert gated.generate(prompts, max_new_tokens=8) == each
    other = PlainEngine()
    other.info = replace(other.info, fingerprint="plain-2")
    with pytest.raises(WrongModel, match="This gate is for plain-1, and the model is plain-2"):
        Gated(other, gate, MASK)


def test_every_turn_of_a_conversation_is_gated_anew(hf: HFEngine) -> None:
    turns = tuple(b.goal for b in behaviours(3))
    talk = Conversation(
        id="t", goal=turns[-1], turns=turns, source="q", tactic="", category="c", target="", split="test"
    )
    gate, steering = Says([False, True, False]), bias(hf)
    said = play(Gated(hf, gate, steering), [talk], RefusalJudge(), key="k", max_new_tokens=4)[0].responses
    assert len(gate.read) == 3
    for turn, way in enumerate((None, steering, None)):
        prompt = hf.encode(turns[: turn + 1], answers=said[:turn])
        assert hf.generate([prompt], routing=way, max_new_tokens=4)[0].text == said[turn]
        here = user_span(prompt, "tiny")
        assert len(here) < len(prompt) / (turn + 1)  # the last message alone, without history and template
        alone = hf.trace([prompt])
        for layer, logits in zip(alone.layers, gate.read[turn], strict=True):
            assert logits == pytest.approx(layer.logits[here], abs=1e-5)


# ---------------------------------------------------------------------- what it is given


def test_a_routing_that_is_given_acts_on_every_row_and_on_the_gate(plain: PlainEngine) -> None:
    prompts = asked(plain)
    each = [OTHER, None, OTHER, None, OTHER]
    for routing in (OTHER, each):
        gate = Says([True, True, False, False, True])
        found = Gated(plain, gate, MASK).generate(prompts, routing=routing, max_new_tokens=6)
        given = [OTHER] * 5 if isinstance(routing, Intervention) else each
        flags = [True, True, False, False, True]
        rows = [(g + MASK if g else MASK) if f else g for g, f in zip(given, flags, strict=True)]
        assert found == plain.generate(prompts, routing=rows, max_new_tokens=6)
        wanted = plain.trace(prompts, routing=routing)
        read = np.concatenate([one[2] for one in gate.read])
        last = np.array([n == len(prompts[row]) - 1 for row, n in zip(wanted[2].row, wanted[2].position, strict=True)])
        assert read.tolist() == wanted[2].logits[~last].tolist()


def test_candidate_routes_are_scored_through_the_gate(plain: PlainEngine) -> None:
    prompts, targets = asked(plain, TEXTS[:2]), [plain.encode_target("Sure take")] * 2
    sets = {0: np.array([[0, 1], [3, 4]]), 1: np.array([[2, 5]])}
    for flag, way in ((True, MASK), (False, None)):
        with Gated(plain, Says(flag), MASK).scorer(prompts, targets) as mine:
            found = mine.tries(0, 0, sets)
        for row, tried in sets.items():
            for experts, total in zip(tried, found[row], strict=True):
                route = Intervention.force({(0, 0): experts.tolist()}, phase="prefill")
                routing = route + way if way else route
                alone = plain.score([prompts[row]], [targets[row]], routing=routing)[0].total
                assert total == pytest.approx(alone, abs=1e-9)


# ---------------------------------------------------------------------- what it costs


def test_costs_are_counted(hf: HFEngine) -> None:
    prompts = [hf.encode(b.turns) for b in behaviours_of_one_length(3)]
    length = len(prompts[0])
    gated = Gated(hf, Says([True, False, True]), bias(hf))
    before = hf.cost.copy()
    hf.trace(prompts)
    traced = hf.cost - before
    assert (traced.forwards, traced.tokens) == (1, 3 * length)
    before = hf.cost.copy()
    hf.generate(prompts, routing=[bias(hf), None, bias(hf)], max_new_tokens=1)
    asked_once = hf.cost - before
    before = hf.cost.copy()
    gated.generate(prompts, max_new_tokens=1)
    spent = gated.cost - before
    assert gated.cost is hf.cost
    assert spent.tokens == traced.tokens + asked_once.tokens
    assert spent.forwards == traced.forwards + asked_once.forwards
    assert (gated.use.rows, gated.use.flagged) == (3, 2)
    assert (gated.use.tokens, gated.use.again) == (3 * length, 2 * length)
    assert 0 < gated.use.seconds <= spent.seconds


def test_runs_know_that_it_is_another_engine(plain: PlainEngine) -> None:
    one, other = Gated(plain, Says(True), MASK), Gated(plain, Says(True), OTHER)
    assert plain.settings.items() < one.settings.items()
    assert one.settings["gate"] == "says"
    assert one.settings != other.settings
    assert one.weights == plain.weights
    assert one.info is plain.info
    assert one.decode([1]) == "Sure"
    assert one.end_token == 0
    assert one.encode_target("Sure") == (1,)


# ---------------------------------------------------------------------- what is refused


def test_an_engine_without_a_trace_is_refused(plain: PlainEngine) -> None:
    blind = SimpleNamespace(info=plain.info, routers=plain.routers)
    with pytest.raises(UsageError, match="plain has no trace for a gate to read"):
        Gated(blind, Says(True), MASK)  # type: ignore[arg-type]


def test_a_template_without_spans_is_refused_before_anything_is_asked(plain: PlainEngine) -> None:
    good = plain.encode("go")
    bad = Prompt(good.ids, good.tokens, ("template",) * len(good))
    gate = Says(True)
    with pytest.raises(DataError, match="leaves no token of the last user message"):
        Gated(plain, gate, MASK).generate([good, bad])
    assert not gate.read
    assert not plain.generated


def test_what_cannot_be_carried_out_is_refused(plain: PlainEngine) -> None:
    with pytest.raises(InterventionError, match="The steering behind the gate cannot be carried out"):
        Gated(plain, Says(True), Intervention.bias({0: [1.0] * EXPERTS}))
    with pytest.raises(InterventionError, match="names rows"):
        Gated(plain, Says(True), Intervention.mask({0: [1, 2]}, rows=[0]))
    gated, prompts = Gated(plain, Says(True), MASK), asked(plain, TEXTS[:2])
    assert gated.can(None)
    assert gated.can(OTHER)
    assert gated.can([None, OTHER])
    for wrong in (
        Intervention.bias({0: [1.0] * EXPERTS}),
        Intervention.mask({0: [1, 2]}, rows=[0]),
        OTHER.for_model("plain-2"),
    ):
        assert not gated.can(wrong)
        assert not gated.can([None, wrong])
        with pytest.raises(InterventionError):
            gated.generate(prompts, routing=wrong)
    with pytest.raises(InterventionError, match="3 routings for 2 prompts"):
        gated.generate(prompts, routing=[None] * 3)
    assert not plain.generated


def test_nothing_goes_around_the_gate(hf: HFEngine) -> None:
    gated = Gated(hf, Says(True), bias(hf))
    for name in ("learner", "route_gradients", "patcher", "model"):
        assert hasattr(hf, name)
        assert not hasattr(gated, name)


def test_nothing_is_asked_of_no_prompts(plain: PlainEngine) -> None:
    gated = Gated(plain, Says(True), MASK)
    assert gated.generate([]) == []
    assert gated.flags([]).tolist() == []
    with pytest.raises(UsageError, match="A prompt stands where a list of prompts is wanted"):
        gated.flags(plain.encode("go"))  # type: ignore[arg-type]
