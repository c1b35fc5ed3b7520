"""Walk every causal-LM type of the installed transformers that has routers, and write down what Pointsman does with it.

    python scripts/families.py            write the table of docs/models.md
    python scripts/families.py --check    fail if the table is not what this transformers version gives
    python scripts/families.py olmoe ...  only show these

Each type is built small with random weights from its own configuration class, proven by `prove`, and then checked in
a way that reads no router: the weights of one expert after another are changed, and the tokens whose block output
changes are those that use it. What a route gradient says of forced sets is held against what they do.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "families"))

from gains import agreement, draw, engine_of, gains, slopes  # noqa: E402
from knock import experts_that_count, weights_of_experts  # noqa: E402

from pointsman.engine.hf import HFEngine  # noqa: E402
from pointsman.errors import BadLogits, ModelError, PointsmanError  # noqa: E402
from pointsman.routing.control import control, prove  # noqa: E402
from pointsman.routing.intervention import Intervention  # noqa: E402
from pointsman.routing.routers import Router, find_routers  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- begin: scripts/families.py -->", "<!-- end -->"
MOST_PARAMETERS = 20_000_000
SECONDS = 60
DAMPED = 0.3  # experts whose weights are so much smaller: no set then changes much
NEAR = 0.02  # within which correlations of another processor lie
_OUTCOMES = ("controlled", "refused", "not built", "misread")

_PAIR = re.compile(r"(-?\d\.\d\d), (-?\d\.\d\d)")

_SMALL: dict[str, Any] = dict(
    vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    moe_shared_expert_intermediate_size=16, shared_experts_intermediate_size=16, expert_ffn_hidden_size=16,
    ffn_hidden_size=32, intermediate_size_mlp=32, dense_intermediate_size=32,
    num_hidden_layers=4, num_layers=4, n_layers=4,
    num_attention_heads=4, n_heads=4, num_key_value_heads=2, head_dim=8, d_model=32, max_seq_len=128,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    num_experts=16, num_local_experts=16, n_routed_experts=16, moe_num_experts=16, zero_expert_num=4,
    num_experts_per_tok=3, moe_topk=3, moe_k=3, top_k_experts=3, n_group=4, topk_group=2,
    topk_method="group_limited_greedy",
    n_shared_experts=1, num_shared_experts=1, first_k_dense_replace=1, num_dense_layers=1, moe_layer_start_index=1,
    enable_moe_block=True, is_moe=True,
    q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, o_lora_rank=8, o_groups=2,
    index_topk=64, index_n_heads=2, index_head_dim=16, kv_channels=8,
    linear_head_dim=8, linear_num_heads=4, linear_num_value_heads=4, linear_num_key_heads=2,
    linear_key_head_dim=8, linear_value_head_dim=8,
    mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16, mamba_expand=2, mamba_dt_rank=4, ssm_state_size=8,
    mamba_num_heads=4, mamba_head_dim=16, n_groups=1, mamba_n_groups=1,
    router_hidden_size=24, num_mtp_layers=0, num_nextn_predict_layers=0, vocab_size_per_layer_input=64,
    hidden_size_per_layer_input=8, global_head_dim=8, num_global_key_value_heads=2,
    mlp_layer_types=["dense", "sparse", "sparse", "sparse"], layers_block_type=["mamba", "moe", "attention", "moe"],
)  # fmt: skip


_ALSO: dict[str, dict[str, Any]] = {  # what the types' own validation insists on, and attention in every hybrid
    "bailing_hybrid": dict(layer_group_size=2),
    "dbrx": dict(attn_config=dict(kv_n_heads=2, rope_theta=1e4),
                 ffn_config=dict(hidden_size=32, ffn_hidden_size=16, moe_num_experts=16, moe_top_k=3)),
    "deepseek_v4": dict(mlp_layer_types=None),
    "dots3_note_text": dict(swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_q_lora_rank=8, swa_kv_lora_rank=8,
                            swa_head_dim=16, swa_qk_nope_head_dim=8, swa_v_head_dim=8, head_dim=16),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"] * 2, shared_intermediate_size=32),
    "inkling2_loop_text": dict(unpadded_vocab_size=64),
    "inkling2_text": dict(unpadded_vocab_size=64),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=1, expert_layer_offset=0),
    "kimi_linear": dict(layer_types=["linear_attention", "full_attention"] * 2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "phimoe": dict(num_experts_per_tok=2),
    "qwen4_exp_text": dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=4,
                           indexer_compress_ratio=2),
    "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one model type.

    Attributes:
        outcome: ``controlled``, ``refused``, ``not built``, or ``misread`` (which is a bug of Pointsman).
        reason: Why, if it is not controlled. One line.
        own: Whether the refusal is one of Pointsman's own errors.
        guided: Correlation of estimated and exact gains under damped experts, and as they are; or why not.
    """

    type: str
    outcome: str
    reason: str = ""
    routers: int = 0
    experts: int = 0
    top_k: int = 0
    groups: str = ""
    own: bool = True
    guided: str = ""


