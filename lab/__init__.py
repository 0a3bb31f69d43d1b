"""Load and measurements, on the public wire only: imports nothing of events, service and projections."""
