"""What documents name is there: codes, checks, reasons, metrics, settings, log lines, files and headings."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from events.errors import every_error
from events.session import Closing, Detaching
from service.cli import app
from service.settings import OF_CLIENTS, variables
from service.telemetry.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for path in (
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "client/README.md", "helm/README.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = "\n".join(
    path.read_text(encoding="utf-8") for folder in ("service", "projections") for path in (ROOT / folder).rglob("*.py")
)
SUFFIXES_OF_HISTOGRAMS = ("_bucket", "_count", "_sum")
NO_LOG_LINES = ("hub.", "details.")  # methods and fields of answers look like them
FILE = re.compile(r"\.(md|py|json|jsonl|yaml|yml|log|toml|txt|sh|mjs|conf)$")


def sections(text: str, level: int) -> dict[str, str]:
    """Heading → what stands under it, down to the next of the same or a higher level."""
    parts = re.split(rf"^(#{{1,{level}}}) (.+)$", text, flags=re.MULTILINE)
    found = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {heading: body for marks, heading, body in found if len(marks) == level}


def entries() -> dict[str, str]:
    """Code → its entry, with what is said before the first entry of its group."""
    found: dict[str, str] = {}
    for body in sections(TROUBLESHOOTING, 2).values():
        preface = body.partition("\n### ")[0]
        for heading, entry in sections(body, 3).items():
            if heading.startswith("`"):
                assert heading not in found, f"{heading} stands twice"
                found[heading.strip("`")] = preface + entry
    return found


def test_every_code_has_an_entry_and_every_entry_a_code() -> None:
    assert sorted(entries()) == sorted(every_error())


@pytest.mark.parametrize("code", entries())
def test_an_entry_says_who_sees_it_what_to_do_and_where_to_look(code: str) -> None:
    assert [part for part in ("**Seen by**", "**Do**", "**Look**") if part not in entries()[code]] == []


def test_every_reason_of_an_end_is_explained() -> None:
    rows = re.findall(r"^\| (`.+?) \|", sections(TROUBLESHOOTING, 2)["Why a session ended"], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted({*get_args(Closing), *get_args(Detaching)})


def test_every_check_of_readiness_is_explained() -> None:
    rows = re.findall(r"^\| (`.+?) \|", sections(TROUBLESHOOTING, 2)["In the first minute"], re.MULTILINE)
    assert sorted(re.findall(r"`([\w <>]+)`", " ".join(rows))) == sorted(checks_in_code())


def checks_in_code() -> set[str]:
    """The keys of every dictionary of checks that the roots make."""
    found: set[str] = set()
    for path in (ROOT / "service" / "process").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Assign(targets=[ast.Name(id="checks")]) | ast.FunctionDef(name="checks"):
                    found |= keys(node)
                case ast.Call(func=ast.Name(id="admin_app")):
                    found |= keys(node)
    return found


def keys(node: ast.AST) -> set[str]:
    found: set[str] = set()
    for one in ast.walk(node):
        for key in one.keys if isinstance(one, ast.Dict) else [one.key] if isinstance(one, ast.DictComp) else []:
            if isinstance(key, ast.Constant):
                found.add(str(key.value))
            elif isinstance(key, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "<n>" for part in key.values))
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_metrics_that_are_named_are_exported(name: str) -> None:
    declared = {one.name for one in CATALOGUE}
    histograms = {
        one.name + suffix for one in CATALOGUE for suffix in SUFFIXES_OF_HISTOGRAMS if one.kind == "histogram"
    }
    named = set(re.findall(r"`(hublog_[a-z_]+)[`{]", DOCUMENTS[name].read_text(encoding="utf-8")))
    families = {one for one in named if one.endswith("_")}
    assert named - families - declared - histograms == set()
    assert [one for one in families if not any(metric.startswith(one) for metric in declared)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_that_are_named_are_read(name: str) -> None:
    named = set(re.findall(r"\bHUBLOG_[A-Z_]+\b(?!…|\*)", DOCUMENTS[name].read_text(encoding="utf-8")))
    named = {one for one in named if not one.endswith("_")}
    named -= set(re.findall(r"\$\{(HUBLOG_[A-Z_]+)", (ROOT / "compose.yaml").read_text(encoding="utf-8")))
    assert named - {variable.name for variable in variables().values()} - OF_CLIENTS == set()


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "docs/health.md"])
def test_log_lines_that_are_named_are_written(name: str) -> None:
    named = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", DOCUMENTS[name].read_text(encoding="utf-8")))
    named = {one for one in named if not one.startswith(NO_LOG_LINES) and not FILE.search(one)}
    assert len(named) > 1
    assert [one for one in sorted(named) if f'"{one}"' not in SOURCES] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    path = DOCUMENTS[name]
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_exist(name: str) -> None:
    """Tests and modules that a sentence points to."""
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:tests|service|events|projections|lab|helm|examples)/[\w/.-]+\.\w+)\b", text))
    assert sorted(one for one in named if not (ROOT / one).exists()) == []


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_promise_names_what_shows_it() -> None:
    """A test, which ``test_files_that_are_named_exist`` looks for, or a command. Limits are no promises."""
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    promised = sections(text, 2)
    del promised["Not promised"]
    promises = [one for body in promised.values() for one in re.split(r"^\* ", body, flags=re.MULTILINE)[1:]]
    assert len(promises) > len(promised)
    unshown = [
        one for one in promises if not one.startswith("**Limit:**") and not re.search(r"Shown by\s+`tests/", one)
    ]
    assert unshown == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_named_exist(name: str) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^|/|m )(?:hublog|service) ([a-z]+)\b", text, re.MULTILINE)
    prose = {"is", "import"}  # "hublog is a session service", "from hublog import Client"
    assert sorted(set(named) - known - prose) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_have_as_many_cells_as_their_heads(name: str) -> None:
    text = DOCUMENTS[name].read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(cells)) == 1, f"{table[:200]}: a | within a cell is written \\|"
