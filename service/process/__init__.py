"""Composition roots: one module per process, the only places that see both Settings and the parts."""
