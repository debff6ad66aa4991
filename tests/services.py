"""Programs beyond Python packages that tests need: a test is left out where one is missing, unless CI wants it."""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

Found = TypeVar("Found")


def require(found: Found | None, missing: str) -> Found:
    """What was found; without it the test is left out, or fails where VLMOPS_REQUIRE_SERVICES is 1.

    Args:
        missing: What is not there, and where it is had.
    """
    if found:
        return found
    if os.environ.get("VLMOPS_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{missing}, and VLMOPS_REQUIRE_SERVICES=1 wants it")
    pytest.skip(missing)
