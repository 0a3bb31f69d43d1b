"""What docs/api.md, docs/clients.md and docs/errors.md list is what the code has: routes, events, methods, codes …"""

import re
from pathlib import Path
from typing import get_args

from events.codec import TAGS
from events.errors import every_error
from events.ids import HubName
from events.selector import Selector
from events.subjects import HubSubjects
from projections.read.events import tags
from service.api.app import make_table
from service.api.openapi import document
from service.gateway.methods import METHODS
from service.problems import POLICIES

ROOT = Path(__file__).resolve().parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_the_documents_have_every_route() -> None:
    listed = re.findall(r"^\| `((?:GET|POST|PUT|DELETE) [^`]+)` \|", API, re.MULTILINE)
    assert sorted(listed) == sorted(f"{route.method} {route.path}" for route in make_table().routes)


def test_the_documents_have_what_every_item_holds() -> None:
    schemas = document(make_table(), "0")["components"]["schemas"]
    rows = re.findall(r"^\| ([a-z]+)(?:, history)? \| ((?:`\w+`(?:, )?)+) \|$", API, re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}
    pages = {name.removesuffix("Page"): page for name, page in schemas.items() if name.endswith("Page")}
    items = {name: page["properties"]["items"]["items"]["$ref"].rpartition("/")[2] for name, page in pages.items()}
    assert listed == {f"{name.lower()}s": list(schemas[item]["properties"]) for name, item in items.items()}


def test_the_documents_have_every_type_of_event_that_a_hub_can_hold() -> None:
    rows = re.findall(r"^\| (`(?:session|invocation)\.[^|]+) \|", API, re.MULTILINE)
    listed = [tag for row in rows for kind in re.findall(r"`([^`]+)`", row) for tag in tags(kind)]
    assert listed == [tag for tag in TAGS if not tag.startswith("node.")]


def test_the_documents_have_every_subject_of_a_hub_that_is_written() -> None:
    hub = HubSubjects(HubName("chat"), 1)
    assert hub.group("lobby") in API
    written = (hub.all(), hub.many(), hub.group("x"), hub.user("x"), hub.inbox("x"), hub.session("x"))
    shown = re.findall(r"`(\.[a-z<>.]+)`", API)
    assert [hub.prefix + re.sub("<[a-z]+>", "x", form) for form in shown] == list(written)


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
