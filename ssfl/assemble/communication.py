"""The transforms between algorithm and wire, from the configuration."""

from __future__ import annotations

from dataclasses import replace

import torch

from ssfl.config import Config, codecs_of
from ssfl.config.schema import Rounding, ScoreCodec, ValueCodecName
from ssfl.core.layout import Layout
from ssfl.wire.coding import Coding, Votes
from ssfl.wire.half import Half
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.stack import Transform, WireStack
from ssfl.wire.uniform import Uniform
from ssfl.wire.value_codec import ValueCodec

WHOLE_BLOCK = 256
"""Values per scale when whole values are coded: weights in one block vary more than differences."""


def wire_of(config: Config, layout: Layout) -> WireStack:
    """The transforms of both sides; none in a direction in which payloads are sent unchanged."""
    codecs, asked = codecs_of(config), config.communication
    whole = whole_codec(codecs.downlink, asked.downlink_step)
    down = Coding(whole, masks=codecs.mask)
    if asked.downlink_versions:
        down = replace(down, delta=tracked_codec(codecs.downlink, asked.downlink_step), smaller=True)
    scores = score_codec(codecs.scores, config.model.dense_ratio)
    difference = difference_codec(codecs.uplink, asked.uplink_step, codecs.rounding)
    # Replies contain no other masks.
    masks = codecs.mask if difference is not None or scores is not None else "bitmap"
    up = Coding(
        whole_codec(codecs.uplink, asked.downlink_step), difference, scores, masks, asked.error_feedback
    )
    plain = Coding()
    stacks = _unless(plain, down), _unless(plain, up)
    return WireStack(layout, config.experiment.seed, *stacks, versions=asked.downlink_versions)


def _unless(plain: Coding, coding: Coding) -> tuple[Transform, ...]:
    return () if coding == plain else (coding,)


def whole_codec(name: ValueCodecName, step: float) -> ValueCodec | None:
    """The codec of whole values: rounded to nearest, as precisely as weights need."""
    made: dict[ValueCodecName, ValueCodec | None] = {
        "fp32": None,
        "lossless": Lossless(),
        "bf16": Half(torch.bfloat16, "zstd"),
        "fp16": Half(torch.float16, "zstd"),
        "int8": Int8(WHOLE_BLOCK, "nearest"),
        "uniform": Uniform(step),
    }
    return made[name]


def tracked_codec(name: ValueCodecName, step: float) -> ValueCodec:
    """The codec of the downlink's differences: their step is relative to the values, so they have the same error."""
    made: dict[ValueCodecName, ValueCodec] = {
        "lossless": Lossless(),
        "int8": Int8(WHOLE_BLOCK, "nearest", of="values"),
        "uniform": Uniform(step, of="values"),
    }
    return made[name]


def difference_codec(name: ValueCodecName, step: float, rounding: Rounding) -> ValueCodec | None:
    """The codec of differences to values that the receiver holds."""
    made: dict[ValueCodecName, ValueCodec | None] = {
        "fp32": None,
        "lossless": Lossless(),
        "bf16": Half(torch.bfloat16, "zstd"),
        "fp16": Half(torch.float16, "zstd"),
        "int8": Int8(rounding=rounding),
        "uniform": Uniform(step, rounding),
    }
    return made[name]


def score_codec(name: ScoreCodec, density: float) -> ValueCodec | Votes | None:
    """The codec of scores over all prunable weights."""
    made: dict[ScoreCodec, ValueCodec | Votes | None] = {
        "fp32": None,
        "bf16": Half(torch.bfloat16),
        "log256": Log(256, 16),
        "log64": Log(64, 5),
        "votes": Votes(density),
        "factored": None,
    }
    return made[name]
