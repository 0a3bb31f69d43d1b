"""The verdict for a person: what was done, what it did, and whether every promise was kept.

Owns words and layout. It judges nothing.
"""

from collections import Counter
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from lab.chaos.history import Began
from lab.chaos.verdict import MEANING, Verdict, Violation

EXAMPLES = 3
"""Shown of each kind; the rest is in verdict.json."""


def show(folder: Path, verdict: Verdict, console: Console) -> None:
    began = _began(folder)
    figures = verdict.figures
    if began is not None:
        console.print(f"[bold]hublog chaos[/bold]  seed {began.seed}, hub {began.hub}, {began.at}", highlight=False)
    table = Table(show_edge=False, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, lines in (
        ("What was done", _done(figures.faults)),
        (
            "What clients did",
            [
                ("connections opened", figures.connections),
                ("sessions resumed on another connection", figures.resumed),
                ("resumes refused (the session was closed)", figures.resumes_refused),
                ("invocations sent", figures.invocations),
                ("… acknowledged", figures.acknowledged),
                ("… refused", figures.refused),
                ("… without an answer", figures.unknown),
                ("memberships changed, sessions kicked", figures.commands),
            ],
        ),
        (
            "What was checked",
            [
                ("events of the log", figures.events),
                ("sessions", figures.sessions),
                ("… alive at the end, complete to the last message", figures.settled),
                ("deliveries that were due", figures.expected),
                ("deliveries received", figures.deliveries),
                ("… again, behind the cursor that a new connection showed", figures.overlapping),
            ],
        ),
        ("How connections ended in the log", sorted(figures.ends.items())),
    ):
        table.add_section()
        table.add_row(f"[bold]{title}[/bold]", "")
        for what, count in lines:
            table.add_row(f"  {what}", f"{count:,}")
    console.print(table)
    console.print()
    if not verdict.violations:
        console.print("[bold green]Every promise was kept.[/bold green] Lost 0, duplicated 0, out of order 0.")
    else:
        _violations(verdict, console)
    console.print(f"Evidence: {folder}  (again: hublog chaos check {folder})", highlight=False, soft_wrap=True)


def _done(faults: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(faults.items()) or [("nothing", 0)]


def _violations(verdict: Verdict, console: Console) -> None:
    counts = Counter(violation.kind for violation in verdict.violations)
    console.print(f"[bold red]{len(counts)} kind{'s' * (len(counts) != 1)} of violation.[/bold red]")
    for kind, count in counts.most_common():
        console.print(f"[red]{kind}[/red] ({count}): {MEANING[kind]}", highlight=False)
        for one in [one for one in verdict.violations if one.kind == kind][:EXAMPLES]:
            console.print(f"    {_evidence(one)}", highlight=False, markup=False, soft_wrap=True)


def _evidence(one: Violation) -> str:
    parts = [one.what]
    if one.session:
        parts.append(f"session {one.session}")
    if one.positions:
        parts.append(f"at {', '.join(one.positions[:4])}")
    if one.lines:
        parts.append(f"history line {', '.join(map(str, one.lines[:4]))}")
    return "; ".join(parts)


def _began(folder: Path) -> Began | None:
    with (folder / "history.jsonl").open("rb") as lines:
        first = lines.readline()
    try:
        return msgspec.json.decode(first, type=Began)
    except msgspec.DecodeError:  # cut off before anything was written
        return None
