from urllib.parse import quote


def second_window(request):
    """Give templates this site's other name, where somebody else can log in: each name has its own cookies."""
    name, colon, port = request.get_host().rpartition(":")
    other = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}.get(name)
    return {"second_window": f"{request.scheme}://{other}:{port}/?next={quote(request.path)}" if other else ""}
