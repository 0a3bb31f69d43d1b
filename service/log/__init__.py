"""The event log: one port, and what implements it."""
