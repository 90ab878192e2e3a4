"""What mypy and pyright say of a project's code: of the documentation's examples, and of what else a view may be."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from .support.documentation import Project
from .support.servers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # mypy reads all of Django

BIN = Path(sys.executable).parent
TYPED_PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("history", "presence", "publish", "security", "testing", "tokens", "views")),
]
TYPED_RECIPES = [f"docs/recipes/{name}.md" for name in ("notifications", "dashboard", "progress", "rooms")]  # apps
RECIPES_FOR_CHAT = [f"docs/recipes/{name}.md" for name in ("forms", "limits", "tenants", "uploads")]
ANNOTATIONS = {"request": "HttpRequest", "websocket": "WebSocket", "room": "str", "slug": "str", "pk": "int"}
CLIENT = "client: Client  # pyright: ignore[reportIncompatibleVariableOverride]"
IMPORTS = """
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django_websocket.testing import Client
from django_websocket.websocket import WebSocket
"""

MYPY = """
[mypy]
strict = true
plugins = mypy_django_plugin.main
cache_dir = {cache}

[mypy.plugins.django-stubs]
django_settings_module = mysite.settings

[mypy-mysite.*]
ignore_errors = true
"""
# The examples are short: what is neither a view nor a test has no annotations there.
MYPY_OF_EXAMPLES = """
[mypy-chat.*,dashboard.*,jobs.*,notifications.*,rooms.*]
disallow_untyped_calls = false
disallow_untyped_decorators = false
disallow_untyped_defs = false
warn_no_return = false

[mypy-celery.*]
ignore_missing_imports = true
"""


@pytest.fixture(scope="module")
def original(readme: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return readme


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy has read of the libraries, which all tests of this file share, and the next run, too."""
    kept: pytest.Cache | None = getattr(request.config, "cache", None)
    return tmp_path_factory.mktemp("mypy") if kept is None else kept.mkdir("mypy")


def run(directory: Path, program: str, *args: str) -> str:
    """Run a type checker, and return what it has found, "" for nothing."""
    result = subprocess.run(
        [BIN / program, *args], cwd=directory, capture_output=True, text=True, timeout=280, check=False
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr


def mypy(project: Project, cache: Path, more: str, *files: str) -> str:
    (project.directory / "mypy.ini").write_text(MYPY.format(cache=cache) + more)
    return run(project.directory, "mypy", *files)


def pyright(directory: Path, mode: str, files: Mapping[str, Sequence[str]]) -> str:
    """Check the files of several projects, by their folders, which share what pyright reads of the libraries.

    basedpyright is pyright with everything that it needs in one wheel; in these modes it says what pyright says.
    """
    config = {
        "typeCheckingMode": mode,
        "enableTypeIgnoreComments": True,
        "include": [f"{root}/{file}" for root, names in files.items() for file in names],
        "executionEnvironments": [{"root": root} for root in files],
    }
    (directory / "pyrightconfig.json").write_text(json.dumps(config))
    found = run(directory, "basedpyright", "--pythonpath", sys.executable)
    if found and (errors := [line for line in found.splitlines() if " - error: " in line]):
        # Only Django's plugin for mypy knows which model `request.user` is.
        return "\n".join(line for line in errors if 'for class "_User"' not in line)
    return found


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_each_form_of_a_view_and_the_test_client_have_types(
    original: Project, cache: Path, tmp_path: Path, checker: str
) -> None:
    project = original.copy(tmp_path / "mysite")
    project.write("chat/typed.py", (ROOT / "tests" / "site" / "typed" / "views.py").read_text())
    if checker == "mypy":
        assert mypy(project, cache, "", "chat/typed.py") == ""
    else:
        assert pyright(tmp_path, "strict", {"mysite": ["chat/typed.py"]}) == ""


def with_pages(original: Project, directory: Path, *pages: str) -> tuple[Project, list[str]]:
    """Return a project with the examples of some pages, and the files that have annotations."""
    project = original.copy(directory)
    for page in pages:
        if page != "README.md":
            project.put(page)
    files = [str(path.relative_to(project.directory)) for path in annotate(project)]
    assert "chat/views.py" in files
    return project, files


@pytest.mark.parametrize("page", TYPED_PAGES)
def test_examples_of_the_documentation_have_types(original: Project, cache: Path, tmp_path: Path, page: str) -> None:
    project, files = with_pages(original, tmp_path / "mysite", page)
    assert mypy(project, cache, MYPY_OF_EXAMPLES, *files) == ""


def test_recipes_with_apps_of_their_own_have_types(original: Project, cache: Path, tmp_path: Path) -> None:
    project, files = with_pages(original, tmp_path / "mysite", *TYPED_RECIPES)
    for app in ("notifications", "dashboard", "jobs", "rooms"):
        assert f"{app}/views.py" in files
        (project.directory / app / "__init__.py").touch()  # `startapp` makes it
    assert mypy(project, cache, MYPY_OF_EXAMPLES, *files) == ""


def test_examples_of_the_documentation_have_types_for_pyright(original: Project, tmp_path: Path) -> None:
    found = {name: with_pages(original, tmp_path / name, page) for page in TYPED_PAGES if (name := Path(page).stem)}
    found["recipes"] = with_pages(original, tmp_path / "recipes", *RECIPES_FOR_CHAT)
    assert pyright(tmp_path, "standard", {name: files for name, (_, files) in found.items()}) == ""


def test_recipes_that_add_to_the_chat_have_types(original: Project, cache: Path, tmp_path: Path) -> None:
    project, files = with_pages(original, tmp_path / "mysite", *RECIPES_FOR_CHAT)
    serializers = "[mypy-chat.serializers]\ndisallow_any_generics = false\n"
    assert mypy(project, cache, MYPY_OF_EXAMPLES + serializers, *files) == ""


def annotate(project: Project) -> Iterator[Path]:
    """Write the annotations that docs/views.md asks for into views and tests; return the files that have them."""
    apps = [path for path in project.directory.iterdir() if path.is_dir() and path.name != "mysite"]
    for path in sorted(path for app in apps for path in app.glob("*.py")):
        source = path.read_text()
        if ") -> None:" in source:
            yield path  # it has them
            continue
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [argument.arg for argument in node.args.args]
            known = {"self", "client", *ANNOTATIONS}.issuperset(names) and node.args.kwarg is None
            header = lines[node.lineno - 1]
            if known and ("websocket" in names or node.name.startswith(("test_", "setUp", "undecorated"))):
                returns = {type(each.value) for each in ast.walk(node) if isinstance(each, ast.Return)} - {type(None)}
                for name, annotation in ANNOTATIONS.items():
                    header = re.sub(rf"([(,] ?){name}(?=[,)])", rf"\1{name}: {annotation}", header)
                header = re.sub(r"\bclient(?=\))", "client: Client", header)
                result = "HttpResponse | None" if returns else "None"
                lines[node.lineno - 1] = header.replace("):", f") -> {result}:")
        text = "\n".join(lines).replace("    client_class = Client", f"    client_class = Client\n    {CLIENT}")
        if text != source.rstrip("\n") or path.name == "views.py":
            path.write_text(f"from __future__ import annotations\n{IMPORTS}{text}\n")
            yield path
