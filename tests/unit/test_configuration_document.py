"""docs/configuration.md is made from the code, and names as readers of a setting the processes that do read it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from service.cli.configuration import GROUPS, markdown
from service.settings import defaults, variables

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: written by `hublog settings --markdown` -->\n", "<!-- /settings -->\n"

ROOTS = {
    "up": "service.process.up.run",
    "gateway": "service.process.gateway.run",
    "projector": "service.process.projector.run",
    "api": "service.process.api.run",
    "migrate": "service.process.migrate.run",
    "wait": "service.process.waiting.run",
    "tail": "service.cli.tail.follow",
    "token": "service.cli.token.minted",
}
CHECKED_WHERE_READ = {"auth_none_beyond_loopback"}
"""What only ``Settings.read`` looks at: it contradicts others, and stops the process."""
AS_ANOTHER = {"node_name": "node"}


def test_the_document_is_todays() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"docs/configuration.md needs the lines {BEGIN!r} and {END!r}"
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown(), "write it anew: `hublog settings --markdown`"


def test_every_setting_is_in_one_group() -> None:
    grouped = [field for group in GROUPS for field in group.rows]
    assert sorted(grouped) == sorted(variables()), "service/cli/configuration.py: each setting stands in one group"


def test_a_parser_says_what_it_takes() -> None:
    said = {field: variable.expectation for field, variable in variables().items()}
    paths = {field for field, default in defaults().items() if isinstance(default, Path) or field.endswith("_bin")}
    assert {field for field, words in said.items() if words == "a path"} == paths | {"jwt_key_file"}


def test_a_default_that_is_shown_as_a_value_is_the_default() -> None:
    plain = defaults()
    shown = {field: re.fullmatch("`([^`<>]+)`", one.default_shown(plain[field])) for field, one in variables().items()}
    values = {field: variables()[field].parse(found[1]) for field, found in shown.items() if found is not None}
    assert len(values) > 20
    assert values == {field: plain[field] for field in values}


@pytest.mark.parametrize("role", ROOTS)
def test_readers_are_who_reads(role: str) -> None:
    """Followed through the code from each root: which attributes of ``settings`` it gets to."""
    named = {field for group in GROUPS for field, readers in group.rows.items() if role in readers}
    assert named - CHECKED_WHERE_READ == read_from(ROOTS[role]), f"service/cli/configuration.py: what {role} reads"


def read_from(start: str) -> set[str]:
    fields: set[str] = set()
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        module, _, definition = name.rpartition(".")
        if name in seen or not module.startswith(("service.process.", "service.cli.")):
            continue
        seen.add(name)
        definitions, names = parsed(module)
        if definition not in definitions:
            continue
        for node in ast.walk(definitions[definition]):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings":
                fields.add(AS_ANOTHER.get(node.attr, node.attr))
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                waiting.append(names.get(node.id, f"{module}.{node.id}"))
    return fields & variables().keys()


@cache
def parsed(module: str) -> tuple[dict[str, ast.AST], dict[str, str]]:
    """A module's own functions and classes, and what the names that it imports stand for."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions: dict[str, ast.AST] = {}
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            definitions.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return definitions, names
