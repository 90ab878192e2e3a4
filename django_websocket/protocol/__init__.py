"""The WebSocket protocol (RFC 6455) without input and output: bytes in, messages and events out, and the reverse.

Private: only this package imports it, and it imports nothing else of the package but `compat`.
"""
