"""Reads YAML from untrusted files: plain values only, of limited size."""

from __future__ import annotations

from typing import Any

import yaml

from ssfl.errors import UserError

MOST_CHARACTERS = 1_000_000
MOST_VALUES = 10_000
"""Maximum number of values in a document; values that an alias repeats count each time."""


class YamlError(UserError):
    """A document that is not YAML, is too long, or expands to too many values; one line."""


def read_yaml(text: str) -> Any:
    """The document as plain values. Raises YamlError."""
    if len(text) > MOST_CHARACTERS:
        raise YamlError(f"the configuration has {len(text)} characters; at most {MOST_CHARACTERS}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise YamlError(f"the configuration expands to more than {MOST_VALUES} values (aliases)")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"the configuration is not YAML: {' '.join(str(error).split())}") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values at and below a node with aliases expanded, computed without expanding them."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # a document that contains itself expands without end
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
