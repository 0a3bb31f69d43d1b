"""From the log to local connections: hear what is stored, notice what was missed, write it out in order.

    interest.py   which subjects this node hears, and for whom
    calls.py      what a call says, and whom of the local sessions it means
    feed.py       one dispatcher per partition: live or held
    backlog.py    what came by while it was held
    repair.py     what a held dispatcher does to become live again, and the tail check
    outbox.py     the bounded way out to one connection

Never reads Postgres, never asks another node, and knows no wire protocol: how a call is encoded is an argument.
"""
