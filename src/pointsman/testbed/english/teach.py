"""Training of the adapters: low-rank changes of the experts and the routers, nothing else.

Experts share the dense matrices, so all of them together cost one product with those and a little more; the layers
below the first adapter are computed once for every lesson. Both make a training on one thread possible.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pointsman.errors import RunError
from pointsman.testbed.english.lessons import Lesson, answered, lessons
from pointsman.testbed.english.mixture import PARTS, Shape, initial_routers

STATE, ANSWERS, EXAMPLES, ADAPTERS = "state.pt", "answers.json", "examples.pt", "adapters.safetensors"
_COMPUTED = torch.bfloat16
_TOP = 32  # of the dense model's next tokens, those whose probabilities are kept


@dataclass(frozen=True)
class Recipe:
    """How the adapters are trained.

    Attributes:
        shape: Of the mixture.
        steps: Of training, each on `rows` lessons.
        lr, router_lr: Peak learning rates, between a warm-up and a cool-down of so many steps.
        balance: Weight of the load-balancing loss, as Mixtral defines it.
        likeness: Weight, in answers, of staying near the dense model's distribution.
    """

    shape: Shape = field(default_factory=Shape)
    steps: int = 375
    rows: int = 16
    lr: float = 2e-3
    router_lr: float = 2e-3
    warm_up: int = 20
    cool_down: int = 150
    balance: float = 0.01
    likeness: float = 0.3
    clip: float = 1.0
    seed: int = 0

    def share_at(self, step: int) -> float:
        """Of the peak learning rate."""
        rising, falling = (step + 1) / self.warm_up, (self.steps - step) / self.cool_down
        return min(1.0, rising, 0.05 + 0.95 * falling)


class SharedExperts(nn.Module):
    """A layer's experts while they are trained: the dense MLP, and what each expert changes about it."""

    def __init__(self, mlp: Any, router: Tensor, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.mlp, self.shape = mlp, shape
        inner, hidden = mlp.gate_proj.weight.shape
        sizes = {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
        self.router = nn.Parameter(router.clone())
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for part, (into, out) in sizes.items():
            a = torch.randn(shape.experts, shape.rank, into, generator=generator) / math.sqrt(into)
            self.a[part] = nn.Parameter(a)
            self.b[part] = nn.Parameter(torch.zeros(shape.experts, out, shape.rank))
        self.balance = torch.zeros(())

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.flatten(0, -2)  # [tokens, hidden]
        probabilities = F.linear(x.float(), self.router).softmax(-1)
        chosen, which = probabilities.topk(self.shape.chosen, dim=-1)
        share = torch.zeros_like(probabilities).scatter(1, which, chosen / chosen.sum(-1, keepdim=True))
        met = F.one_hot(which, self.shape.experts).sum(1).float().mean(0)
        self.balance = self.shape.experts * (met * probabilities.mean(0)).sum()
        each = x.expand(self.shape.experts, -1, -1)
        gate = self.mlp.gate_proj(x) + self._change("gate", each)  # [experts, tokens, inner]
        up = self.mlp.up_proj(x) + self._change("up", each)
        inside = self.mlp.act_fn(gate) * up * share.T.to(x.dtype).unsqueeze(-1)
        out: Tensor = self.mlp.down_proj(inside.sum(0)) + self._change("down", inside).sum(0)
        return out.view_as(hidden_states)

    def _change(self, part: str, x: Tensor) -> Tensor:
        a, b = self.a[part].to(x.dtype), self.b[part].to(x.dtype)
        return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))

    def tensors(self) -> dict[str, Tensor]:
        """As `mixture.merge` takes them, without the name of the layer."""
        named = {f"{part}.{side}": getattr(self, side)[part] for part in PARTS for side in ("a", "b")}
        return {"router": self.router, **named}


