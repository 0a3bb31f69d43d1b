"""The query and command API over HTTP: reads from projections, changes by appending events."""
