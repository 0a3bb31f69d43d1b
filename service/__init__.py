"""The service: its processes, and what they are made of."""

VERSION = "0.1.0"
"""Also the distribution's. It stands here because an image runs the tree as it is, without installing it."""
