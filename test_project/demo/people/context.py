from urllib.parse import quote


def second_window(request):
    """Give templates this site's other name, where somebody else can log in: each name has its own cookies."""
    name, colon, port = request.get_host().rpartition(":")
    other = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}.get(name)
    if not other:
        return {"second_site": "", "second_window": ""}
    site = f"{request.scheme}://{other}:{port}"
    return {"second_site": site, "second_window": f"{site}/?next={quote(request.path)}"}
