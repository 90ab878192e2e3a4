"""The words of the documentation are in a dictionary, or in tests/words.txt, the terms of the field.

Hunspell checks them, with the American dictionary that comes with chunspell: no British one is packaged so that pip
installs it everywhere. The few British forms that it does not know are in the file as well; `AMERICAN` finds the forms
that it knows, but that are not British.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pytest
from hunspell import Hunspell

import django_websocket

from .support.servers import ROOT

TERMS = ROOT / "tests" / "words.txt"
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.rst"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# What is not prose: fenced, indented and inline code, figures, comments, tags, targets of links, directives.
FENCE = re.compile(r"^( *)(`{3,})[^`\n]*\n.*?^\1\2$", re.MULTILINE | re.DOTALL)
FIGURES = re.compile(r"<!-- figures: .*?<!-- end of figures -->", re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=::\n)|^)(?:(?: {4,}|\t)[^\n]*\n+)+")
TOCTREE = re.compile(r"^:::\{toctree\}.*?^:::$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^ *(?::::|\.\.).*$|^ *:[\w-]+:(?: .*|$)", re.MULTILINE)
INLINE = re.compile(r"<!--.*?-->|``.+?``|:\w+:`[^`]*`|`[^`]*`|\]\([^)]*\)|<[^<>]+>|\w+://\S+", re.DOTALL)

# A word, or several with hyphens between them. A part of a name, such as docs/index.md or max_size, is not a word.
WORD = re.compile(r"(?<![\w@./-])[^\W\d_]+(?:['’-][^\W\d_]+)*(?![\w@/=]|\.\w)")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a name such as BrokerError
ACRONYM = re.compile(r"[A-Z]{2,}s?")
AMERICAN = re.compile(
    r"(?:behavior|color|defense|favor|flavor|honor|licenses?\b|neighbor|offense|gray|center|catalog\b)|"
    r"(?:cancel|label|model|signal|travel)(?:ed|ing)\b|(?!siz|resiz|priz|seiz)\w+[iy]z(?:e[ds]?|ing|ation)\b"
)


@cache
def dictionary() -> Hunspell:
    return Hunspell("en_US")


@cache
def terms() -> tuple[str, ...]:
    return tuple(TERMS.read_text().splitlines())


def prose_of_page(text: str) -> str:
    """Return a page of Markdown or reStructuredText without its code; lines keep their numbers."""
    for pattern in (FIGURES, FENCE, INDENTED, TOCTREE, DIRECTIVE, INLINE):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n") or " ", text)
    return text


def docstrings(module: str) -> Iterator[str]:
    """Yield the public docstrings of a module, without the code that is indented in them."""
    path = Path(django_websocket.__file__).parent.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield INDENTED.sub("\n", f"{ast.get_docstring(node) or ''}\n")
        if isinstance(node, (ast.Module, ast.ClassDef)):
            nodes += [inner for inner in node.body if not getattr(inner, "name", "_").startswith("_")]


@cache
def texts() -> dict[str, str]:
    """Return the prose of the documentation by where it comes from."""
    found = {str(page.relative_to(ROOT)): prose_of_page(page.read_text()) for page in (*PAGES, *REFERENCE)}
    for name in {name for page in REFERENCE for name in re.findall(r"automodule:: (\S+)", page.read_text())}:
        found[name] = prose_of_page("\n".join(docstrings(name)))
    return found


def words(text: str, known: Collection[str]) -> Iterator[tuple[int, str]]:
    """Yield the words of a prose, without the ending of a possessive, each with the number of its line."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in WORD.finditer(line):
            word = re.sub(r"['’]s?$", "", match[0].replace("’", "'"))
            for each in [word] if word in known else word.split("-"):
                yield number, each


def is_right(word: str, known: Collection[str]) -> bool:
    if AMERICAN.match(word.lower()):
        return False
    if ACRONYM.fullmatch(word) or word in known or word.removesuffix("s") in known or dictionary().spell(word):
        return True
    if word == word.capitalize():
        return word.lower().removesuffix("s") in known  # at the beginning of a sentence
    parts = PART.findall(word)  # a name is right if its parts are
    return "".join(parts) == word and len(parts) > 1 and all(is_right(part, known) for part in parts)


def unknown(text: str, known: Collection[str]) -> list[tuple[int, str]]:
    return [(number, word) for number, word in words(text, known) if not is_right(word, known)]


def test_every_word_of_the_documentation_is_in_a_dictionary() -> None:
    wrong = [
        f"{place}:{number}: {word}" for place, text in texts().items() for number, word in unknown(text, {*terms()})
    ]
    assert not wrong, f"Correct these words, or add a term of the field to tests/words.txt: {', '.join(wrong)}"


def test_the_terms_are_sorted_and_each_is_needed() -> None:
    known = terms()
    assert list(known) == sorted(set(known), key=lambda term: (term.lower(), term))
    used = {word for text in texts().values() for _, word in words(text, {*known})}
    used |= {part for word in used for part in PART.findall(word)}
    used |= {word.removesuffix("s") for word in used}
    used |= {word.lower() for word in used if word == word.capitalize()}
    others = {term: {*known} - {term} for term in known}
    assert [term for term in known if term not in used or not unknown(term, others[term])] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The recieved message, and Recieved.", ["recieved", "Recieved"]),
        ("A behavior, colors and a license; it recognizes what was labeled.\nA [catalog](x.md).", 6),
        ("The size of a prize, the behaviour under a licence, what users' own clients recognise", []),
        ("Websockets or a websocket; the WebSocket of gevent-websocket", ["Websockets", "websocket"]),
        ("A BrokerError, a BrokreError", ["BrokreError"]),
        ("`recieved`, ``a `recieved` b``, [text](recieved.md), <b recieved>, see recieved.md and utf_recieved=1", []),
        ("```text\nrecieved\n```\n\n   ````text\n   recieved\n   ````\nrecieved", ["recieved"]),
        ("<!-- recieved -->\n:::{include} recieved\n:end: recieved\n:::\n.. recieved::\n\n:doc:`recieved`", []),
        ("An HTTP request that is re-sended", ["sended"]),
    ],
)
def test_what_is_misspelt_is_found_and_code_is_left_alone(text: str, found: list[str] | int) -> None:
    wrong = [word for _, word in unknown(prose_of_page(text), terms())]
    assert wrong == found or len(wrong) == found


def test_docstrings_are_read_without_their_code() -> None:
    (first, *_) = docstrings("django_websocket.testing")
    assert "Tests of WebSocket views" in first and "private to the package" in first
    assert "client_class" not in first
    assert any("Send `message` to all subscribers" in text for text in docstrings("django_websocket.pubsub"))
