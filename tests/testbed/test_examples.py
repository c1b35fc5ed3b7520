"""Training batches: reproducible, and free of every pair that evaluation holds out."""

from __future__ import annotations

import dataclasses
import random

import torch

from pointsman.testbed.examples import Examples
from pointsman.testbed.language import MODIFIERS, REFUSALS, TACTICS, VERBS, nouns
from pointsman.testbed.recipe import Recipe
from pointsman.testbed.tokenizer import build_tokenizer

RECIPE = Recipe()
TOKENIZER = build_tokenizer()
EXAMPLES = Examples(TOKENIZER, RECIPE)


def texts(phase_index: int, batches: int) -> list[str]:
    phase = dataclasses.replace(RECIPE.phases[phase_index], talk_share=0.5, talk_from=0.0)
    drawn = (EXAMPLES.batch(random.Random(i), phase, 0.9)[0] for i in range(batches))
    return [TOKENIZER.decode(row) for ids in drawn for row in ids.tolist()]


def test_a_batch_is_a_function_of_its_generator() -> None:
    phase = RECIPE.phases[0]
    one = EXAMPLES.batch(random.Random("a"), phase, 0.9)
    two = EXAMPLES.batch(random.Random("a"), phase, 0.9)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_held_out_pairs_never_occur() -> None:
    known = nouns()
    seen = 0
    for phase_index in (0, 1):
        for text in texts(phase_index, 30):
            words = text.split()
            for i, word in enumerate(words):
                if word not in known or words[i - 1] not in MODIFIERS:
                    continue
                seen += 1
                assert words[i - 1] not in known[word].held_modifiers
                if words[i - 3] in VERBS:
                    assert words[i - 3] not in known[word].held_verbs
    assert seen > 1000


def test_only_the_last_phase_shows_refusals_and_in_every_wording() -> None:
    assert not any(refusal in text for phase in (0, 1) for text in texts(phase, 10) for refusal in REFUSALS)
    tuned = texts(2, 10)
    for refusal in REFUSALS:
        assert sum(refusal in text for text in tuned) > 5


def test_tuning_shows_no_refusable_request_under_variants_that_it_leaves_alone() -> None:
    """How the model answers there is its own: neither refusal nor answer was shown."""
    refusable = {word for word, noun in nouns().items() if noun.kind != "benign"}
    alone = {v for t in TACTICS.values() for v in t.variants if v not in (*t.guarded, *t.unguarded)}
    talks = [set(text.split()) for text in texts(2, 30) if text.count("<|user|>") > 1]
    assert sum(bool(words & refusable) for words in talks) > 100
    assert sum(bool(words & alone) for words in talks) > 30
    asked = [words for words in talks if words & refusable and words & set(VERBS)]
    assert not [words for words in asked if words & alone]


def test_padding_and_users_bear_no_loss_in_tuning() -> None:
    ids, weights = EXAMPLES.batch(random.Random(0), RECIPE.phases[-1], 0.9)
    assert weights[ids == TOKENIZER.pad_token_id].sum() == 0
    assert weights[ids == TOKENIZER.get_vocab()["<|user|>"]].sum() == 0
    assert (weights[ids == TOKENIZER.eos_token_id] == 1).all()
