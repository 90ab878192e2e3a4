"""Imports point down, without a circle; what is private is marked, and stays inside; what is public is named.

docs/internals.md has the floors and the public modules. Unit tests may import private modules, and the support of the
tests may; nothing else outside the package does.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from itertools import pairwise

import pytest

from .support.documentation import GUIDES, PAGES, blocks, commands
from .support.fixtures import SITE, STOCK_WORKER
from .support.layers import (
    PACKAGE,
    Import,
    circles,
    floors,
    imported_names,
    imports,
    public_modules,
    sources,
    statements,
)
from .support.servers import ROOT, WORKER

DJANGO = ["django", "asgiref"]
PUBSUB = ["django_websocket.pubsub", "redis"]
SERVERS = ["geventwebsocket", "gunicorn"]

# Modules that work without the libraries that others beside them need.
LIGHT = {
    "redis": ["exceptions", "pubsub", "pubsub.broker", "pubsub.hub", "pubsub.memory", "websocket"],
    "gunicorn": ["exceptions", "pubsub", "select", "transport.connection", "websocket"],
}

# Imports inside functions that point up, or that would close a circle at the top of a module, and why they are there.
DELAYED = {
    ("pubsub.process", "conf"): "publishing asks for the settings of the project, of which nothing else here knows",
}

# The names that people's commands, other repositories and settings rely on, whatever the pages mention.
FIXED = {
    "wsgi": ["get_wsgi_websocket_application"],
    "decorators": ["websocket", "websocket_loop"],
    "worker": ["GeventWebSocketWorker"],
    "websocket": ["WebSocket"],
    "select": ["select"],
    "signals": ["websocket_connected", "websocket_disconnected"],
    "exceptions": ["BrokerError", "ConnectionClosed", "HandshakeFailed", "MessagesMissed", "WebSocketError"],
    "sessions": ["update_session"],
    "logins": ["disconnect", "login"],
    "monitoring": ["Connection", "Connections", "Process", "connections", "disconnect", "usernames"],
    "addresses": ["websocket_url"],
    "pubsub": ["publish", "subscribe"],
    "pubsub.broker": ["Broker", "Listener", "Receiver", "Subscriber"],
    "testing": ["Client", "ClientWebSocket", "HandshakeRefused", "WebSocketLiveServerTestCase", "captured_messages"],
    "templatetags.websockets": ["register", "websocket_url"],
    "servers.chat": ["chat"],
    "servers.echo": ["echo"],
    "servers.ping": ["ping"],
}

IMPORT = """
import json, sys
before = {*sys.modules}
brought = {}
for name in sys.argv[1:]:
    __import__(name)
    brought[name] = sorted({*sys.modules} - before)
