"""How Sphinx makes the site of the documentation; `scripts/docs` runs it.

The pages are plain Markdown, and their links work on a code host as well. Where they lead to a file outside this
folder, the site has it as a page, if `INCLUDED_BY` names one, and otherwise to download.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import stringify_annotation

from django_websocket import __version__

settings.configure()
django.setup()

HERE = Path(__file__).parent
INCLUDED_BY = {
    "README.md": "index",
    "CHANGELOG.md": "project/changes",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "benchmarks/README.md": "project/benchmarks",
    "benchmarks/FIGURES.md": "project/figures",
}
# In HTML, so that they may have a light and a dark variant.
PICTURES = ["demonstration-light.png", "demonstration-dark.png"]  # of the README
PICTURES_OF_PAGES = ["monitoring-light.png", "monitoring-dark.png"]
# Names in the package's signatures that a reader cannot look up, and the modules that have them.
SPELT_OUT = {
    "OnSlow": "django_websocket.websocket",
    "OrRefused": "django_websocket.pubsub.replay",
    "Since": "django_websocket.pubsub.replay",
    "Present": "django_websocket.pubsub.presence",
    "Snapshot": "django_websocket.asgi.websocket",
}

project = "django-gevent-websocket"
release = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
smartquotes = False  # what stands in the pages is meant

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # named as code hosts name them

default_role = "py:obj"  # `name` in a docstring is code, and a link if the reference has it
add_module_names = False
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("Application", "Decorated", "View", "WSGIApplication")}

html_theme = "furo"
html_title = project
html_favicon = html_logo = "../test_project/static/icon.svg"
html_static_path = ["site.css", *PICTURES, *PICTURES_OF_PAGES]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b6b46",  # of the icon
        "color-brand-content": "#0b6b46",
        "code-font-size": "78%",
    },
    "dark_css_variables": {"color-brand-primary": "#55c796", "color-brand-content": "#55c796"},
}
pygments_dark_style = "github-dark"
html_domain_indices = False
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Connect what is below with Sphinx."""
    app.connect("autodoc-process-docstring", markdown_to_rst)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("include-read", start_links_from_this_folder)
    app.connect("source-read", find_pictures)
    app.connect("doctree-read", lead_to_pages)
    app.connect("env-check-consistency", find_names_without_an_entry)
    app.connect("missing-reference", find_in_other_modules)


def markdown_to_rst(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make code of the indented lines of a docstring, and links of the names of pages."""
    if lines and lines[0].startswith("Alias for field number"):  # what a named tuple says of its fields
        lines.clear()
    found: list[str] = []
    before = ""  # the last line that is not empty
    for line in lines:
        if line.startswith("    ") and found[-1:] == [""] and not before.startswith(" "):
            found += ["::", ""]
        found.append(re.sub(r"\bdocs/(\w+)\.md\b", r":doc:`/\1`", line))
        before = line or before
    lines[:] = found


def readable_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Hide the signatures of classes, which projects do not call, and spell out the short names in others."""
    if signature is None:
        return None
    if what in ("class", "exception") and not name.endswith(".ChannelLayer"):
        return "", None
    for short, module in SPELT_OUT.items():
        spelt_out = stringify_annotation(getattr(importlib.import_module(module), short), "smart")
        signature = re.sub(rf"\b{short}\b", spelt_out, signature)
    return signature, returns


def start_links_from_this_folder(app: Sphinx, file: Path, docname: str, content: list[str]) -> None:
    """Have the links of a file that a page includes lead to where they lead in the file itself."""
    content[0] = re.sub(r"\]\((?!\w+:|#)", f"](/{file.parent.as_posix()}/", content[0])
    for picture in PICTURES:
        content[0] = content[0].replace(f'"docs/{picture}"', f'"_static/{picture}"')


def find_pictures(app: Sphinx, docname: str, content: list[str]) -> None:
    """Have the pictures of a page be where the site has them."""
    for picture in PICTURES_OF_PAGES:
        content[0] = content[0].replace(f'"{picture}"', f'"_static/{picture}"')


def lead_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Have links to files outside this folder lead to the pages that include these."""
    for link in doctree.findall(addnodes.pending_xref):
        for file, page in INCLUDED_BY.items():
            if link["reftarget"] == str(HERE.parent / file.removesuffix(".md")):
                link["reftarget"] = page


def find_names_without_an_entry(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of whatever a module promises in `__all__` and the reference does not have."""
    domain = env.domains.python_domain
    for module in domain.modules:
        for name in importlib.import_module(module).__all__:
            if name != "register" and f"{module}.{name}" not in domain.objects:  # that one is for Django
                logging.getLogger(__name__).warning("The reference has no %s.%s; has it a docstring?", module, name)


def find_in_other_modules(
    app: Sphinx, env: BuildEnvironment, link: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Have a docstring's `MessagesMissed` or `WebSocket.send` lead to the class of another module."""
    name = link["reftarget"].removesuffix("()")
    objects = env.domains.python_domain.objects
    found = [full for full in objects if full.endswith(f".{name}")]
    if link.get("refdomain") != "py" or not name[:1].isupper() or len(found) != 1:
        return None
    entry = objects[found[0]]
    return make_refnode(app.builder, link["refdoc"], entry.docname, entry.node_id, content, found[0])