def types() -> list[str]:
    """Every causal-LM type whose model code declares router logits, or whose configuration speaks of experts."""
    return [name for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if _speaks_of_experts(name)]


def _speaks_of_experts(name: str) -> bool:
    config = CONFIG_MAPPING[name]
    parts = [config, *(c for c in getattr(config, "sub_configs", {}).values() if dataclasses.is_dataclass(c))]
    if any("expert" in field.name for part in parts for field in dataclasses.fields(part)):
        return True
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[config].__module__]
    return any(
        "router_logits" in (getattr(value, "_can_record_outputs", None) or {})
        for value in vars(module).values()
        if isinstance(value, type)
    )


def small(name: str) -> Any:
    """A small configuration of this type."""
    return _shrink(CONFIG_MAPPING[name])


def _shrink(cls: Any) -> Any:
    fields = {field.name for field in dataclasses.fields(cls)}
    known = fields | set(getattr(cls, "attribute_map", {}))
    values = {k: v for k, v in _SMALL.items() if k in (fields if isinstance(v, list) else known)}
    if "kv_lora_rank" in known and "num_key_value_heads" in known:
        values["num_key_value_heads"] = _SMALL["num_attention_heads"]
    values |= _ALSO.get(cls.model_type, {})
    for key, part in getattr(cls, "sub_configs", {}).items():
        if key not in values and dataclasses.is_dataclass(part):
            values[key] = _shrink(part)
    return cls(**values)


def build(name: str, seed: int = 0) -> Any:
    """A small random model of this type, float32, with router biases that are not zero."""
    torch.manual_seed(seed)
    config = small(name)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size / 1e6:.0f} M parameters from its smallest configuration that we know")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.dim() > 1 or key.endswith("bias"):
                tensor.normal_(0.0, 0.2)
        for key, tensor in model.named_buffers():
            if tensor.is_floating_point() and key.endswith(("bias", "biases")):
                tensor.normal_(0.0, 0.2)
    return model


def examine(name: str) -> Row:
    """Build, prove, check; never raises."""
    try:
        with _limit(SECONDS):
            model = build(name)
    except Exception as error:
        return Row(name, "not built", _line(error))
    try:
        with _limit(SECONDS):
            routers = find_routers(model)
            prove(model)
            problem = check(model, routers)
            guided, wrong = guide(model)
    except PointsmanError as error:
        return Row(name, "refused", f"{type(error).__name__}: {error.problem}")
    except Exception as error:
        return Row(name, "refused", _line(error), own=False)
    experts, top_k = routers[0].experts, routers[0].top_k
    groups = f"{routers[0].groups_used} of {routers[0].groups}" if routers[0].groups > 1 else ""
    problem = problem or wrong
    outcome = "misread" if problem else "controlled"
    return Row(name, outcome, problem, len(routers), experts, top_k, groups, guided=guided)


