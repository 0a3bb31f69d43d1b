"""Questions to the read models: bare psycopg, static SQL, one statement an answer.

Every function takes a ``ReadModel`` first. ``after`` is the ``next`` of the page before, or None; ``limit`` is trusted
(the API bounds it). Each answer states the position that it reflects, read in the same snapshot, and its age.

| module | function | answer |
|---|---|---|
| ``model`` | ``ReadModel(dsn, partitions)``: ``close()``, ``partition(hub)``; opened on first use | |
| | ``.wait_for(position, timeout_s)``: read your writes | the position reached |
| ``sessions`` | ``page(model, hub, state=, user=, group=, node=, limit=, after=, last_renewal=)`` | ``Page[Session]`` |
| | ``find(model, hub, session_id, last_renewal=)`` | ``Found[Session]`` |
| ``groups`` | ``page(model, hub, limit=, after=)`` | ``Page[Group]`` |
| | ``find(model, hub, group)`` | ``Found[Group]`` |
| ``members`` | ``page(model, hub, group, limit=, after=)`` | ``Page[Member]`` |
| ``invocations`` | ``page(model, hub, limit=, after=)``, descending | ``Page[Invocation]`` |
| | ``find(model, hub, invocation_id)`` | ``Found[Invocation]`` |
| ``events`` | ``page(model, hub, type=, subject=, limit=, after=)`` | ``Page[Event]`` |
| | ``history(model, hub, session_id, limit=, after=)`` | ``Page[Event]`` |
| ``hubs`` | ``page(model, limit=, after=)`` | ``Page[Hub]`` |
| | ``find(model, hub)`` | ``Found[Hub]`` |
| ``nodes`` | ``page(model, limit=, after=, last_renewal=)`` | ``Page[Node]`` |
| ``projections`` | ``page(model)`` | ``Page[Projection]`` |

``last_renewal(incarnation)`` is when a lease was last renewed, microseconds since 1970, or None: it becomes
``lastSeenAt`` of what is active. All raise ReadModelUnavailable, InvalidQuery (text that cannot be a name), and, for
cursors that are positions, InvalidPosition and EpochMismatch.
"""

from projections.read.answers import Found, Page
from projections.read.model import ReadModel

__all__ = ["Found", "Page", "ReadModel"]
