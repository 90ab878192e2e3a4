"""Asynchronous code: asyncio's loops on gevent's, and the WebSocket of `async def` views.

Private to this package, but for the module `websocket`.
"""
