"""Command-line words in Hydra's override grammar, sorted into groups and values (keys)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from ssfl.config.errors import ConfigError, near_match
from ssfl.config.malformed import key_problem, value_problem

MODE_GROUP = "algorithm/mode"
GROUPS = ("algorithm", MODE_GROUP, "preset")
"""Words without a section: a method, a mask mode, a file of conf/preset."""


@final
class Typed(NamedTuple):
    """A key with its value, and the text as it was typed (empty if it comes from a file)."""

    key: str
    value: Any
    text: str


@final
class Words(NamedTuple):
    """Groups as {group: name} and values in the order given; `algorithm=X` is the value algorithm.name."""

    groups: dict[str, str]
    values: list[Typed]


def parse_words(words: Sequence[str]) -> list[Override]:
    """Parse each word separately, so that an error names the word.

    Raises:
        ConfigError: a word that is not KEY=VALUE, or that deletes a key.
    """
    parser = OverridesParser.create()
    parsed = []
    for word in words:
        if problem := key_problem(word):
            raise ConfigError(word, f"{word!r}: {problem}")
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            raise ConfigError(word, f"{word!r}: {value_problem(word)}") from None
    return parsed


def split(overrides: Sequence[Override], conf: Path) -> Words:
    """Sort overrides into groups and values; the last word on a key counts.

    Raises:
        ConfigError: a preset without a file; several values for one key (which only a sweep takes).
    """
    groups: dict[str, str] = {}
    values: list[Typed] = []
    for override in overrides:
        key = override.key_or_group
        word = override.input_line or key
        if override.is_sweep_override():
            message = f"{word}: a run takes one value; `ssfl sweep` takes several, or put quotes around"
            raise ConfigError(key, message)
        text, value = word.partition("=")[2], _plain(override.value())
        if key == "preset":
            groups[key] = _preset(value, conf)
        elif key == MODE_GROUP:
            groups[key] = str(value)
        elif key in ("algorithm", "algorithm.name"):
            values.append(Typed("algorithm.name", str(value), text))
        else:
            values.append(Typed(key, value, text))
    return Words(groups, values)


def _preset(value: Any, conf: Path) -> str:
    names = sorted(path.stem for path in (conf / "preset").glob("*.yaml"))
    if not isinstance(value, str) or value not in names:
        close = near_match(str(value), names)
        raise ConfigError("preset", f"preset={value}: must be one of {', '.join(names)}{close}")
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
