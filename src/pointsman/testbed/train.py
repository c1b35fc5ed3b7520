"""Train a testbed model: pretrain it to answer everything, then tune it to refuse.

One seed gives one model.  Every random draw is a pure function of (seed, phase, step), so a
training that was killed continues from its last saved state to the identical result; the state is
plain tensors and numbers, loaded without unpickling objects.  Across machines and thread counts
floating-point sums differ, and with them the last digits of the weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from pointsman.errors import RunError, UsageError
from pointsman.testbed.examples import Examples
from pointsman.testbed.models import FAMILIES, hash_files
from pointsman.testbed.recipe import RECENT, RECIPE_VERSION, RECIPES, Phase, Recipe, build_model
from pointsman.testbed.tokenizer import build_tokenizer

STATE_FILE = "training-state.pt"
_BIAS = "e_score_correction_bias"
CARD_FILE = "testbed.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is.  ``step`` counts over all phases; ``eta`` is in seconds."""

    phase: str
    step: int
    steps: int
    loss: float
    eta: float


def train(
    family: str,
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    save_every: int = 25,
) -> Path:
    """Train one model and save it, with its tokenizer, as a standard transformers folder.

    Args:
        family: one of ``FAMILIES``.
        out: folder to write; if it holds an unfinished training of the same kind, that continues.
        seed: decides initial weights, data and perturbations.
        recipe: other than the shipped one, for experiments.
        on_progress: called after every step.
        save_every: steps between saved states.

    Returns:
        ``out``, complete.

    Raises:
        UsageError: unknown family.
        RunError: ``out`` cannot be written, is complete already, or holds another training or something else.
    """
    if family not in FAMILIES:
        raise UsageError(f"Unknown testbed family {family!r}", f"Choose from: {', '.join(FAMILIES)}")
    recipe = recipe or RECIPES[family]
    try:
        if (out / CARD_FILE).exists():
            raise RunError(f"{out} already holds a trained model", "Choose another folder")
        _refuse_used(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Cannot write {out} ({error.strerror})", "Choose another folder") from error
    training = _Training(family, out, seed, recipe)
    training.run(on_progress, save_every)
    training.finish()
    return out


def _refuse_used(out: Path) -> None:
    """Raise if a folder holds something and no unfinished training."""
    if not out.is_dir() or (out / STATE_FILE).exists():
        return
    others = sorted(path.name for path in out.iterdir() if path.name != f"{STATE_FILE}.part")
    if others:
        raise RunError(
            f"{out} is not empty and holds no unfinished training (it has {others[0]})", "Choose another folder"
        )


class _Training:
    """Model, optimizer and position of one training."""

    def __init__(self, family: str, out: Path, seed: int, recipe: Recipe) -> None:
        self.family, self.out, self.seed, self.recipe = family, out, seed, recipe
        self.tokenizer = build_tokenizer()
        self.examples = Examples(self.tokenizer, recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build_model(family, recipe, len(self.tokenizer)).train()
        self.balance = LoadBalance(self.model, recipe.bias_step)
        self.phase_index = 0
        self.step = 0  # within the phase
        self.recent: list[float] = []  # training losses of the last steps
        self.optimizer = self._new_optimizer()
        self._load()

    @property
    def identity(self) -> str:
        """What must agree for a saved state to be continued."""
        choices = dataclasses.asdict(self.recipe)
        return json.dumps([RECIPE_VERSION, self.family, self.seed, choices], sort_keys=True)

    def run(self, on_progress: Callable[[Progress], None] | None, save_every: int) -> None:
        phases = self.recipe.phases
        total = sum(phase.steps for phase in phases)
        began, begun_at = time.monotonic(), self._done()
        while self.phase_index < len(phases):
            phase = phases[self.phase_index]
            while self.step < phase.steps and not self._needless(phase):
                loss = self._one_step(phase)
                self.step += 1
                self.recent = [*self.recent, loss][-RECENT:]
                done = self._done()
                if on_progress:
                    pace = (time.monotonic() - began) / (done - begun_at)
                    on_progress(Progress(phase.name, done, total, loss, pace * (total - done)))
                if done % save_every == 0 and self.step < phase.steps:
                    self._save()
            self.phase_index, self.step = self.phase_index + 1, 0
            if self.phase_index < len(phases):
                self.optimizer = self._new_optimizer()
            self._save()

    def finish(self) -> None:
        """Write the model in the standard format and drop the training state."""
        made = self.out / ".unfinished"
        shutil.rmtree(made, ignore_errors=True)
        self.model.eval()
        self.model.save_pretrained(made, state_dict=_rounded(self.model))
        self.tokenizer.save_pretrained(made)
        card = {
            "family": self.family,
            "seed": self.seed,
            "recipe_version": RECIPE_VERSION,
            "recipe": dataclasses.asdict(self.recipe),
            "sha256": hash_files(made),
        }
        for path in made.iterdir():
            path.replace(self.out / path.name)
        made.rmdir()
        _write_atomically(self.out / CARD_FILE, (json.dumps(card, indent=2) + "\n").encode())
        (self.out / STATE_FILE).unlink(missing_ok=True)

    def _needless(self, phase: Phase) -> bool:
        """Whether a phase that only some seeds need can be skipped: decided once, before its first step."""
        return self.step == 0 and sum(self.recent) < phase.only_above * len(self.recent)

    def _one_step(self, phase: Phase) -> float:
        rng = random.Random(f"{self.seed}:{phase.name}:{self.step}")
        ids, weights = self.examples.batch(rng, phase, self.step / phase.steps)
        with self.balance.counting():
            out = self.model(input_ids=ids, use_cache=False, output_router_logits=bool(self.recipe.aux))
        loss = _weighted_loss(out.logits, ids, weights)
        balanced = loss + self.recipe.aux * out.aux_loss if self.recipe.aux else loss
        for group in self.optimizer.param_groups:
            group["lr"] = phase.lr_at(self.step)
        self.optimizer.zero_grad()
        balanced.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.balance.step()
        return float(loss.detach())

    def _new_optimizer(self) -> torch.optim.Optimizer:
        phase = self.recipe.phases[self.phase_index]
        return torch.optim.AdamW(self.model.parameters(), lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.01)

    def _done(self) -> int:
        return self.step + sum(p.steps for p in self.recipe.phases[: self.phase_index])

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "phase_index": self.phase_index,
            "step": self.step,
            "recent": self.recent,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        part = self.out / f"{STATE_FILE}.part"
        torch.save(state, part)
        part.replace(self.out / STATE_FILE)

    def _load(self) -> None:
        path = self.out / STATE_FILE
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # whatever unpickling meets; nothing but tensors and numbers is made of it
            raise RunError(f"{path} is damaged", "Choose another folder, or delete it to begin anew") from error
        if identity != self.identity:
            raise RunError(
                f"{self.out} holds another training (family, seed or recipe differ)",
                "Choose another folder, or delete it",
            )
        self.phase_index, self.step, self.recent = state["phase_index"], state["step"], state["recent"]
        self.model.load_state_dict(state["model"])
        if self.phase_index < len(self.recipe.phases):
            self.optimizer = self._new_optimizer()
            self.optimizer.load_state_dict(state["optimizer"])


class LoadBalance:
    """Moves the correction biases of selection towards an even load of the experts, as DeepSeek-V3 is trained.

    After every step the bias of an expert with less than its share of the tokens rises by a constant, and that of the
    others falls (arXiv 2412.19437, section 2.1.2). Models without such biases have nothing to move.
    """

    def __init__(self, model: PreTrainedModel, step: float) -> None:
        self._step = step
        self._loads: dict[Any, Tensor] = {}
        self._blocks = [m for m in model.modules() if step and hasattr(getattr(m, "gate", None), _BIAS)]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count how many tokens each expert gets."""
        self._loads.clear()
        hooks = [block.experts.register_forward_pre_hook(self._count(block)) for block in self._blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def step(self) -> None:
        """Move the biases by the load that was counted."""
        for block, load in self._loads.items():
            bias = getattr(block.gate, _BIAS)
            bias.data.add_(self._step * torch.sign(load.mean() - load))

    def _count(self, block: Any) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            chosen = args[1].flatten()
            self._loads[block] = torch.bincount(chosen, minlength=len(getattr(block.gate, _BIAS))).float()

        return hook


def _rounded(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights as they ship: rounded to bfloat16, half the bytes. They are loaded, and computed with, in float32.

    Biases of selection stay as they are: their steps are smaller than such rounding.
    """
    state = model.state_dict()
    return {name: value if name.endswith(_BIAS) else value.to(torch.bfloat16) for name, value in state.items()}


def _weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss under the tokens' weights; ``logits`` is [rows, tokens, vocabulary]."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def digest(folder: Path) -> str:
    """One SHA-256 over a checkpoint's weights: two trainings agree if and only if these do."""
    weights = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
