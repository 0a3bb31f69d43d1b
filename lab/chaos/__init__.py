"""Chaos: breaks an installation while it works, keeps the history, and checks it with a model of its own."""