print(json.dumps(brought))
"""


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Floors


@cache
def arrows() -> list[Import]:
    """All imports within the package."""
    return imports(sources())


def floor_of(module: str) -> int:
    """The floor on which a module stands, the lowest one is 0."""
    for number, names in enumerate(floors()):
        if module in names or f"{module.partition('.')[0]}/" in names:
            return number
    pytest.fail(f"{module} stands on no floor: name it in the table of docs/internals.md")


def test_every_module_stands_on_one_floor_and_every_floor_has_its_modules() -> None:
    modules = [name for name in sources() if name]
    for name in modules:
        floor_of(name)
    named = [name for names in floors() for name in names]
    assert len(named) == len(set(named)), "a module stands on two floors"
    for name in named:
        folder = name.removesuffix("/")
        has_modules = any(each.startswith(f"{folder}.") for each in modules)
        assert folder in modules and name.endswith("/") == has_modules, name


def test_imports_point_down() -> None:
    up = [each for each in arrows() if each.target and floor_of(each.target) > floor_of(each.module)]
    assert [each for each in up if (each.module, each.target) not in DELAYED or each.when == "imported"] == []


def test_imports_make_no_circle() -> None:
    """Not at the top of modules, nor inside functions, apart from those that are listed with their reason."""
    graph: dict[str, set[str]] = {}
    for each in arrows():
        if each.when != "typed" and (each.module, each.target) not in DELAYED:
            graph.setdefault(each.module, set()).add(each.target)
    assert circles(graph) == []


def test_every_delayed_import_that_is_listed_is_still_there() -> None:
    present = {(each.module, each.target) for each in arrows() if each.when == "called"}
    assert sorted(set(DELAYED) - present) == []


def test_django_is_not_imported_below_the_floor_of_the_settings() -> None:
    ground = floor_of("conf")
    for name, tree in sources().items():
        if name and floor_of(name) < ground:
            for node, when in statements(tree):
                roots = {full.partition(".")[0] for full in imported_names(node, name)}
                assert when != "imported" or not roots & {*DJANGO}, f"{name} imports Django"


@cache
def needing(library: str) -> set[str]:
    """The modules that cannot be imported without a library, whether they import it themselves or another one does."""
    found = {
        name
        for name, tree in sources().items()
        for node, when in statements(tree)
        if when == "imported" and library in {full.partition(".")[0] for full in imported_names(node, name)}
    }
    while more := {each.module for each in arrows() if each.when == "imported" and each.target in found} - found:
        found |= more
    return found


@cache
def rows() -> dict[str, list[tuple[str, list[str]]]]:
    """Modules, each with what it may not bring along.

    Those of a row are imported one after the other into one interpreter, so that a module is blamed for what it brings
    beside those before it.
    """
    ground = floor_of("conf")
    below = sorted((name for name in sources() if name and floor_of(name) < ground), key=floor_of)
    for library, names in LIGHT.items():
        assert not needing(library) & {*names}, f"{library} is needed by modules that have to work without it"
    early = ["compat", *(name for name in below if name.partition(".")[0] == "protocol")]
    gunicorn = [name for name in below if name in needing("gunicorn")]
    redis = [name for name in below if name in needing("redis") and name not in gunicorn]
    late = {*early, *gunicorn, *redis}
    transport = [name for name in below if name not in late and name.partition(".")[0] in ("exceptions", "transport")]
    transport.append("select")
    rest = [name for name in below if name not in late and name not in transport]
    phases = [
        (["", "protocol"], ["gevent", "websockets", "socket", "select", "redis", *SERVERS, *DJANGO]),
        (early, ["gevent", "redis", *SERVERS, *DJANGO]),
        (transport, ["gunicorn", *PUBSUB, *DJANGO]),
        (rest, ["gunicorn", "redis", *DJANGO]),
        (redis, ["gunicorn", *DJANGO]),
        (gunicorn, DJANGO),
    ]
    return {
        "without Django": [(name, absent) for names, absent in phases for name in names],
        "without publish/subscribe": [(name, [*PUBSUB, *DJANGO]) for name in ("worker", "management.server")],
        "without a server": [("conf", ["gunicorn", *PUBSUB])],
    }


def full_name(module: str) -> str:
    return f"{PACKAGE}.{module}".rstrip(".")


@pytest.mark.parametrize("row", ["without Django", "without publish/subscribe", "without a server"])
def test_module_brings_along_nothing_from_above(row: str) -> None:
    """Checked in a fresh interpreter, since other packages bring things along too."""
    brought = json.loads(python(IMPORT, *(full_name(module) for module, _ in rows()[row])))
    for module, absent in rows()[row]:
        unwanted = tuple(f"{name}." for name in absent)
        loaded = brought[full_name(module)]
        assert full_name(module) in loaded
        assert [name for name in loaded if f"{name}.".startswith(unwanted)] == [], module


def test_importing_changes_nothing_in_the_standard_library() -> None:
    code = "import socket, select, threading; before = socket.socket, select.select, threading.Thread.start\n"
    code += f"import {', '.join(full_name(module) for row in rows().values() for module, _ in row)}\n"
    code += "assert before == (socket.socket, select.select, threading.Thread.start)"
    python(code)


def imported(module: ast.Module) -> set[str]:
    """The full names that a module imports from elsewhere, at its top or anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_settings_are_read_in_one_place() -> None:
    readers = {name for name, module in sources().items() if "django.conf" in imported(module)}
    assert readers <= {"conf"}


# Public and private


def test_every_private_module_says_so() -> None:
    """In its own docstring, or in that of the private folder or the public package that it belongs to."""
    modules = sources()
    public = {*public_modules()}
    assert public <= {*modules}
    for name in modules:
        folder = name.rpartition(".")[0]
        opens_to_public = any(each.startswith(f"{name}.") for each in public)
        if name and name not in public and not opens_to_public:
            docstrings = [ast.get_docstring(modules[each]) or "" for each in (name, folder) if each]
            assert any(re.search(r"\b[Pp]rivate\b", docstring) for docstring in docstrings), (
                f"{name} is not public, according to docs/internals.md: its docstring, or that of its folder, must say "
                f"that it is private"
            )


