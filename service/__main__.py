"""``hublog`` and ``python -m service``: runs the command line, and says errors in words instead of tracebacks."""

import sys
from collections.abc import Iterator

from events.errors import HublogError
from service.cli import app

EXIT_REFUSED = 2


def main() -> None:
    try:
        app()
    except* HublogError as group:
        for error in _leaves(group):
            # A process of ours that failed has said its own hint, which may be the same.
            hint = "" if error.message.endswith(error.hint) else f"{error.hint}\n"
            sys.stderr.write(f"hublog: {error.message}\n{hint}")
        sys.exit(EXIT_REFUSED)


def _leaves(error: BaseException) -> Iterator[HublogError]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif isinstance(error, HublogError):
        yield error


if __name__ == "__main__":
    main()
