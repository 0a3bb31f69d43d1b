"""Nodes: the lease that says a gateway lives."""
