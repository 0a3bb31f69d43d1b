"""How a setting is spelt: a small parser for each kind of value, which says what it expects.

Owns durations, sizes, keys, addresses and names in ``HUBLOG_*`` variables. Knows no setting.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from events.ids import from_b64url

PREFIX = "HUBLOG_"
KEY_BYTES = 32
JWT_SECRET_BYTES_MIN = 32
DAY_S = 86_400


class Secret:
    """Text that no log line, traceback or repr shows."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def reveal(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class Variable:
    """How one field is read: from which variable, by which parser, and what it means."""

    def __init__(
        self, name: str, parse: Callable[[str], Any], doc: str, *, shown: str | None = None, masked: bool = False
    ) -> None:
        """``parse`` raises ValueError with the expectation ("a whole number from 1 to 64"); ``shown`` is the default
        for people where the value itself says little; a ``masked`` value is never quoted."""
        self.name = PREFIX + name
        self.parse = parse
        self.doc = doc
        self.shown = shown
        self.masked = masked

    @property
    def expectation(self) -> str:
        """What a value must be, in the words that refuse a wrong one."""
        try:
            self.parse("\0 ,")
        except ValueError as exc:
            return str(exc)
        return "a path"  # the only thing that may be anything

    def default_shown(self, default: object) -> str:
        """The default as the documentation has it: code where it is a value, words where it is not."""
        if self.shown is not None:
            return self.shown
        return "none" if default is None else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def text(text: str) -> str:
    return text


def one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(" or ".join(allowed))
        return text

    return parse


def whole(first: int, last: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not first <= int(text) <= last:
            raise ValueError(f"a whole number from {first} to {last}")
        return int(text)

    return parse


def replicas(text: str) -> int:
    if text not in {"1", "3", "5"}:
        raise ValueError("1, 3 or 5: an even number survives no more than the odd one below it")
    return int(text)


_DURATION_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": float(DAY_S)}
_SIZE_UNITS = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


def _spelt(seconds: float) -> str:
    for unit, length in (("d", DAY_S), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def seconds(first: float, last: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd]?)", text)
        if match is None or not first <= (seconds := float(match[1]) * _DURATION_UNITS[match[2]]) <= last:
            raise ValueError(f"seconds, or a number with s, m, h or d, from {_spelt(first)} to {_spelt(last)}")
        return seconds

    return parse


def whole_seconds(first: int, last: int) -> Callable[[str], int]:
    parse_seconds = seconds(first, last)

    def parse(text: str) -> int:
        if (seconds := parse_seconds(text)) != int(seconds):
            raise ValueError(f"whole seconds, or a number with s, m, h or d, from {_spelt(first)} to {_spelt(last)}")
        return int(seconds)

    return parse


def size(first: int, last: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,10})(|KiB|MiB)", text)
        if match is None or not first <= (size := int(match[1]) * _SIZE_UNITS[match[2]]) <= last:
            raise ValueError(f"bytes, or a number with KiB or MiB, from {first} to {last}")
        return size

    return parse


def host(text: str) -> str:
    if text != "localhost":
        try:
            ipaddress.ip_address(text)
        except ValueError:
            # Not a name: nobody could say whether it is loopback before it is resolved.
            raise ValueError("an address of this machine, e.g. 127.0.0.1 or 0.0.0.0, or localhost") from None
    return text


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def jwt_key(text: str) -> Secret:
    """Only that it looks like keys: whether they are any is seen where they are used."""
    if "-----BEGIN " not in text:
        for key in re.split(r"[,\s]+", text.strip()):
            try:
                if len(from_b64url(key.rstrip("="))) >= JWT_SECRET_BYTES_MIN:
                    continue
            except ValueError:
                pass  # said below, without quoting the secret
            raise ValueError("secrets of at least 32 bytes in base64url, joined by commas, or keys in PEM")
    return Secret(text)


def claim(text: str) -> str:
    if not re.fullmatch(r"[^\s,]{1,256}", text):
        raise ValueError("1 to 256 characters without spaces and commas")
    return text


def nats_url(text: str) -> Secret:
    if not re.match(r"(nats|tls)://[^\s]+\Z", text):
        raise ValueError("nats://… or tls://…, several joined by commas")
    return Secret(text)


def postgres_dsn(text: str) -> Secret:
    if not re.match(r"postgres(ql)?://[^\s]*\Z", text):
        raise ValueError("postgresql://…")
    return Secret(text)


def secrets(text: str) -> Secret:
    keys = [key.strip() for key in text.split(",")]
    for key in keys:
        try:
            if len(from_b64url(key.rstrip("="))) == KEY_BYTES:
                continue
        except ValueError:
            pass  # said below, without quoting the secret
        raise ValueError("keys of 32 bytes in base64url, joined by commas")
    return Secret(",".join(keys))


def node(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise ValueError("1 to 63 letters, digits, dots, dashes and underscores")
    return text


_ORIGIN = re.compile(r"https?://([a-z0-9_][a-z0-9_.-]*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"http://.*:80|https://.*:443")


def origins(text: str) -> tuple[str, ...]:
    """They are compared as they stand: one that no browser spells so would never be met."""
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    if any(one != "*" and (not _ORIGIN.fullmatch(one) or _DEFAULT_PORT.fullmatch(one)) for one in origins):
        raise ValueError("origins as browsers send them, like https://app.example.com, joined by commas, or *")
    return origins


def endpoint(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError("http://… or https://…, without credentials (OTEL_EXPORTER_OTLP_HEADERS has them)")
    return text


def ratio(text: str) -> float:
    if not re.fullmatch(r"0|1|[01]?\.[0-9]{1,9}", text) or float(text) > 1:
        raise ValueError("a number from 0 to 1")
    return float(text)


def factory(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError("package.module:factory")
    return text
