"""The WebSocket protocol, RFC 6455, without input or output: bytes in, messages and events out, and the reverse."""
