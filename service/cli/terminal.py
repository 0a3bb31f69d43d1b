"""The tables of ``hublog settings`` and ``hublog metrics``, as a terminal of 80 columns can show them.

Owns their look. What stands in them is ``service.cli.configuration``'s and the catalogue's; documents have the same in
wider tables.
"""

from collections.abc import Iterator

from rich.table import Column, Table
from rich.text import Text

from service.cli.configuration import GROUPS, takes
from service.settings import defaults, variables
from service.telemetry.catalogue import CATALOGUE, labels_shown


def settings() -> Iterator[Table]:
    """A table per group."""
    known, plain = variables(), defaults()
    for group in GROUPS:
        table = Table(_names("variable"), "default", "meaning", show_lines=True)
        table.title, table.title_justify = Text(_unmarked(group.title), style="bold"), "left"
        for field, readers in group.rows.items():
            variable = known[field]
            about = f"Takes: {takes(variable.expectation)}.\nRead by: {', '.join(readers)}."
            table.add_row(variable.name, _unmarked(variable.default_shown(plain[field])), _meaning(variable.doc, about))
        yield table


def metrics() -> Table:
    table = Table(_names("metric"), "meaning", show_lines=True)
    for one in CATALOGUE:
        labels = f"\nLabels: {labels_shown(one)}." if one.labels else ""
        about = f"A {one.kind} of {', '.join(one.roles)}.{labels}"
        table.add_row(one.name, _meaning(one.meaning, about))
    return table


def _names(header: str) -> Column:
    """Of names, which are of no use when they are cut."""
    return Column(header, no_wrap=True, overflow="fold")


def _meaning(text: str, about: str) -> Text:
    return Text(_unmarked(text)).append(_unmarked(f"\n{about}"), style="dim")


def _unmarked(text: str) -> str:
    """Markdown without its marks."""
    return text.replace("`", "").replace("*i*", "i")
