"""Asynchronous code on gevent's loop. Private to this package; gevent and asyncio, and no Django."""
