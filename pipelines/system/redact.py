"""What is shown of a log without what is secret in it: keys, tokens, passwords."""

from __future__ import annotations

import re

HIDDEN = "[secret]"

_WORDS = r"""(?: api[_-]?key | access[_-]?key | [_-]key | password | passwd | passphrase | [_-]pwd | secret
    | (?:\b|[_-])token )"""

_NAMED = re.compile(rf"""(?ix) \b ( [\w-]* {_WORDS} \b ["']? \s* [:=] \s* \[? ["']? ) [^\s"',}}\]]{{6,}}""")
"""`api_key=...`, `"HF_TOKEN": "..."`, `'api_key': ['...']`; what has fewer than six characters is no secret of ours."""

_OPTION = re.compile(rf"""(?ix) ( --[\w-]* {_WORDS} ["']? ,? [ \t]+ ["']? ) (?!--) [^\s"',}}\]]{{6,}}""")
"""`--api-key ...`, and the same in a list of arguments."""

_CREDENTIALS = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_SHAPED = re.compile(
    r"\b(vlmops-[\w-]{40,}|hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w.-]{16,}|xox[a-z]-[\w-]{10,}|AKIA[A-Z0-9]{12,})"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def redacted(text: str) -> str:
    """The text with every secret in it replaced."""
    for pattern, shown in (
        (_CREDENTIALS, rf"\1 {HIDDEN}"),
        (_NAMED, rf"\1{HIDDEN}"),
        (_OPTION, rf"\1{HIDDEN}"),
        (_SHAPED, HIDDEN),
        (_IN_ADDRESS, HIDDEN),
    ):
        text = pattern.sub(shown, text)
    return text
