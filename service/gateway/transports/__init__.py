"""How bytes get to a client and back. WebSocket only, so far."""
