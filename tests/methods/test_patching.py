"""Patching between two runs: exact where it must be, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines import behaviours_of_one_length as behaviours
from engines import small_engine
from pointsman.engine.hf import HFEngine
from pointsman.engine.patching import Cell
from pointsman.errors import UsageError
from pointsman.methods.patching import Patching, PatchingResult
from pointsman.routing.intervention import Intervention

LAYER = 1  # the masked one


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return small_engine()


def masks(engine: HFEngine, count: int, layer: int = LAYER, **where: object) -> list[Intervention]:
    sets = engine.routers[layer].draw(np.random.default_rng(3), count).tolist()
    return [Intervention.force({layer: s}, phase="prefill", **where) for s in sets]  # type: ignore[arg-type]


def prompts(engine: HFEngine, count: int) -> list:  # type: ignore[type-arg]
    """Of two lengths, so that rows are padded."""
    asked = [engine.encode(b.turns) for b in behaviours(count)]
    return [engine.encode(("hold on", "where is it"), answers=("yes",)) if n % 2 else p for n, p in enumerate(asked)]


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v2"])
def test_exchanging_all_tokens_gives_the_other_run_and_none_the_same(family: str) -> None:
    engine = small_engine(family)
    asked = prompts(engine, 4)
    read = np.tile(np.arange(7), (4, 1))
    layer = engine.routers[LAYER].decoder_layer
    with engine.patcher() as patcher:
        plain, masked = patcher.streams(asked, [None] * 4), patcher.streams(asked, masks(engine, 4))
        assert np.abs(plain.logits - masked.logits).max() > 1e-3
        for into, donor in ((masked, plain), (plain, masked)):
            for after in range(layer, patcher.layers):
                every = [Cell(row, after, tuple(range(len(p)))) for row, p in enumerate(asked)]
                none = [Cell(row, after, ()) for row in range(4)]
                np.testing.assert_allclose(
                    patcher.patched(into, donor, every, read).logits, donor.logits[:, :7], atol=1e-12
                )
                np.testing.assert_allclose(
                    patcher.patched(into, donor, none, read).logits, into.logits[:, :7], atol=1e-12
                )
            unchanged = patcher.lens(into, patcher.layers - 1, read).logits
            np.testing.assert_allclose(unchanged, into.logits[:, :7], atol=1e-12)


def test_the_streams_are_those_of_the_model(engine: HFEngine) -> None:
    asked = prompts(engine, 3)
    with engine.patcher() as patcher:
        plain = patcher.streams(asked, [None] * 3)
    for row, prompt in enumerate(asked):
        hidden = engine.model(torch.tensor([prompt.ids]), output_hidden_states=True)
        stream = hidden.hidden_states[1][0].detach().numpy()
        np.testing.assert_allclose(plain.after(0)[row, : len(prompt)], stream, atol=1e-12)
        np.testing.assert_allclose(plain.logits[row], hidden.logits[0, -1].detach().numpy(), atol=1e-12)


def test_at_the_masked_layer_a_cell_is_the_mask_at_these_tokens(engine: HFEngine) -> None:
    asked = prompts(engine, 2)
    read = np.tile(np.arange(7), (2, 1))
    layer = engine.routers[LAYER].decoder_layer
    with engine.patcher() as patcher:
        plain, masked = patcher.streams(asked, [None] * 2), patcher.streams(asked, masks(engine, 2))
        for token in (0, 3, min(map(len, asked)) - 1):
            alone = patcher.streams(asked, masks(engine, 2, positions=[token]))
            one = [Cell(row, layer, (token,)) for row in range(2)]
            np.testing.assert_allclose(
                patcher.patched(plain, masked, one, read).logits, alone.logits[:, :7], atol=1e-12
            )
            others = [[t for t in range(len(p)) if t != token] for p in asked]
            without = [masks(engine, 2, positions=o)[n] for n, o in enumerate(others)]
            np.testing.assert_allclose(
                patcher.patched(masked, plain, one, read).logits, patcher.streams(asked, without).logits[:, :7],
                atol=1e-12,
            )  # fmt: skip


def found(batch_size: int | None = None, count: int = 6, take: slice = slice(None)) -> PatchingResult:
    engine = small_engine(batch_size=batch_size)
    return Patching().patch(engine, behaviours(count)[take], masks(engine, count)[take])


def test_the_result_does_not_depend_on_the_batch() -> None:
    one, other, single = found(), found(batch_size=3), found(take=slice(2, 3))
    assert one.prompts == other.prompts
    assert len(one.prompts) + len(one.unmoved) == 6
    for name in ("plain", "changed", "restored", "inserted", "plain_lens", "changed_lens"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-12)
        row = one.prompts.index(single.prompts[0])
        np.testing.assert_allclose(getattr(one, name)[row], getattr(single, name)[0], atol=1e-12)
    assert np.array_equal(one.back, other.back)
    assert np.array_equal(one.gone, other.gone)


def test_shares_run_from_the_run_patched_into_to_the_run_taken_from(engine: HFEngine) -> None:
    result = found()
    last = len(result.tokens[0]) - 1
    assert (result.plain > 0).all()
    assert (result.changed < 0).all()
    assert result.layers == tuple(range(engine.routers[LAYER].decoder_layer, result.plain_lens.shape[1]))
    # After the last layer only the last token is read.
    np.testing.assert_allclose(result.restored_share[:, -1, last], 1.0, atol=1e-9)
    np.testing.assert_allclose(result.inserted_share[:, -1, last], 1.0, atol=1e-9)
    np.testing.assert_allclose(result.restored_share[:, -1, :last], 0.0, atol=1e-9)
    np.testing.assert_allclose(result.inserted_share[:, -1, last + 1], 0.0, atol=1e-9)
    assert result.back[:, -1, last].all()
    assert not result.gone[:, -1, :last].any()
    np.testing.assert_allclose(result.plain_lens[:, -1], result.plain, atol=1e-9)
    np.testing.assert_allclose(result.changed_lens[:, -1], result.changed, atol=1e-9)
    # Below the mask nothing differs.
    np.testing.assert_allclose(result.plain_lens[:, 0], result.changed_lens[:, 0], atol=1e-12)


def test_the_engine_answers_as_before_afterwards(engine: HFEngine) -> None:
    prompt = engine.encode(behaviours(1)[0].turns)
    before = engine.score([prompt], [(5, 6)])
    with pytest.raises(ValueError, match="no residual stream"), engine.patcher() as patcher:
        patcher.streams([prompt], masks(engine, 1)).after(-1)
    assert engine.score([prompt], [(5, 6)]) == before


def test_what_cannot_be_patched_is_refused(engine: HFEngine) -> None:
    with pytest.raises(UsageError):
        Patching().patch(engine, [], [])
    with pytest.raises(UsageError):
        Patching().patch(engine, behaviours(2), masks(engine, 1))
    with pytest.raises(UsageError):
        Patching().patch(engine, behaviours(1), [Intervention()])
