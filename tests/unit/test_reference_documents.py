"""What docs/api.md, docs/clients.md and docs/errors.md list is what the code has: routes, methods, selectors, codes."""

import re
from pathlib import Path
from typing import get_args

from events.errors import every_error
from events.selector import Selector
from service.api.app import make_table
from service.gateway.methods import METHODS
from service.problems import POLICIES

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_documents_have_every_route() -> None:
    listed = re.findall(r"^\| `((?:GET|POST|PUT|DELETE) [^`]+)` \|", API, re.MULTILINE)
    assert sorted(listed) == sorted(f"{route.method} {route.path}" for route in make_table().routes)


def test_the_documents_have_every_method() -> None:
    listed = re.findall(r"^\| `(hub\.\w+)\(", CLIENTS, re.MULTILINE)
    assert sorted(listed) == sorted([*METHODS._by_name, "hub.invoke"])


def test_the_documents_have_every_selector() -> None:
    listed = re.findall(r'^\| `\{to: "(\w+)"', CLIENTS, re.MULTILINE)
    assert sorted(listed) == sorted(kind.__struct_config__.tag for kind in get_args(Selector))


def errors_table() -> str:
    lines = ["| code | status | retryable | hint |", "|---|---|---|---|"]
    for code, error in sorted(every_error().items()):
        hint = error.hint.replace("|", "\\|")
        linked = f"[`{code}`](troubleshooting.md#{code})"
        lines.append(f"| {linked} | {POLICIES[code].status} | {'yes' if error.retryable else ''} | {hint} |")
    return "\n".join(lines) + "\n"


def test_the_list_of_errors_is_todays() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert text[text.index("| code |") :] == errors_table()
