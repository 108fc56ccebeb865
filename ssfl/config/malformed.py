"""Why a word of the command line cannot be read, and how to write it; the parser's own message names its tokens."""

from __future__ import annotations

import re

from ssfl.config.errors import near_match
from ssfl.config.keys import common_keys

_KEY = re.compile(r"\+{0,2}[\w$-]+([./][\w$-]+)*", re.ASCII)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_ESCAPED = re.compile(r"\\[\\()\[\]{}:=, \t]")
_REFERENCE = re.compile(r"\$\{[^}]+\}")
_NEEDS_QUOTES = re.compile(r"[^\w\s/\\+.$%*@?|:,()\[\]{}-]", re.ASCII)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_EMPTY_ITEM = re.compile(r"(^|[,(\[{])\s*,|,\s*([)\]}]|$)")
_FUNCTION = re.compile(r"\s*\w+\s*\(", re.ASCII)
LISTS = "a,b, range(START,STOP,STEP) or choice(a,b)"
"""How several values are written."""


def key_problem(word: str) -> str | None:
    """What is wrong with the form of a word or with its key; None where the key can be looked up."""
    key, equals, value = word.partition("=")
    if key.startswith("~"):
        return "keys cannot be deleted; give KEY=VALUE"
    if not equals:
        if key in common_keys():
            return f"is a key without a value; write {key}=VALUE"
        return f"is not of the form KEY=VALUE, such as model.dense_ratio=0.3{near_match(key, common_keys())}"
    if _KEY.fullmatch(key):
        return None
    if not key.strip("+. "):
        return "the key before = is missing; give KEY=VALUE, such as model.dense_ratio=0.3"
    meant = ".".join(filter(None, re.split(r"[^\w/-]+", key)))
    known = meant in common_keys()
    remedy = (
        f"write {meant}={value.strip()}"
        if known
        else f"keys are SECTION.NAME{near_match(meant, common_keys())}"
    )
    if " " in key:
        return f"has a space before =; {remedy}"
    if re.search(r"^\.|\.\.|\.$", key):
        return f"a part of the key {key} is empty; {remedy}"
    return f"{key} cannot be a key; {remedy}"


def value_problem(word: str) -> str:
    """What is wrong with the value of a word that the parser refuses."""
    key, _, text = word.partition("=")
    if text.startswith("="):
        return f"has one = too many; write {key}={text.lstrip('= ')}"
    bare = _REFERENCE.sub("R", _ESCAPED.sub("E", _QUOTED.sub("Q", text)))
    return f"{_what_is_wrong(bare)}; {_remedy(key, text, bare)}"


def _what_is_wrong(bare: str) -> str:
    """Of a value whose quoted pieces, escapes and references are letters."""
    for quote in "'\"":
        if quote in bare:
            return f"the quote {quote} has no partner"
    if "${" in bare:
        return "the reference ${ has no }"
    if problem := _unpaired(bare):
        return problem
    if _EMPTY_ITEM.search(bare):
        return "an item of the list is empty (a comma too many)"
    if found := _NEEDS_QUOTES.search(bare):
        return f"{found[0]} is a special character"
    if _FUNCTION.match(bare):
        return f"not a list of values; several values are written {LISTS}"
    return "the value cannot be read"


def _unpaired(bare: str) -> str:
    opened: list[str] = []
    for sign in bare:
        if sign in _PAIRS.values():
            opened.append(sign)
        elif sign in _PAIRS and (not opened or opened.pop() != _PAIRS[sign]):
            return f"{sign} has no {_PAIRS[sign]} before it"
    return f"{opened[-1]} is not closed" if opened else ""


def _remedy(key: str, text: str, bare: str) -> str:
    declared = common_keys().get(key.lstrip("+"))
    if _EMPTY_ITEM.search(bare) and not set(bare) & set("QERE()[]{}'\""):
        return f"write {key}={','.join(item.strip() for item in text.split(',') if item.strip()) or 'VALUE'}"
    if declared is not None and (declared.kind is not str or declared.words):
        return f"{key} must be {declared.allowed}"
    example = "KEY='VALUE'" if set(text) & set("'\"\\") else f"{key}='{text}'"
    return f'text with special characters needs quotes: "{example}"'
