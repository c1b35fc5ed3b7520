"""Tiny judge models: checkpoints that answer by the words in their prompt, so that a test knows what they must say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNK, END, BEGIN = "<|pad|>", "<|unk|>", "<|im_end|>", "<|im_start|>"
WORDS = "how do i make the cake with sugar first take almonds and mix them sorry cannot help you because it is not safe"
LLAMA_SHAPE = (
    " <|im_start|>Task: is unsafe content in '{{ 'ofAgent' if messages | length % 2 == 0 else 'ofUser' }}' messages?"
    "<BEGIN CONVERSATION>"
    "{% for m in messages %}{{ 'User' if loop.index % 2 == 1 else 'Agent' }}: {{ m['content'] | trim }}{% endfor %}"
    "<END CONVERSATION> First line must read 'safe' or 'unsafe'.<|im_end|><|im_start|>assistant"
)
"""Of Llama Guard 3-8B in shape, not in text: roles by parity, contents trimmed."""
LLAMA_PARTS = LLAMA_SHAPE.replace(
    "{{ m['content'] | trim }}",
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}",
)
"""Of Llama Guard 3-1B and 4: contents are lists, and a string renders as nothing."""
QWEN_SHAPE = (
    "<|im_start|>user # Task: evaluate THE LAST ASSISTANT's response <BEGIN CONVERSATION> "
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }} {% endfor %}<END CONVERSATION> "
    "The first line must be one of: 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.<|im_end|>"
    "<|im_start|>assistant <think> </think>"
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def tokenizer_of(words: Sequence[str], template: str | None) -> PreTrainedTokenizerFast:
    """One word, one token; what a model says is one token as well, whatever stands in it."""
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys((PAD, UNK, END, BEGIN, *words)))}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, unk_token=UNK, eos_token=END, additional_special_tokens=[BEGIN],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def save_judge(folder: Path, says: Mapping[str, str], template: str | None = None) -> Path:
    """Write a checkpoint that says what belongs to the rarest word of its prompt, and then ends.

    All tokens are attended to alike. Padding would count as a word, if it were seen.

    Args:
        says: What it says where a word stands in the prompt; "" is what it says else. Later words outweigh earlier.
    """
    triggers, default = [word for word in says if word], says[""]
    replies = list(dict.fromkeys(says.values()))
    tokenizer = tokenizer_of([*WORDS.split(), *triggers, *replies], template)
    size, extra = len(tokenizer), 2 + len(replies) + len(triggers) + 1
    width = size + extra + (size + extra) % 2
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=width, max_position_embeddings=4096, eos_token_id=2, pad_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    always, replied, evidence = size, size + 1, size + 2
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        embeddings, attention, head = (
            model.model.embed_tokens.weight,
            model.model.layers[0].self_attn,
            model.lm_head.weight,
        )
        embeddings[:, :size] = torch.eye(size)
        embeddings[:, always] = 1.0
        attention.v_proj.weight[:] = torch.eye(width)
        head[tokenizer.convert_tokens_to_ids(default), always] = 1.0
        for place, word in enumerate([PAD, *triggers]):
            token = tokenizer.convert_tokens_to_ids(word)
            attention.o_proj.weight[evidence + place, token] = 1.0
            said = tokenizer.convert_tokens_to_ids(says[word]) if word in says else tokenizer.unk_token_id
            head[said, evidence + place] = 1e5 * 10.0**place if word in says else 1e9
        for reply in replies:
            embeddings[tokenizer.convert_tokens_to_ids(reply), replied] = 1.0
        head[tokenizer.eos_token_id, replied] = 1e20
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_random(folder: Path) -> Path:
    """Write a checkpoint that attends by content and position, and says anything."""
    tokenizer = tokenizer_of(WORDS.split(), CHAT)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
