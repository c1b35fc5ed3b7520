"""A tokenizer for the testbed's language, in the standard files every tool reads.

One word is one token, but for nouns with an ending, which are two: a stem and the ending that they share with others.
Chat turns cost one token each (``<|user|>`` ...), and an assistant's turn ends with ``<|end|>``.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pointsman.testbed.language import stems_and_endings, words

PAD, UNK, END = "<|pad|>", "<|unk|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, UNK, END, SYSTEM, USER, ASSISTANT)

_CONTINUED = "##"  # before an ending in the vocabulary

CONTEXT = 256
"""Longest sequence the shipped models are configured for, in tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|> {{ message['content'] }} "
    "{% elif message['role'] == 'user' %}<|user|> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<|assistant|> {{ message['content'] }} <|end|> "
    "{% else %}{{ raise_exception('unknown role: ' ~ message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The testbed's tokenizer.  It splits on spaces and around punctuation and knows no casing."""
    stems, endings = stems_and_endings()
    tokens = (*SPECIAL_TOKENS, *words(), *stems, *(f"{_CONTINUED}{ending}" for ending in endings))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=UNK, continuing_subword_prefix=_CONTINUED))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix=_CONTINUED, cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
