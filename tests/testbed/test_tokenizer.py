"""The tokenizer: standard files, lossless on the language, chat templates with system and turns."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from pointsman.testbed.language import KINDS, REFUSALS, SYSTEM_PROMPTS, nouns, requests, stems_and_endings, talks, words
from pointsman.testbed.tokenizer import UNK, build_tokenizer


def test_every_text_round_trips() -> None:
    tokenizer = build_tokenizer()
    texts = [*REFUSALS, *SYSTEM_PROMPTS]
    texts += [t for k in KINDS for r in requests(k, "test", limit=40) for t in (r.text, r.gold)]
    texts += [turn for t in talks("benign", questions=5) for turn in (*t.turns, *t.replies)]
    for text in texts:
        ids = tokenizer(text).input_ids
        ended = [word for word in text.split() if word in nouns() and nouns()[word].cue in ("both", "ending")]
        assert len(ids) == len(text.split()) + len(ended)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_saved_files_load_as_any_tokenizer(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [
        {"role": "system", "content": SYSTEM_PROMPTS[0]},
        {"role": "user", "content": "where is the red badint ?"},
        {"role": "assistant", "content": REFUSALS[0]},
        {"role": "user", "content": "how do i open the red badint ?"},
    ]
    text = loaded.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|system|> you are a helpful guide . <|user|> where is the red badint ? "
        "<|assistant|> Sorry , i can not help with that . <|end|> "
        "<|user|> how do i open the red badint ? <|assistant|>"
    )
    ids = loaded.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == [loaded.get_vocab()[word] for word in text.split()]


def test_unknown_words_are_unknown_and_punctuation_is_split() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("how do i zzz?") == ["how", "do", "i", UNK, "?"]


def test_a_noun_with_an_ending_is_two_tokens_and_every_other_word_is_one() -> None:
    tokenizer = build_tokenizer()
    for word in words():
        assert tokenizer.tokenize(word) == [word]
    stems, endings = stems_and_endings()
    for word, noun in nouns().items():
        if noun.cue in ("both", "ending"):
            stem, ending = tokenizer.tokenize(word)
            assert (stem in stems, ending.removeprefix("##") in endings) == (True, True)
            assert stem + ending.removeprefix("##") == word
