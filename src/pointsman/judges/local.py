"""Judge models on this machine: loaded when first needed, from safetensors, without code of theirs; asked greedily.

What is judged is untrusted text inside a prompt. The strings of the tokenizer's special tokens are broken up in it, so
that an answer cannot end its own turn, and nothing is judged that the chat template left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from pointsman.errors import JudgeError
from pointsman.judges.endpoint import Reply, Usage

_SENTINEL = "\ue000judged\ue001"  # private-use characters: no template writes them itself


@lru_cache(maxsize=2)
def local_model(model: str, revision: str | None, device: str) -> LocalModel:
    """The model of a judge; the last two stay in memory.

    Raises:
        ModelError: As `pointsman.load`, but it need not have routers.
    """
    from pointsman.engine.load import Checkpoint, loading_options, resolve

    checkpoint = Checkpoint(resolve(model), model, {"revision": revision, "trust_remote_code": False})
    config = checkpoint.config()
    tokenizer = checkpoint.tokenizer()
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = checkpoint.template_of_a_processor()
    network, _ = checkpoint.network(config, loading_options("auto", device, None))
    network.eval()
    network.requires_grad_(False)
    return LocalModel(network, tokenizer, model)


class LocalModel:
    """A causal language model and its tokenizer. What a prompt gets does not depend on the prompts beside it."""

    def __init__(self, network: Any, tokenizer: Any, name: str) -> None:
        self.tokenizer = tokenizer
        self._network = network
        self._name = name
        ends = network.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends: list[int] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self._pad: int = next((i for i in (tokenizer.pad_token_id, *self._ends) if i is not None), 0)
        self._context = int(getattr(network.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)

    def inert(self, text: str) -> str:
        """Text in which no special token stands: a space is put into what would be one."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, holds: str, begins_answer: bool = False
    ) -> tuple[int, ...]:
        """Token ids of a conversation.

        Args:
            messages: With their roles; the contents are made inert.
            holds: What must stand in it: a template may drop what it is given, and nothing would be judged.
            begins_answer: Whether the template shall begin the model's answer. That of a guard does so anyway.

        Raises:
            JudgeError: There is no template, it refuses the conversation, or it leaves out what shall be judged.
        """
        inert = [{**message, "content": self.inert(message["content"])} for message in messages]
        text = self._render(inert, begins_answer, parts=self._wants_parts)
        if self.inert(holds).strip() not in text:
            raise self._left_out()
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def plain(self, text: str) -> tuple[int, ...]:
        """Token ids of text without a template, with the tokens that the tokenizer puts around it."""
        return tuple(self.tokenizer(text)["input_ids"])

    def clipped(self, text: str, tokens: int) -> str:
        """The beginning of a text, at most so many tokens."""
        text = self.inert(text)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= tokens else str(self.tokenizer.decode(ids[:tokens], skip_special_tokens=True))

    def say(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, whole: bool = True) -> Iterator[Reply]:
        """The most likely continuation of every prompt, in order.

        Args:
            prompts: Token ids. Shape: [B][tokens].
            max_new_tokens: At most.
            whole: A continuation that does not end counts as none.
        """
        from pointsman.engine.batching import in_batches, rows_that_fit

        longest = max(map(len, prompts), default=0) + max_new_tokens
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))  # little padding
        fitting = [n for n in order if len(prompts[n]) + max_new_tokens <= self._context]
        rows = rows_that_fit(self._network, longest)
        said = in_batches([prompts[n] for n in fitting], rows, lambda batch: self._continue(batch, max_new_tokens))
        found = dict(zip(fitting, said, strict=True))
        for n in range(len(prompts)):
            if n not in found:
                yield Reply(None, "the request is too long for the judge")
            elif whole and not found[n][1]:
                yield Reply(None, "the judge's reply was cut off: give more max_tokens")
            else:
                yield Reply(found[n][0], usage=Usage())

    def _continue(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[tuple[str, bool]]:
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        device = self._network.get_input_embeddings().weight.device
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        settings = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=max_new_tokens,
            eos_token_id=self._ends or None, pad_token_id=self._pad,
        )  # fmt: skip
        with torch.no_grad():
            output = self._network.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return [self._until_end(row) for row in output[:, width:].tolist()]

    def _until_end(self, row: list[int]) -> tuple[str, bool]:
        end = next((n for n, token in enumerate(row) if token in self._ends), len(row))
        return self.tokenizer.decode(row[:end], skip_special_tokens=True), end < len(row)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        strings = sorted({t for t in (*added, *self.tokenizer.all_special_tokens) if len(t) > 1}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, [*strings, "[INST]", "[/INST]"])))

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template reads contents as a list of parts; one that does renders text as nothing at all."""
        probe = [{"role": "user", "content": _SENTINEL}, {"role": "assistant", "content": _SENTINEL}]
        for parts in (False, True):
            try:
                if self._render(probe, False, parts=parts).count(_SENTINEL) == len(probe):
                    return parts
            except JudgeError:
                if parts:
                    raise
        raise self._left_out()

    def _render(self, messages: Sequence[Mapping[str, str]], begins_answer: bool, *, parts: bool) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise JudgeError(f"The tokenizer of {self._name} has no chat template", "Name a chat model with model=")
        given = [
            {**m, "content": [{"type": "text", "text": m["content"]}] if parts else m["content"]} for m in messages
        ]
        try:
            text: str = self.tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=begins_answer, enable_thinking=False
            )
        except Exception as error:  # a template is code of the checkpoint: it may raise anything
            raise JudgeError(
                f"The chat template of {self._name} refuses the conversation ({type(error).__name__})",
                "Name another model with model=",
            ) from None
        return text

    def _left_out(self) -> JudgeError:
        return JudgeError(
            f"The chat template of {self._name} leaves out what shall be judged, or changes it",
            "Name another model with model=, or mend its template",
        )
