"""Text without what does not matter: forms of characters, case, punctuation, white space."""

from __future__ import annotations

import json
import unicodedata


def plain(text: str) -> str:
    """The text in Unicode's form NFKC, case folded, punctuation and white space as single spaces, none at the ends.

    Punctuation is what Unicode calls so: dots, dashes, quotes, brackets and the like, not `+`, `$` or `<`. A text of
    nothing else is left as it is, so that `?` is not `!`.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = "".join(" " if unicodedata.category(character).startswith("P") else character for character in folded)
    return " ".join(spaced.split()) or folded.strip()


def accepted(expected: str) -> tuple[str, ...]:
    """The answers that are right: the text itself, or each one of a JSON list of texts."""
    if not expected.lstrip().startswith("["):
        return (expected,)
    try:
        texts = json.loads(expected)
    except ValueError:
        return (expected,)
    return tuple(texts) if texts and all(isinstance(text, str) for text in texts) else (expected,)