def check(model: Any, routers: tuple[Router, ...]) -> str:
    """Idle identity, forced sets by row, and a wider mask; empty if all hold, else what does not."""
    ids = (torch.arange(14).reshape(2, 7) * 5 + 3) % 61 + 3
    plain = _logits(model, ids)
    with control(model, trace=True):
        if not torch.equal(_logits(model, ids), plain):
            return "doing nothing changes the logits"
    rng = np.random.default_rng(1)
    one, two, more = ({r.layer: r.draw(rng, 1)[0].tolist() for r in routers} for _ in range(3))
    wide = {layer: sorted({*one[layer], *more[layer]}) for layer in one}
    for what, routing, allowed in (
        ("forced to", [Intervention.force(one), Intervention.force(two)], (one, two)),
        ("masked to", [Intervention.mask(wide), Intervention.force(two)], (wide, two)),
    ):
        with control(model, routing):
            used = experts_that_count(model, routers, lambda: _logits(model, ids))
        for router, table in zip(routers, used, strict=True):
            visible = {e for e, parts in enumerate(weights_of_experts(model, router)) if parts}
            for token, row in enumerate(table.tolist()):
                mine = {e for e, counts in enumerate(row) if counts}
                inside = set(allowed[token // ids.shape[1]][router.layer])
                exact = len(inside) == router.top_k
                if (exact and mine != inside & visible) or not mine <= inside or len(mine) > router.top_k:
                    return f"{router.path} was {what} {sorted(inside)} and uses {sorted(mine)}"
    return ""


def guide(model: Any) -> tuple[str, str]:
    """How well a route gradient orders forced sets, or why there is none; and what is wrong with it, empty if nothing.

    The model is in float64 afterwards, or in float32 if it cannot compute in that, and its experts are damped.
    """
    model.set_experts_implementation("eager")  # the grouped kernel knows no float64
    try:
        try:
            engine = engine_of(model.double())
            drawn = draw(engine)
        except (BadLogits, RuntimeError):  # a mask as low as float64 goes, in a softmax of float32; weights made anew
            engine = engine_of(model.float())
            drawn = draw(engine)
    except ModelError as error:
        return f"refused: {'no gradient' if 'no gradient' in error.problem else 'its weights'}", ""
    exact = slopes(engine, drawn)
    right = np.abs(drawn.estimated - exact) <= 1e-2 * np.abs(exact).max()
    if right.mean() < 0.95:
        return "", f"{np.count_nonzero(~right)} of {len(right)} estimated gains are not the derivative"
    plain = agreement(drawn.estimated, gains(engine, drawn))
    damp(engine)
    damped = draw(engine)
    return f"{agreement(damped.estimated, gains(engine, damped)):.2f}, {plain:.2f}", ""


def damp(engine: HFEngine) -> None:
    """Let all experts say less."""
    for router in engine.routers:
        for parts in weights_of_experts(engine.model, router):
            for part in parts:
                part *= DAMPED


def alike(one: str, other: str) -> bool:
    """Whether two pages, or lines of them, say the same, but for the last digits of correlations."""

    def parts(text: str) -> tuple[str, list[float]]:
        found = [float(number) for pair in _PAIR.findall(text) for number in pair]
        return _PAIR.sub("", text), found

    (words, numbers), (others, theirs) = parts(one), parts(other)
    return words == others and all(abs(a - b) <= NEAR for a, b in zip(numbers, theirs, strict=True))


def page(rows: Sequence[Row]) -> str:
    """The generated part of docs/models.md."""
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in _OUTCOMES}
    lines = [
        f"transformers {transformers.__version__}: "
        + ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n or outcome != "misread")
        + ".",
        "",
        "| type | routers | experts | top-k | groups | guided | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape = (row.routers, row.experts, row.top_k, row.groups or "-", row.guided) if row.routers else ("",) * 5
        outcome = row.outcome + (f": {row.reason}" if row.reason else "")
        lines.append(f"| {row.type} | {' | '.join(map(str, shape))} | {outcome.replace('|', '/')} |")
    return "\n".join(lines)


def written() -> tuple[str, str]:
    """The transformers version and the generated part that docs/models.md holds now."""
    body = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    return body.removeprefix("transformers ").partition(":")[0], body


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="only show these")
    parser.add_argument("--check", action="store_true", help="fail if docs/models.md is stale")
    options = parser.parse_args()
    quiet()
    if options.check and written()[0] != transformers.__version__:
        print(f"{PAGE.name} is of transformers {written()[0]}, and {transformers.__version__} is installed: no check")
        return 0
    rows = []
    for name in options.types or types():
        rows.append(examine(name))
        print(f"{name}: {rows[-1].outcome} {rows[-1].reason}".rstrip(), file=sys.stderr, flush=True)
    if options.types:
        print(page(rows))
        return int(any(row.outcome == "misread" for row in rows))
    if options.check:
        if alike(page(rows), written()[1]):
            return 0
        print("docs/models.md is stale: run `python scripts/families.py`", file=sys.stderr)
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{page(rows)}\n{END}{after}", encoding="utf-8")
    return int(any(row.outcome == "misread" for row in rows))


def quiet() -> None:
    """One thread, and no advice from transformers about kernels that are not installed."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return result


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Stop after this much processor time, so that a busy machine changes no outcome."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


if __name__ == "__main__":
    sys.exit(main())
