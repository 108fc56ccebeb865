"""Generates conf/base.yaml and the tables of docs/configuration.md from the declared settings.

`python -m ssfl.config.document` writes both; a test checks that the files are up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap

import yaml

from ssfl.algorithms.table import METHODS
from ssfl.config.keys import common_keys, method_keys
from ssfl.config.load import conf_dir
from ssfl.settings import Setting

BEGIN, END = "<!-- keys: made by python -m ssfl.config.document -->", "<!-- end of keys -->"
HEAD = """\
# Defaults of every run: the paper's CIFAR-10 recipe. docs/configuration.md explains each key.
# Made by `python -m ssfl.config.document` from ssfl/config/schema.py. Order (the last value counts): this file,
# conf/preset/NAME.yaml, the command line. Defaults of a method's keys (algorithm.params.*): `ssfl keys`.
defaults:
  - _self_
  - preset: none
"""
WIDTH = 36


def base_yaml() -> str:
    """The text of conf/base.yaml."""
    lines, section = [HEAD], ""
    for key, declared in common_keys().items():
        above, _, name = key.partition(".")
        if above != section:
            lines.append(f"\n{above}:\n")
            section = above
        value = f"  {name}: {_yaml_value(declared.default)}"
        lines.append(f"{value:<{WIDTH}}# {_remark(declared)}\n")
    return "".join(lines)


def tables() -> str:
    """The key tables of docs/configuration.md: the common keys, then each method's keys."""
    parts = [_table(common_keys())]
    for name in METHODS:
        own = method_keys(name)
        if own:
            parts.append(f"`algorithm={name}`:\n\n{_table(own)}")
    return "\n".join(parts)


def listing(prefix: str = "") -> str:
    """All keys that begin with `prefix`, one per line, for a terminal.

    prefix: package.module:CLASS, also after algorithm.name=, lists the keys of this method. Raises MethodError.
    """
    if ":" in prefix:
        return "\n".join(starmap(_line, method_keys(prefix.removeprefix("algorithm.name=")).items()))
    lines = [_line(key, d) for key, d in common_keys().items() if key.startswith(prefix)]
    for name in METHODS:
        own = [_line(key, d) for key, d in method_keys(name).items() if key.startswith(prefix)]
        lines += [f"algorithm={name}:", *own] if own else []
    return "\n".join(lines)


def _table(keys: Mapping[str, Setting]) -> str:
    rows = [
        f"| `{key}`{' P' if d.published else ''} | `{_yaml_value(d.default)}` | {_values(d)} | {d.about} |"
        for key, d in keys.items()
    ]
    return "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _values(declared: Setting) -> str:
    """The allowed words, or the type and range; empty for a key that has no effect."""
    if declared.unread:
        return ""
    words = ", ".join(f"`{word}`" for word in (*declared.words, *(["null"] if declared.optional else [])))
    if declared.words and declared.kind is str:
        return words
    plain = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[declared.kind]
    plain = f"{plain} {declared.range}".strip()
    return f"{words}, {plain}" if words else plain


def _remark(declared: Setting) -> str:
    """The meaning as plain text, after the allowed words."""
    about = declared.about.replace("`", "")
    words = " | ".join(declared.words) if declared.words and declared.kind is str else ""
    return f"{words}: {about}" if words else about


def _line(key: str, declared: Setting) -> str:
    return f"{key + '=' + _yaml_value(declared.default):<44} {_remark(declared)}"


def _yaml_value(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip() or "''"


def with_tables(text: str) -> str:
    """docs/configuration.md with newly generated tables."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main() -> None:
    """Write both files in this checkout."""
    conf = conf_dir()
    (conf / "base.yaml").write_text(base_yaml(), encoding="utf-8")
    document = conf.parent / "docs" / "configuration.md"
    document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
