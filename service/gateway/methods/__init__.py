"""The hub methods that are built in, by name. ``hub.invoke`` is apart: it alone is pipelined (``invoke.py``)."""

from service.gateway.methods.table import METHODS

__all__ = ["METHODS"]
