"""The command line's own words: all that is written for ``--help`` is shown, whatever marks stand in it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import lab.chaos.cli
import lab.cli
from service import VERSION
from service.cli import app
from service.cli.peer import said
from service.settings import variables
from service.telemetry.catalogue import CATALOGUE

NARROW = {"COLUMNS": "80", "TERM": "dumb"}
WIDE = {"COLUMNS": "400", "TERM": "dumb"}
LABS = {"bench", "chaos"}  # handed on whole to the lab's own command lines


def commands(application: typer.Typer) -> Iterator[tuple[typer.Typer, tuple[str, ...], Any]]:
    root = typer.main.get_command(application)
    yield application, (), root
    for name, command in getattr(root, "commands", {}).items():
        if name not in LABS:
            yield application, (name,), command


EVERY = [
    pytest.param(*one, id=" ".join([of, *one[1]]))
    for of, application in (("hublog", app), ("bench", lab.cli.app), ("chaos", lab.chaos.cli.app))
    for one in commands(application)
]


def words(text: str) -> str:
    return " ".join(text.replace("`", "").replace("│", " ").split())


@pytest.mark.parametrize(("application", "path", "command"), EVERY)
def test_the_help_of_a_command_shows_all_that_is_written(
    application: typer.Typer, path: tuple[str, ...], command: Any
) -> None:
    shown = CliRunner().invoke(application, [*path, "--help"], env=WIDE)
    assert shown.exit_code == 0
    written = [command.help or "", *(getattr(option, "help", None) or "" for option in command.params)]
    assert [text for text in written if words(text) not in words(shown.output)] == []


def test_it_says_its_release() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"hublog {VERSION}\n"


@pytest.mark.parametrize(
    ("command", "names"),
    [("settings", [one.name for one in variables().values()]), ("metrics", [one.name for one in CATALOGUE])],
)
def test_no_name_is_cut_on_a_narrow_terminal(command: str, names: list[str]) -> None:
    shown = CliRunner().invoke(app, [command], env=NARROW).output
    assert [name for name in names if f"│ {name} " not in shown] == []


@pytest.mark.parametrize("wrong", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:8000/?user=ann"])
@pytest.mark.parametrize("option", ["--gateway", "--api"])
def test_the_probe_asks_for_addresses(option: str, wrong: str) -> None:
    right = {"--gateway": "http://127.0.0.1:1", "--api": "http://127.0.0.1:1"}
    options = [part for pair in {**right, option: wrong}.items() for part in pair]
    refused = CliRunner().invoke(app, ["probe", *options], env=WIDE)
    assert refused.exit_code == 2
    assert f"Invalid value for '{option}': {wrong!r} is not an address such as" in refused.output


def test_the_probe_says_a_refusal_in_its_own_words() -> None:
    document = '{"title":"Hub forbidden","status":403,"detail":"not this one","code":"hub_forbidden","hint":"Another."}'
    assert said(document) == "hub_forbidden: not this one. Another."
    assert said("<html>" + "x" * 300) == "<html>" + "x" * 194


def test_a_folder_without_a_history_is_not_judged(tmp_path: Path) -> None:
    refused = CliRunner().invoke(lab.chaos.cli.app, ["check", str(tmp_path)], env=WIDE)
    assert refused.exit_code == 2
    assert "has no history.jsonl" in refused.output


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("{", "no processes.json"), ("[]", "no gateway")])
@pytest.mark.parametrize(("application", "command"), [(lab.cli.app, ["connect"]), (lab.chaos.cli.app, [])])
def test_what_is_no_processes_json_is_refused(
    application: typer.Typer, command: list[str], content: str | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "processes.json"
    if content is not None:
        path.write_text(content)
    refused = CliRunner().invoke(application, [*command, "--processes", str(path)], env=WIDE)
    assert refused.exit_code == 2
    assert "Invalid value for '--processes'" in refused.output
    assert why in refused.output


def test_a_chaos_that_cannot_run_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    refused = CliRunner().invoke(lab.chaos.cli.app, ["--url", "http://127.0.0.1:1"], env=WIDE)
    assert refused.exit_code == 2
    assert "needs --api too" in refused.output
    assert list(tmp_path.iterdir()) == []
