"""The life of a socket: from its acceptance through frames and deadlines to its end. Private; gevent, and no Django."""
