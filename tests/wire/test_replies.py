"""The way of a reply's bytes to the sum: whatever is accepted can be summed, whatever is not is refused in one line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ssfl.core.reading import WireError
from tests.wire.replies import FORMS, multipart, open_reply, seeds

ALL_FORMS = range(len(FORMS))


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
    reasons = " ".join(reason for reason in found.values() if reason)
    for text in ("is missing", "was not asked for", "expected", "parts; at most 4", "coordinates together"):
        assert text in reasons


@settings(max_examples=400)
@given(st.integers(0, 20), st.sampled_from(sorted(seeds())), st.binary(max_size=80), st.data())
def test_any_reply_is_refused_or_summed(form: int, seed: str, noise: bytes, data: st.DataObject) -> None:
    raw = bytearray(seeds()[seed])
    for byte in noise[:8]:
        raw[data.draw(st.integers(0, len(raw) - 1))] = byte
    reason = outcome(form, multipart(bytes(raw) + noise[8:]))
    assert reason is None or "\n" not in reason
