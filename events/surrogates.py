"""JSON that is cut inside a character.

``"\\ud83d"`` is how JavaScript spells half of an emoji, which ``text.slice(0, n)`` leaves behind: a common mistake,
valid by JSON's grammar, and not text, since UTF-8 has no bytes for it. msgspec refuses it with words that do not help
("truncated"), so whoever refuses looks here for the reason.
"""

import json
import re
from typing import Any, NoReturn

LONE_SURROGATE = "a string holds half of a surrogate pair, a character cut in two"

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_leniently(raw: bytes) -> Any:
    """The value of a JSON text that is wrong only by surrogates that stand alone. Cold path: it decodes everything.

    Raises: ValueError where nothing of the kind is in it, or something else is wrong too; RecursionError.
    """
    if _ESCAPED_SURROGATE.search(raw) is None:
        raise ValueError("no surrogate is escaped in it")
    return json.loads(raw, parse_constant=_no_constant)


def cut_inside_a_character(raw: bytes) -> bool:
    """Whether that is what is wrong with a JSON text that msgspec refuses."""
    try:
        read_leniently(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
