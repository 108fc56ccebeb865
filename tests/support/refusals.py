"""Bytes that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ssfl.core.reading import WireError
from ssfl.errors import UserError


def refusal(read: Callable[[], object], kind: type[UserError] = WireError) -> str:
    """The one line with which a reader refuses."""
    with pytest.raises(kind) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)
