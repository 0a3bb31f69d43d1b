"""The SignalR hub protocol with no I/O: bytes in, messages out; messages in, bytes out."""
