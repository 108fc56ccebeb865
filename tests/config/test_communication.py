"""Profiles and single codecs: resolved values, equal settings, errors."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import product

import pytest

from ssfl.assemble.communication import wire_of
from ssfl.config import ConfigError, ConfigWarning, codecs_of, config_digest, load_config
from ssfl.config.schema import ValueCodecName
from ssfl.core.layout import Layout

LAYOUT = Layout(("a.weight", "a.bias"), ((8, 4), (8,)), (True, False), (True, True))


def load(*words: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_config(words)


def codecs(*words: str) -> tuple[str, ...]:
    found = codecs_of(load_config(words))
    return found.uplink, found.downlink, found.scores, found.mask, found.rounding


def test_the_default_is_every_bit() -> None:
    assert codecs() == ("fp32", "fp32", "fp32", "coded", "nearest")


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("exact", ("fp32", "fp32", "fp32", "coded", "nearest")),
        ("balanced", ("int8", "int8", "log256", "coded", "stochastic")),
        ("small", ("uniform", "uniform", "log64", "coded", "nearest")),
    ],
)
def test_a_profile_sets_every_codec(profile: str, expected: tuple[str, ...]) -> None:
    assert codecs(f"communication.profile={profile}") == expected


def test_single_settings_win_over_the_profile() -> None:
    words = ["communication.profile=small", "communication.uplink=int8", "communication.scores=factored"]
    assert codecs(*words) == ("int8", "uniform", "factored", "coded", "stochastic")
    assert codecs(*words, "communication.uplink_rounding=nearest")[4] == "nearest"
    assert codecs("communication.mask=bitmap")[3] == "bitmap"


def digest(*words: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return config_digest(load_config(words))


def test_equal_codecs_are_one_setting_however_they_are_named() -> None:
    named = [
        f"communication.{k}={v}"
        for k, v in (("uplink", "uniform"), ("downlink", "uniform"), ("scores", "log64"))
    ]
    assert digest("communication.profile=small") == digest(*named)
    assert digest("communication.profile=small") != digest("communication.profile=balanced") != digest()
    assert digest("communication.profile=small") != digest(
        "communication.profile=small", "communication.uplink_step=1"
    )
    assert digest() == digest("communication.uplink_step=1")  # nothing reads it
    assert digest() == digest("communication.measure=exact", "communication.link_mbits=20")
    assert digest("algorithm=fedavg") == digest("algorithm=fedavg", "communication.scores=votes")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["communication.profile=tiny"], "must be one of exact, balanced, small"),
        (["communication.uplink=fp8"], "must be one of fp32, lossless, bf16, fp16, int8, uniform, auto"),
        (["communication.uplink_step=0"], "at least 1e-05 and at most 16"),
        (["communication.downlink_step=2"], "at least 1e-05 and at most 1"),
        (["communication.downlink_step=1e-10"], "at least 1e-05"),
        (["communication.error_feedback=true"], "communication.uplink=fp32 has no coding error"),
        (
            ["communication.downlink_versions=3"],
            "not with communication.downlink=fp32; needs int8 or lossless or uniform",
        ),
        (["communication.link_mbits=-1"], "at least 0"),
    ],
)
def test_what_no_run_could_use_is_refused_in_one_line(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["communication.uplink_step=1.0"],
            "communication.uplink_step has no effect with the other settings",
        ),
        (["communication.link_round_trip_ms=5"], "communication.link_round_trip_ms has no effect"),
        (["algorithm=fedavg", "communication.scores=votes"], "algorithm=fedavg does not read it"),
    ],
)
def test_settings_that_a_run_does_not_read_give_a_warning(words: list[str], reason: str) -> None:
    with pytest.warns(ConfigWarning, match=reason):
        load_config(words)


def test_what_is_read_is_not_warned_of() -> None:
    load("communication.profile=small", "communication.uplink_step=1.0", "communication.downlink_versions=4")
    load(
        "communication.profile=balanced",
        "communication.error_feedback=true",
        "communication.uplink_rounding=nearest",
    )


CODECS: tuple[ValueCodecName, ...] = ("fp32", "lossless", "bf16", "fp16", "int8", "uniform")


def test_a_setting_that_changes_a_codec_is_part_of_the_digest() -> None:
    """The oracle: the transforms that a run builds from its configuration."""
    default = load_config([])
    for uplink, downlink in product(CODECS, CODECS):
        plain = replace(default.communication, uplink=uplink, downlink=downlink)
        settings = (
            plain,
            replace(plain, uplink_step=0.25),
            replace(plain, downlink_step=0.5),
            replace(plain, uplink_rounding="stochastic"),
            replace(plain, uplink_rounding="nearest"),
        )
        configs = [replace(default, communication=one) for one in settings]
        wires = [wire_of(config, LAYOUT) for config in configs]
        for config, wire in zip(configs, wires, strict=True):
            if (wire.down, wire.up) != (wires[0].down, wires[0].up):
                assert config_digest(config) != config_digest(configs[0]), config.communication
