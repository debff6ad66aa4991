"""Golden answers of a running engine, for models that nobody trained: what it says now must come again."""

from __future__ import annotations

import httpx

from serving.golden import Golden
from serving.served import Served

QUESTIONS = ("Which digit is this?", "Which colour?", "question 1")
TOKENS = 4
SOMETHING = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "skip_special_tokens": False}
"""For traffic: an untrained model may end at once, and an answer must not be empty."""


def record_golden(url: str, version: Served) -> set[str]:
    """Ask an engine what it will be asked again, and return what it said."""
    lines, said = [], set()
    for question in QUESTIONS:
        messages = ({"role": "user", "content": [{"type": "text", "text": question}]},)
        body = {"model": version.name, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).raise_for_status().json()
        answer = reply["choices"][0]["message"]["content"]
        lines.append(Golden(item=question, messages=messages, max_tokens=TOKENS, answer=answer).model_dump_json())
        said.add(answer)
    version.golden.parent.mkdir(parents=True, exist_ok=True)
    version.golden.write_text("\n".join(lines) + "\n")
    return said
