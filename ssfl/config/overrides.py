"""Command-line words in Hydra's override grammar, sorted into groups (whole files) and values (keys)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from ssfl.config.errors import ConfigError, near_match

GROUPS = ("algorithm", "algorithm/mode", "preset")
"""Folders of conf/ from which one file is chosen."""


@final
class Parsed(NamedTuple):
    """Groups as {group: file name} and values as (key, value, text as typed), in the order given."""

    groups: dict[str, str]
    values: list[tuple[str, Any, str]]


def parse_words(words: Sequence[str]) -> list[Override]:
    """Parse each word on its own, so that the complaint names it.

    Raises:
        ConfigError: a word that is no KEY=VALUE, or that deletes a key.
    """
    parser = OverridesParser.create()
    parsed = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(word, f"{word!r}: {_explain(word, error)}") from None
        if override.type == OverrideType.DEL:
            raise ConfigError(word, f"{word!r}: keys cannot be deleted; give KEY=VALUE")
        parsed.append(override)
    return parsed


def _explain(word: str, error: HydraException) -> str:
    if "=" not in word:
        return "is not of the form KEY=VALUE, such as model.dense_ratio=0.3"
    reason = str(error).splitlines()[0]
    return f"cannot be read ({reason}); a value with special characters needs quotes: \"KEY='VALUE'\""


def is_group(override: Override) -> bool:
    """Whether the override chooses a file; `algorithm.name=X` is another spelling of `algorithm=X`."""
    return override.key_or_group in (*GROUPS, "algorithm.name")


def split(overrides: Sequence[Override], conf: Path) -> Parsed:
    """Sort overrides into groups and values; the last word on a key counts.

    Raises:
        ConfigError: a group without such a file; several values for one key (that is what a sweep is for).
    """
    groups: dict[str, str] = {}
    values: list[tuple[str, Any, str]] = []
    for override in overrides:
        word = override.input_line or override.key_or_group
        if override.is_sweep_override():
            raise ConfigError(
                override.key_or_group,
                f"{word}: a run takes one value; `ssfl sweep` takes several, or put quotes around",
            )
        text = word.partition("=")[2]
        if is_group(override):
            group = override.key_or_group.removesuffix(".name")
            groups[group] = _choice(group, _plain(override.value()), conf)
        else:
            values.append((override.key_or_group, _plain(override.value()), text))
    return Parsed(groups, values)


def _choice(group: str, value: Any, conf: Path) -> str:
    names = sorted(path.stem for path in (conf / group).glob("*.yaml"))
    if not isinstance(value, str) or value not in names:
        close = near_match(str(value), names)
        raise ConfigError(group, f"{group}={value}: must be one of {', '.join(names)}{close}")
    return value


def _plain(value: Any) -> Any:
    """Hydra's quoted strings as plain ones, at any depth."""
    if isinstance(value, QuotedString):
        quote = "'" if value.quote == Quote.single else '"'
        return value.text.replace(f"\\{quote}", quote)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
