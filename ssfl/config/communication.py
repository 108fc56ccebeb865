"""The codec of each kind of part, from `communication.profile` and the single settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from ssfl.config.schema import Config, MaskCodec, Profile, Rounding, ScoreCodec, ValueCodecName

TRACKED: frozenset[ValueCodecName] = frozenset({"lossless", "int8", "uniform"})
"""Downlink codecs for differences to an earlier model: their error does not depend on what is coded."""
LOSSY: frozenset[ValueCodecName] = frozenset({"bf16", "fp16", "int8", "uniform"})


@final
@dataclass(frozen=True)
class Codecs:
    """A run's codecs; none is `auto`."""

    uplink: ValueCodecName
    downlink: ValueCodecName
    scores: ScoreCodec
    mask: MaskCodec
    rounding: Rounding
    """Rounding of the uplink's values."""


PROFILES: Mapping[Profile, Codecs] = MappingProxyType(
    {
        "exact": Codecs("fp32", "fp32", "fp32", "coded", "nearest"),
        "balanced": Codecs("int8", "int8", "log256", "coded", "stochastic"),
        "small": Codecs("uniform", "uniform", "log64", "coded", "nearest"),
    }
)


def codecs_of(config: Config) -> Codecs:
    """The profile's codecs, except those that a single setting changes."""
    asked = config.communication
    profile = PROFILES[asked.profile]
    uplink = profile.uplink if asked.uplink == "auto" else asked.uplink
    usual: Rounding = "stochastic" if uplink == "int8" else "nearest"
    return Codecs(
        uplink,
        profile.downlink if asked.downlink == "auto" else asked.downlink,
        profile.scores if asked.scores == "auto" else asked.scores,
        profile.mask if asked.mask == "auto" else asked.mask,
        usual if asked.uplink_rounding == "auto" else asked.uplink_rounding,
    )


def codecs_ignore(config: Config) -> tuple[str, ...]:
    """Keys of this section that the chosen codecs do not read."""
    codecs = codecs_of(config)
    unread = {
        "uplink_step": codecs.uplink != "uniform",
        "uplink_rounding": codecs.uplink not in ("int8", "uniform"),
        # Replies without a reference (DisPFL's models) are coded with the downlink's precision.
        "downlink_step": "uniform" not in (codecs.downlink, codecs.uplink),
        "link_round_trip_ms": not config.communication.link_mbits,
    }
    return tuple(f"communication.{name}" for name, is_unread in unread.items() if is_unread)


def in_effect(config: Config) -> Mapping[str, object]:
    """Keys of this section with their resolved values; equal for configurations with equal codecs."""
    codecs = codecs_of(config)
    return {
        "communication.profile": "",
        "communication.uplink": codecs.uplink,
        "communication.uplink_rounding": codecs.rounding,
        "communication.downlink": codecs.downlink,
        "communication.scores": codecs.scores,
        "communication.mask": codecs.mask,
    }
