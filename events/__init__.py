"""The language of the system: what happened, who it concerns, and how it is written down.

Pure: imports msgspec and inert parts of the standard library, never the rest of this project, and knows no clock,
socket or database.
"""
