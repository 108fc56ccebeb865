"""Bytes that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssfl.core.reading import WireError


def refusal(read: Callable[[], object]) -> str:
    """The one line with which a reader refuses."""
    with pytest.raises(WireError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)
