"""The README's table of settings is the one that the code has. ``hublog settings --markdown`` prints it."""

from pathlib import Path

from service.settings import markdown_table

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- settings: written by `hublog settings --markdown` -->\n", "<!-- /settings -->\n"


def test_the_readme_has_todays_settings() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1, f"the README needs the lines {BEGIN!r} and {END!r}"
    table = text.partition(BEGIN)[2].partition(END)[0]
    assert table == markdown_table()
