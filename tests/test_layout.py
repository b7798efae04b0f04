"""Imports between the parts of the package flow one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "rasid"
MAY_USE = {  # beside itself and the modules that are in no part
    "formats": set(),
    "reading": set(),
    "batch": {"reading"},
    "scoring": set(),
    "bases": set(),
    "modeling": {"bases", "scoring"},
    "training": {"bases", "modeling", "scoring"},
    "studies": {"modeling", "scoring", "training"},
}
PARTS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def parts_used(path: Path) -> set[str]:
    """The parts of the package that a module imports, at its top or later."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in used if name.startswith("rasid.")} & PARTS


def test_every_part_has_a_place() -> None:
    assert {*MAY_USE, "cli"} == PARTS


@pytest.mark.parametrize("part", sorted(MAY_USE))
def test_parts_use_only_what_is_below_them(part: str) -> None:
    for path in (PACKAGE / part).glob("*.py"):
        assert parts_used(path) <= MAY_USE[part] | {part}, path


@pytest.mark.parametrize("path", sorted({*PACKAGE.glob("*.py")} - {PACKAGE / "__main__.py"}), ids=lambda p: p.stem)
def test_what_is_in_no_part_uses_none(path: Path) -> None:
    assert parts_used(path) <= {"formats"}, path  # corpora are read in all of them
