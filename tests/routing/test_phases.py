"""Prompt and answer are told apart however `generate` runs: uncached, in chunks, in a second turn, with beams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caches import cached
from pointsman.errors import InterventionError
from pointsman.routing.control import control
from pointsman.routing.intervention import Intervention
from pointsman.routing.routers import find_routers

pytestmark = pytest.mark.versions

IDS = torch.tensor([[5, 17, 33, 9, 41, 22], [0, 0, 7, 12, 60, 3]])
MASK = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
PROMPTS = [6, 4]  # real tokens


def generate(model: Any, ids: Tensor = IDS, mask: Tensor = MASK, **kwargs: Any) -> Any:
    kwargs = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    return model.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **kwargs)


def rule(model: Any, phase: Any) -> Intervention:
    """Sets forced at every router, in one phase only."""
    rng = np.random.default_rng(3)
    return Intervention.force({r.layer: r.draw(rng, 1)[0].tolist() for r in find_routers(model)}, phase=phase)


def forced(model: Any, routing: Intervention, trace: Any) -> set[tuple[int, bool]]:
    """Every (row, is it an answer token) at whose tokens the set was forced; it must be all of them or none."""
    (rule_,) = routing.rules
    found: set[tuple[int, bool]] = set()
    for layer in trace.layers:
        for row, prompt in enumerate(PROMPTS):
            one = layer.select(row=row)
            assert one.decode.tolist() == (one.position >= prompt).tolist()
    for router in find_routers(model):
        experts = set(rule_.placed[router.layer, None])
        layer = trace[router.layer]
        for row in range(len(PROMPTS)):
            for decode in (False, True):
                here = layer.select(row=row, decode=decode)
                if len(here) and all(set(chosen) == experts for chosen in here.experts.tolist()):
                    found.add((row, decode))
    return found


WAYS: dict[str, dict[str, Any]] = {
    "without a cache": dict(use_cache=False),
    "in chunks": dict(prefill_chunk_size=2),
    "in chunks of one": dict(prefill_chunk_size=1),
}


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_phase_is_the_same_however_generate_runs(family: str, model: Any, way: str, phase: str) -> None:
    if family in ("jamba", "qwen3_next") and generate(model).sequences.tolist() != (
        generate(model, **WAYS[way]).sequences.tolist()
    ):
        pytest.skip("transformers itself reads a padded prompt otherwise here: recurrent states take padding in")
    routing = rule(model, phase)
    with control(model, routing, trace=True) as usual:
        expected = generate(model)
    with control(model, routing, trace=True) as controller:
        answer = generate(model, **WAYS[way])
    assert answer.sequences.tolist() == expected.sequences.tolist()
    wanted = {(row, phase == "decode") for row in range(2)}
    assert wanted <= forced(model, routing, usual.trace())
    assert wanted <= forced(model, routing, controller.trace())


@pytest.mark.parametrize("new_only", [False, True])
def test_new_tokens_of_a_second_turn_are_prompt(olmoe: Any, new_only: bool) -> None:
    more = torch.tensor([[8, 9, 10], [11, 12, 13]])
    routing = rule(olmoe, "prefill")
    with control(olmoe, routing):
        first = generate(olmoe)
    longer = torch.cat([first.sequences, more], 1)
    mask = torch.cat([MASK, torch.ones(2, longer.shape[1] - 6, dtype=torch.long)], 1)
    cache = next(value for value in first.values() if hasattr(value, "get_seq_length"))
    name = next(iter(cached(olmoe, cache)))
    given = longer[:, cache.get_seq_length() :] if new_only else longer
    with control(olmoe, routing, trace=True) as controller:
        generate(olmoe, given, mask, **{name: cache})
    trace = controller.trace()[0]
    (rule_,) = routing.rules
    for row in range(2):
        prompt = trace.select(row=row, decode=False)
        assert len(prompt) == 4  # the last token of the answer, which was not read yet, and three new ones
        assert all(set(chosen) == set(rule_.placed[0, None]) for chosen in prompt.experts.tolist())
        assert len(trace.select(row=row, decode=True)) == 3


def test_tokens_after_a_cache_by_hand_are_of_no_known_phase(olmoe: Any) -> None:
    def step(**kwargs: Any) -> Any:
        with torch.no_grad():
            return olmoe(**{"use_cache": True, **kwargs})

    def go_on(routing: Intervention | None, tokens: int, **kwargs: Any) -> None:
        with control(olmoe, routing, **kwargs):
            output = step(input_ids=IDS[:1, :3])
            step(input_ids=IDS[:1, 3 : 3 + tokens], **cached(olmoe, output))

    for phase in ("prefill", "decode"):
        with pytest.raises(InterventionError, match="may be prompt or answer"):
            go_on(rule(olmoe, phase), 2)
        go_on(rule(olmoe, phase), 1)  # one token after a cache is what decoding by hand looks like
        go_on(rule(olmoe, phase), 2, prompt_lengths=[4])
    with pytest.raises(InterventionError, match="of which phase each token is"):
        go_on(None, 2, trace=True)
    go_on(rule(olmoe, "both"), 2)


def test_generate_is_left_as_it_was(fresh: Any) -> None:
    model = fresh("olmoe")
    assert "generate" not in vars(model)
    with control(model, rule(model, "decode")):
        assert "generate" in vars(model)
        with pytest.raises(ValueError, match="max_new_tokens"):
            generate(model, max_new_tokens=-1)
    assert "generate" not in vars(model)

    def own(*args: Any, **kwargs: Any) -> str:
        return "own"

    model.generate = own
    with control(model, rule(model, "decode")):
        assert model.generate(input_ids=IDS) == "own"
    assert model.generate is own


def test_a_generate_that_fails_leaves_no_prompt_behind(olmoe: Any) -> None:
    with control(olmoe, rule(olmoe, "decode"), trace=True) as controller:
        with pytest.raises(ValueError, match="max_new_tokens"):
            generate(olmoe, max_new_tokens=-1)
        with torch.no_grad():
            olmoe(input_ids=torch.cat([IDS, IDS], 1)[:1])
    assert not controller.trace()[0].decode.any()


# -- rows are prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [dict(num_beams=3), dict(num_beams=4, num_return_sequences=2)])
@pytest.mark.parametrize("each", ["rows", "list"])
def test_rows_mean_prompts_however_many_copies_there_are(olmoe: Any, many: dict[str, int], each: str) -> None:
    experts = {r.layer: [1, 6] for r in find_routers(olmoe)}
    one = Intervention.force(experts)
    routing = Intervention.force(experts, rows=[1]) if each == "rows" else [None, one]
    with control(olmoe, routing):
        together = generate(olmoe, **many).sequences
    copies = many.get("num_return_sequences", 1)
    assert len(together) == 2 * copies
    with control(olmoe):
        free = generate(olmoe, IDS[:1], MASK[:1], **many).sequences
    with control(olmoe, one):
        held = generate(olmoe, IDS[1:], MASK[1:], **many).sequences
    with control(olmoe):
        assert generate(olmoe, IDS[1:], MASK[1:], **many).sequences.tolist() != held.tolist()
    assert together[:copies].tolist() == free.tolist()
    assert together[copies:].tolist() == held.tolist()


def test_sampled_copies_belong_to_their_prompt(olmoe: Any) -> None:
    routing = Intervention.force({0: [1, 6]}, rows=[1])
    torch.manual_seed(0)
    with control(olmoe, routing, trace=True) as controller:
        answer = generate(olmoe, do_sample=True, num_return_sequences=3)
    assert len(answer.sequences) == 6
    trace = controller.trace()[0]
    for row in range(6):
        always = all(set(chosen) == {1, 6} for chosen in trace.select(row=row).experts.tolist())
        assert always == (row // 3 == 1)


# -- forwards that are not what they seem --------------------------------------------------------------------


def test_a_second_prompt_within_generate_is_of_no_known_phase(olmoe: Any) -> None:
    """Guidance asks for another text on the way; its tokens are neither this prompt nor this answer."""
    for phase in ("prefill", "decode"):
        with control(olmoe, rule(olmoe, phase)), pytest.raises(InterventionError, match="guidance_scale"):
            generate(olmoe, guidance_scale=1.5)
    with control(olmoe, rule(olmoe, "both")):
        generate(olmoe, guidance_scale=1.5)
    with control(olmoe, rule(olmoe, "decode")):
        generate(olmoe, guidance_scale=1.0)


def test_a_processor_that_asks_the_model_something_else_is_noticed(olmoe: Any) -> None:
    def ask(input_ids: Tensor, scores: Tensor) -> Tensor:
        olmoe(input_ids=IDS[:, :3])
        return scores

    with control(olmoe, rule(olmoe, "decode")), pytest.raises(InterventionError, match="may be prompt or answer"):
        generate(olmoe, logits_processor=[ask])


@pytest.mark.parametrize("taken", ["bound", "of the class"])
def test_a_generate_that_was_taken_before_is_refused_where_phases_count(olmoe: Any, taken: str) -> None:
    earlier = olmoe.generate
    given = dict(input_ids=IDS, attention_mask=MASK, max_new_tokens=2, do_sample=False, pad_token_id=0)

    def call() -> Any:
        return earlier(**given) if taken == "bound" else type(olmoe).generate(olmoe, **given)

    with control(olmoe, rule(olmoe, "decode")), pytest.raises(InterventionError, match="inside the block"):
        call()
    with control(olmoe, trace=True), pytest.raises(InterventionError, match="inside the block"):
        call()
    with control(olmoe, rule(olmoe, "both")):
        call()


@pytest.mark.parametrize("kwargs", [dict(prompt_lookup_num_tokens=3), dict(use_cache=False)])
def test_a_token_that_is_read_again_is_traced_once(olmoe: Any, kwargs: dict[str, Any]) -> None:
    ids = torch.tensor([[5, 17, 33, 5, 17, 33, 5, 17]])
    mask = torch.ones_like(ids)
    with control(olmoe, trace=True) as usual:
        expected = generate(olmoe, ids, mask, max_new_tokens=6).sequences
    with control(olmoe, trace=True) as controller:
        answer = generate(olmoe, ids, mask, max_new_tokens=6, **kwargs).sequences
    assert answer.tolist() == expected.tolist()
    for one, other in zip(usual.trace().layers, controller.trace().layers, strict=True):
        places = [p for p in other.position.tolist() if p <= one.position.max()]  # a draft may go on behind the end
        assert places == one.position.tolist()
        assert np.array_equal(np.sort(one.experts), np.sort(other.experts[: len(places)]))
        assert one.decode.tolist() == other.decode[: len(places)].tolist()


def test_forwards_by_hand_are_all_traced(olmoe: Any) -> None:
    with control(olmoe, trace=True) as controller, torch.no_grad():
        olmoe(input_ids=IDS)
        olmoe(input_ids=IDS)
    assert len(controller.trace()[0]) == 2 * IDS.numel()


def test_beams_are_not_traced(olmoe: Any) -> None:
    with control(olmoe, trace=True), pytest.raises(InterventionError, match="beam search"):
        generate(olmoe, num_beams=2)


@pytest.mark.parametrize(("name", "value"), [("num_beams", 2), ("guidance_scale", 1.5)])
def test_what_the_models_own_configuration_asks_for_counts_too(fresh: Any, name: str, value: float) -> None:
    model = fresh("olmoe", dtype=torch.float64)
    setattr(model.generation_config, name, value)
    with control(model, trace=True), pytest.raises(InterventionError):
        generate(model)
    with control(model, trace=True):
        generate(model, **{name: 1})
