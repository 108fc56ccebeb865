"""The way of a reply's bytes to the sum: whatever is accepted can be summed, whatever is not is refused in one line."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.core.payloads import MaskedValues, Payload
from ssfl.core.reading import WireError
from ssfl.wire.entropy import squeezed
from ssfl.wire.message import encode
from tests.wire.attacks import HEAD, LAYOUT, N, P, message, part
from tests.wire.replies import FORMS, KEPT, ON_MASK, OTHER_MASK, SUPPORT, multipart, open_reply, seeds

ALL_FORMS = range(len(FORMS))
ON_THE_MASK = [form for form in ALL_FORMS if FORMS[form][1] is ON_MASK]
REASONS = (
    "the payload says that it comes from client 1",
    "5 parts; at most 4 are accepted",
    "WireError: parts of 360 coordinates together",
    "part w is missing",
    "part 'w' was not asked for",
    f"part w: {N} values, expected {P}",
    "part w: dense values, expected values with their mask",
    "part w: values with their mask, expected dense values",
    f"part w: values on mask {OTHER_MASK.hex()}, expected on mask",
    "part w: a mask instead of values, expected dense values",
    "part w: coded values, for which this run has no codec",
    "part w: values of type torch.float16, expected torch.float32",
    "part w: values that are not finite",
)


def outcome(form: int, raw: bytes) -> str | None:
    try:
        return open_reply(form, raw)
    except WireError as error:
        return f"WireError: {error}"


def test_some_seeds_are_accepted() -> None:
    """The seeds reach every stage: each form sums at least one of them, and each reason of refusal is met."""
    found = {
        (name, form): outcome(form, multipart(raw)) for name, raw in seeds().items() for form in ALL_FORMS
    }
    accepted = {form for (_, form), reason in found.items() if reason is None}
    assert accepted == set(ALL_FORMS), found
    reasons = {reason for reason in found.values() if reason}
    assert {text for text in REASONS if not any(text in reason for reason in reasons)} == set()


@settings(max_examples=400)
@given(st.integers(0, 20), st.sampled_from(sorted(seeds())), st.binary(max_size=80), st.data())
def test_any_reply_is_refused_or_summed(form: int, seed: str, noise: bytes, data: st.DataObject) -> None:
    raw = bytearray(seeds()[seed])
    for byte in noise[:8]:
        raw[data.draw(st.integers(0, len(raw) - 1))] = byte
    reason = outcome(form, multipart(bytes(raw) + noise[8:]))
    assert reason is None or "\n" not in reason


@pytest.mark.parametrize("codec", range(1, 6))
def test_coordinates_that_refer_to_values_on_a_mask_are_refused(codec: int) -> None:
    """A coded sparse part with as many coordinates as the mask keeps."""
    bits = bytes([255] * (KEPT // 8) + [(1 << KEPT % 8) - 1])
    body = (
        ON_MASK.version
        + bytes(1)
        + struct.pack("<Q", len(bits))
        + bits
        + bytes(4)
        + squeezed(bytes(4 * KEPT))
    )
    raw = message(part(6, body, KEPT, codec), head=HEAD[:5] + b"\x01" + HEAD[6:8] + bytes(4) + HEAD[12:])
    for form in ON_THE_MASK:
        reason = outcome(form, raw)
        assert reason is not None, form
        assert "\n" not in reason


@pytest.mark.parametrize("count", [0, 1, 5, KEPT + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_values_of_another_length_or_type_are_refused_before_a_correction(
    count: int, dtype: torch.dtype
) -> None:
    values = Payload({"w": MaskedValues(torch.ones(count, dtype=dtype), SUPPORT.digest)}, 0)
    good = Payload({"w": MaskedValues(torch.ones(KEPT), SUPPORT.digest)}, 0)
    for form in ON_THE_MASK:
        assert outcome(form, encode(values, LAYOUT)) is not None
        assert outcome(form, encode(good, LAYOUT)) is None
        with_type = Payload({"w": MaskedValues(torch.ones(KEPT, dtype=dtype), SUPPORT.digest)}, 0)
        assert (outcome(form, encode(with_type, LAYOUT)) is None) == (dtype == torch.float32)
