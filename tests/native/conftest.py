"""Every kernel test runs once for each instruction set of this processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ssfl.native.library import usable, using


@pytest.fixture(params=usable(), autouse=True, scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set whose kernels are used."""
    with using(request.param):
        yield request.param
