"""The life of a socket, from its acceptance to its end, with gevent and without Django.

Private: only this package imports it.
"""
