"""The WebSocket protocol (RFC 6455) without input and output: bytes in, messages and events out, and the reverse.

Private to this package: only it imports this folder, which imports nothing else of the package but `compat`.
"""
