"""What is shown of a log without what is secret in it: keys, tokens, passwords."""

from __future__ import annotations

import re

HIDDEN = "[secret]"

_NAMED = re.compile(
    r"""(?ix) \b ( [\w-]* (?: api[_-]?key | access[_-]?key | [_-]key | password | secret | (?:\b|[_-])token ) \b
    ["']? \s* [:=] \s* ["']? ) [^\s"',}]{6,}"""
)
"""`api_key=...`, `"HF_TOKEN": "..."`; what has fewer than six characters is no secret of ours."""

_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_SHAPED = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|ghp_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,})")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def redacted(text: str) -> str:
    """The text with every secret in it replaced."""
    for pattern, shown in (
        (_CREDENTIALS, rf"\1 {HIDDEN}"),
        (_NAMED, rf"\1{HIDDEN}"),
        (_SHAPED, HIDDEN),
        (_IN_ADDRESS, HIDDEN),
    ):
        text = pattern.sub(shown, text)
    return text
