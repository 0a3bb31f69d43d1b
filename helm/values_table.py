"""The table of README.md, from values.yaml: each value, its default, and the comment above it that begins with ``--``.

``python helm/values_table.py`` writes it between the marks of README.md, and a test compares the two. It needs PyYAML,
which comes with ``locks/chart.txt``.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- values: written by `python helm/values_table.py` -->\n", "<!-- /values -->\n"
INDENT = 2


def described(text: str) -> Iterator[tuple[str, str]]:
    """The dotted name and the description of each value that has one, in order."""
    path: list[str] = []
    said: list[str] = []
    for line in text.splitlines():
        comment = re.fullmatch(r" *# ?(.*)", line)
        if comment is not None:
            if comment[1].startswith("-- "):
                said = [comment[1][3:]]
            elif said:
                said.append(comment[1])
            continue
        key = re.match(r"( *)([A-Za-z][\w-]*):", line)
        if key is not None:
            path[len(key[1]) // INDENT :] = [key[2]]
            if said:
                yield ".".join(path), " ".join(said)
        said = []


def default_of(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values


def table(text: str) -> str:
    values = yaml.safe_load(text)
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for name, meaning in described(text):
        default = json.dumps(default_of(values, name), ensure_ascii=False)
        lines.append(f"| `{name}` | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    written = table((HERE / "values.yaml").read_text(encoding="utf-8"))
    readme.write_text(f"{before}{BEGIN}{written}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
