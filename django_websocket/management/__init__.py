"""The management command `runwebsocket`, and the server that it starts. Private to this package."""
