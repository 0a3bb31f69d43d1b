"""Clients come in here: SignalR over WebSocket, negotiation, connection tokens."""