def exported(tree: ast.Module) -> list[str] | None:
    """The names in a module's `__all__`, None if it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


@cache
def mentions() -> list[tuple[str, str, str]]:
    """What the pages, and the code beside the package, take from it: (where, module, name); the name may be empty."""
    found = []
    modules = sources()

    def take(where: str, full: str) -> None:
        path = full.partition(".")[2]
        module = path
        while module and module not in modules:
            module = module.rpartition(".")[0]
        found.append((where, module, path[len(module) :].lstrip(".")))

    for where, code in code_outside():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for full in imported_names(node):
                    if full.partition(".")[0] == PACKAGE:
                        take(where, full)
    for where in (*PAGES, *GUIDES, "deploy/websocket.conf.py", "benchmarks/servers.py"):
        text = (ROOT / where).read_text()
        text = re.sub(r"^(?:from|import) .*$", "", text, flags=re.MULTILINE)  # those are taken above
        for full in re.findall(r"(?<![\w./-])django_websocket(?:\.\w+)+", text):
            take(where, full)
    return list(dict.fromkeys(found))


def code_outside() -> Iterator[tuple[str, str]]:
    """The Python code of everything beside the package and its tests."""
    for folder in ("test_project", "benchmarks", "deploy"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text()
    for page in PAGES:
        for number, block in enumerate(blocks(page), 1):
            if block.language == "python":
                yield f"{page}, block {number}", block.code


def test_what_is_outside_imports_public_modules_only() -> None:
    public = {"", *public_modules()}
    assert len(mentions()) > 50
    assert [(where, module) for where, module, _ in mentions() if module not in public] == []


def test_ready_made_servers_use_public_names_only() -> None:
    for name, module in sources().items():
        if name.startswith("servers."):
            for node in ast.walk(module):
                if isinstance(node, ast.Attribute):
                    assert not node.attr.startswith("_"), f"{name}: {node.attr}"
    public = {"decorators", "pubsub", "select", "websocket", "exceptions"}
    used = {(each.module, each.target) for each in arrows() if each.module.startswith("servers.")}
    assert used and {target for _, target in used} <= public


def test_all_of_a_public_module_names_what_others_take_from_it() -> None:
    modules = sources()
    for module in public_modules():
        names = exported(modules[module])
        assert names is not None, f"{module} is public, and has no __all__"
        assert len(names) == len(set(names)), module
        assert [name for name in FIXED.get(module, ()) if name not in names] == [], module
        for where, taken, name in mentions():
            if taken == module and name and f"{module}.{name}" not in modules:
                assert name.partition(".")[0] in names, f"{where} takes {name} from {module}, whose __all__ has it not"


def test_reference_has_every_public_name() -> None:
    """scripts/docs makes it, and warns of a name in `__all__` that has no docstring."""
    reference = "\n".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.rst"))
    modules = sources()
    for module in public_modules():
        if module in ("apps", "checks", "conf"):  # for Django itself; docs/settings.md has what they do
            continue
        found = re.search(rf"^\.\. automodule:: {PACKAGE}\.{re.escape(module)}\n(?:   .+\n)*", reference, re.MULTILINE)
        assert found, f"docs/reference/ has no automodule for {module}"
        if "   :members:\n" not in found[0]:  # which takes what `__all__` has
            for name in exported(modules[module]) or ():
                assert f".. autoclass:: {name}\n" in reference, f"docs/reference/ has {module} without {name}"


RESOLVE = """
import django, importlib, json, sys
django.setup()
missing = []
for module, name in json.loads(sys.argv[1]):
    try:
        found = importlib.import_module(module)
        for part in filter(None, name.split(".")):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        missing.append(f"{module}: {error}")
print(json.dumps(missing))
"""


def test_every_name_that_is_mentioned_or_exported_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "testsite.settings")
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    modules = sources()
    wanted = {(module, name) for _, module, name in mentions()}
    wanted |= {(module, name) for module in public_modules() for name in exported(modules[module]) or ()}
    wanted |= {(module, name) for module, names in FIXED.items() for name in names}
    full = sorted((f"{PACKAGE}.{module}".rstrip("."), name) for module, name in wanted)
    assert json.loads(python(RESOLVE, json.dumps(full))) == []


def test_workers_on_the_command_lines_of_the_pages_can_be_loaded() -> None:
    lines = [shlex.split(line) for page in PAGES for line in commands(page) if "gunicorn" in line]
    found = {worker for words in lines for option, worker in pairwise(words) if option == "-k"}
    assert found >= {WORKER, STOCK_WORKER}
    code = "import sys; from gunicorn.util import load_class; print(*map(load_class, sys.argv[1:]))"
    printed = python(code, *sorted(found), "egg:django-gevent-websocket#GeventWebSocketWorker")
    assert printed.count("GeventWebSocketWorker") == len(found) + 1
    [entry] = metadata.entry_points(group="gunicorn.workers", name="GeventWebSocketWorker")
    assert entry.value.replace(":", ".") == WORKER
