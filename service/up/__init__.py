"""The embedded default: real servers and the service's own processes under one supervisor."""
