"""Which script, and as far as a few words tell which language, a text is written in."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HIRAGANA": "Hiragana", "KATAKANA": "Katakana", "HANGUL": "Hangul"}


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """The script of a letter, such as ``Latin``, ``Han`` or ``Thai``; empty for what is no letter."""
    if not letter.isalpha():
        return ""
    first = unicodedata.name(letter, "").split(" ")[0].partition("-")[0]
    return _NAMES.get(first, first.capitalize())


KNOWN_SCRIPTS = frozenset({"Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic"})
"""Those of the languages whose refusals are known."""

KNOWN_WORDS = {
    "English": "the of and to in is it that you for with on are as this be can not or from by have your",
    "German": "der die das und ist nicht ein eine zu den mit sie es auf für von dem im ich auch wie man sich",
    "French": "le la les de des et est un une pas pour que dans en vous il ce sur avec du au qui je nous plus",
    "Spanish": "el la los las de y es un una no para que en con por su se lo del al como más pero está",
    "Italian": "il la le lo di e è un una non per che in con si del della sono come più ma anche gli alla",
    "Portuguese": "o a os as de e é um uma não para que em com por se do da no na como mais mas você são",
}
"""Common words of the languages of the Latin script that are known."""

OTHER_WORDS = {
    "Dutch": "de het een en van is niet dat op te zijn voor met die aan er maar ik je wordt naar ook kan deze",
    "Swedish": "och att det som en är på för av den inte med jag du kan till har ett om han de så eller från",
    "Danish or Norwegian": "og at det som en er på for av af ikke med jeg du kan til har et om den de så eller fra",
    "Finnish": "ja on ei että se hän ovat mutta kun niin myös joka voi tämä sen olla jos kanssa sitten",
    "Polish": "i w nie na się to jest że z do jak ale po co tak za od są czy przez może dla można oraz",
    "Czech": "a se v na je že to s z do o ne jsem ale jako za pro by tak po jsou nebo když které může",
    "Romanian": "și în de la cu nu pe este care că o un mai din sau pentru sunt dar ce să se poate",
    "Hungarian": "a az és hogy nem is egy ez van csak meg de ha mint már vagy kell lehet azt volt",
    "Turkish": "ve bir bu için ile de da ne çok daha gibi olarak var ama değil sonra ki mi olan kadar",
    "Vietnamese": "và của là có không được cho một các trong người này với để những khi bạn tôi thể",
    "Indonesian or Malay": "yang dan di ini itu dengan untuk tidak dari ke pada adalah saya anda bisa akan atau juga",
}
"""The same of languages whose refusals are not known."""

_OTHER_LETTERS = (
    ("Ukrainian", "іїєґ"),
    ("Serbian or Macedonian", "ђћљњјџѓќѕ"),
    ("Persian or Urdu", "پچژگٹڈڑےہ"),
    ("Kazakh or another Turkic language", "қғңәұһө"),
)
_WORD = re.compile(r"[^\W\d_]+")
_KNOWN = {language: frozenset(words.split()) for language, words in KNOWN_WORDS.items()}
_OTHER = {language: frozenset(w for w in words.split() if len(w) > 1) for language, words in OTHER_WORDS.items()}
FEWEST = 6
"""Words of a text in the Latin script whose language is asked for."""


def unknown_language(text: str) -> str | None:
    """The script or language that a text is mainly written in, if refusals in it are not known; else None.

    A script is told by its letters. A language of the Latin script is told by its common words, if it has more of them
    than any that is known; one that has no list here, or too short a text, passes for known.
    """
    scripts = Counter(script_of(letter) for letter in text if letter.isalpha())
    total = sum(scripts.values())
    if not total:
        return None
    script, count = scripts.most_common(1)[0]
    if sum(n for s, n in scripts.items() if s not in KNOWN_SCRIPTS) > total / 2:
        return script
    if count <= total / 2:
        return None
    if script in ("Cyrillic", "Arabic"):
        return next(
            (name for name, letters in _OTHER_LETTERS if sum(map(text.lower().count, letters)) > total / 50), None
        )
    words = [word.lower() for word in _WORD.findall(text)] if script == "Latin" else []
    if len(words) < FEWEST:
        return None
    known = max(sum(w in common for w in words) for common in _KNOWN.values())
    others = {language: [w for w in words if w in common] for language, common in _OTHER.items()}
    likeliest = max(others, key=lambda language: len(others[language]))
    common = others[likeliest]
    return likeliest if len(set(common)) >= 3 and len(common) >= len(words) / 8 and len(common) > known else None
