"""The life of a request: from the handshake through the view's conversation to its end. Private to this package."""