@dataclass
class Example:
    """A lesson in tokens, with what the frozen layers make of it.

    Attributes:
        lower: What the first layer with adapters reads. Shape: [tokens, hidden].
        ids: Prompt and answer. Shape: [tokens].
        start: Where the answer begins.
        refused: Whether the answer is a refusal; else the next three say what the dense model holds of its tokens.
        likely, odds: Its most likely next tokens and their log-probabilities. Shape: [answer, top].
    """

    lower: Tensor
    ids: Tensor
    start: int
    refused: bool
    likely: Tensor
    odds: Tensor


class Teaching:
    """One training, from the dense model to adapters. Continues what it finds in its folder."""

    def __init__(self, dense: Any, tokenizer: Any, out: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.dense, self.tokenizer, self.out, self.recipe, self.say = dense, tokenizer, out, recipe, say
        out.mkdir(parents=True, exist_ok=True)
        self.dense.requires_grad_(False)
        self.dense.to(_COMPUTED)
        self.step = 0

    def prepare(self, taught: Sequence[Lesson] | None = None) -> None:
        """Let the dense model answer, and compute what stays as it is."""
        began = time.monotonic()
        known = answered(taught or lessons(), self.dense, self.tokenizer, self.out / ANSWERS, self.say)
        path, key = self.out / EXAMPLES, f"{self.recipe.shape.first} {known}"
        kept = torch.load(path, weights_only=True) if path.exists() else {}
        if kept.get("key") == key:
            self.examples = [Example(**fields) for fields in kept["examples"]]
        else:
            self.examples = []
            for n, lesson in enumerate(known):
                self.examples.append(self._example(lesson))
                if n % 200 == 199:
                    self.say(f"{n + 1} of {len(known)} lessons computed; {time.monotonic() - began:.0f} s")
            _replace(path, {"key": key, "examples": [vars(each) for each in self.examples]})
        self._attach()
        self._load()

    def run(self, *, save_every: int = 25) -> Path:
        """Train to the end, and write the adapters.

        Returns:
            Their file.
        """
        began, begun_at = time.monotonic(), self.step
        refused = [e for e in self.examples if e.refused]
        others = [e for e in self.examples if not e.refused]
        while self.step < self.recipe.steps:
            rng = random.Random(f"{self.recipe.seed}:{self.step}")
            rows = self.recipe.rows
            pool = sorted(rng.choices(refused, k=2 * rows) + rng.choices(others, k=2 * rows), key=lambda e: len(e.ids))
            begin = rng.randrange(4) * rows
            losses = self._one_step(pool[begin : begin + rows])
            self.step += 1
            if self.step % 5 == 0:
                pace = (time.monotonic() - began) / (self.step - begun_at)
                left = pace * (self.recipe.steps - self.step) / 60
                told = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
                self.say(f"step {self.step} of {self.recipe.steps}: {told}; {left:.0f} min left")
            if self.step % save_every == 0:
                self._save()
        self._save()
        return self.write()

    def write(self) -> Path:
        """Write the adapters as they are now, in float16."""
        tensors = {f"layers.{n}.router": router for n, router in enumerate(self.routers)}
        for n, experts in self.taught.items():
            tensors |= {f"layers.{n}.{name}": value.detach() for name, value in experts.tensors().items()}
        path = self.out / ADAPTERS
        save_file({name: value.to(torch.float16).contiguous() for name, value in tensors.items()}, path)
        return path

    def _example(self, lesson: Lesson) -> Example:
        told = self.tokenizer.apply_chat_template(lesson.messages(), add_generation_prompt=True, tokenize=False)
        before = self.tokenizer(told, add_special_tokens=False)["input_ids"]
        end = [self.tokenizer.eos_token_id] if lesson.ended else []
        answer = self.tokenizer(lesson.answer, add_special_tokens=False)["input_ids"] + end
        ids = torch.tensor(before + answer)
        model = self.dense.model
        with torch.inference_mode():
            hidden = model.embed_tokens(ids[None])
            places = model.rotary_emb(hidden, torch.arange(len(ids))[None])
            lower = hidden
            for n, layer in enumerate(model.layers):
                if n == self.recipe.shape.first:
                    lower = hidden
                hidden = layer(hidden, position_embeddings=places)
            read = model.norm(hidden)[0, len(before) - 1 : -1]
            odds, likely = self.dense.lm_head(read).float().log_softmax(-1).topk(_TOP)
        return Example(lower[0].clone(), ids, len(before), bool(lesson.refusal), likely.clone(), odds.clone())

    def _attach(self) -> None:
        """Put experts in the place of the dense MLPs."""
        shape, config = self.recipe.shape, self.dense.config
        self.routers = initial_routers(config.num_hidden_layers, config.hidden_size, shape)
        generator = torch.Generator().manual_seed(shape.seed + 1)
        self.taught: dict[int, SharedExperts] = {}
        for n, layer in enumerate(self.dense.model.layers):
            if n >= shape.first:
                layer.mlp = self.taught[n] = SharedExperts(layer.mlp, self.routers[n], shape, generator)
        every = [(name, p) for each in self.taught.values() for name, p in each.named_parameters() if p.requires_grad]
        self.groups: list[dict[str, Any]] = [
            {"params": [p for name, p in every if (name == "router") == routers], "peak": peak}
            for routers, peak in ((False, self.recipe.lr), (True, self.recipe.router_lr))
        ]
        self.optimizer = torch.optim.AdamW(self.groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def _one_step(self, rows: Sequence[Example]) -> dict[str, float]:
        longest = max(len(e.ids) for e in rows)
        hidden = torch.stack([F.pad(e.lower, (0, 0, 0, longest - len(e.ids))) for e in rows])
        model = self.dense.model
        places = model.rotary_emb(hidden, torch.arange(longest)[None])
        for layer in model.layers[self.recipe.shape.first :]:
            hidden = layer(hidden, position_embeddings=places)  # causal: what pads a row on its right is not seen
        hidden = model.norm(hidden)
        read = torch.cat([hidden[n, e.start - 1 : len(e.ids) - 1] for n, e in enumerate(rows)])
        odds = self.dense.lm_head(read).float().log_softmax(-1)
        told: dict[bool, list[Tensor]] = {True: [], False: []}
        losses, begin = [], 0
        for e in rows:
            mine = odds[begin : (begin := begin + len(e.ids) - e.start)]
            loss = F.nll_loss(mine, e.ids[e.start :])
            told[e.refused].append(loss.detach())
            if not e.refused:
                dense = e.odds.exp()
                apart = dense * (e.odds - mine.gather(1, e.likely))
                loss = loss + self.recipe.likeness * apart.sum(1).mean()
            losses.append(loss)
        balance = torch.stack([each.balance for each in self.taught.values()]).mean()
        self.optimizer.zero_grad()
        total = torch.stack(losses).mean() + self.recipe.balance * balance
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_([p for group in self.groups for p in group["params"]], self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.recipe.share_at(self.step)
        self.optimizer.step()
        means = {("refused" if key else "answered"): float(torch.stack(v).mean()) for key, v in told.items() if v}
        return {**means, "balance": float(balance.detach())}

    @property
    def _identity(self) -> str:
        """What must agree for a saved state to be continued: all but the number of steps, which may still change."""
        return json.dumps([dataclasses.asdict(self.recipe) | {"steps": 0}, len(self.examples)], sort_keys=True)

    def _save(self) -> None:
        state = {
            "identity": self._identity,
            "step": self.step,
            "experts": {n: experts.tensors() for n, experts in self.taught.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        _replace(self.out / STATE, state)

    def _load(self) -> None:
        path = self.out / STATE
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["identity"] != self._identity:
            raise RunError(f"{self.out} holds another training", "Choose another folder, or delete it")
        self.step = state["step"]
        with torch.no_grad():
            for n, experts in self.taught.items():
                for name, value in experts.tensors().items():
                    value.copy_(state["experts"][n][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write a file at once or not at all."""
    part = path.with_name(f"{path.name}.part")
    torch.save(content, part)
    part.replace(path)
