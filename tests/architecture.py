"""The table of packages in docs/architecture.md, read from the source: `python -m tests.architecture` writes it."""

from __future__ import annotations

from collections import defaultdict

from tests.support.packages import ALLOWED, imports_of, package_of_module, package_of_path, sources
from tests.support.paths import ROOT

BEGIN, END = "<!-- packages: made by python -m tests.architecture -->", "<!-- end of packages -->"
DOCUMENT = ROOT / "docs" / "architecture.md"


def table() -> str:
    """Package, files, lines, and the imported packages of ssfl."""
    files: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    arrows: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        text = path.read_text(encoding="utf-8")
        package = package_of_path(path)
        files[package] += bool(text.strip())
        lines[package] += len(text.splitlines())
        ours = {name for name in imports_of(path) if name.partition(".")[0] == "ssfl"}
        arrows[package] |= {package_of_module(name) for name in ours} - {package, ""}
    rows = [
        f"| `{package}` | {files[package]} | {lines[package]} | {', '.join(sorted(arrows[package]))} |"
        for package in ALLOWED
        if package
    ]
    total = f"| all | {sum(files.values())} | {sum(lines.values())} | |"
    return "\n".join(["| package | files | lines | imports from |", "|---|---|---|---|", *rows, total])


def with_table(text: str) -> str:
    """docs/architecture.md with a newly generated table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
