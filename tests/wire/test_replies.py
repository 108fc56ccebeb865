"""The way of a reply's bytes to the sum: whatever is accepted can be summed, whatever is not is refused in one line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.core.reading import WireError
from tests.wire.attacks import N, P
from tests.wire.replies import FORMS, OTHER_MASK, multipart, open_reply, seeds

ALL_FORMS = range(len(FORMS))
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
