"""Plain highlighting: comments, strings and keywords. All text is escaped."""

import re

from django.utils.html import format_html, format_html_join

PYTHON = re.compile(
    r'(?P<comment>#[^\n]*)|(?P<string>[rbf]{0,2}("""[\s\S]*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'))|'
    r"(?P<keyword>\b(?:and|as|async|await|class|continue|def|elif|else|except|finally|for|from|if|import|in|is|lambda|"
    r"not|or|raise|return|try|while|with|yield|None|True|False|self)\b|@[\w.]+)"
)
JAVASCRIPT = re.compile(
    r"(?P<comment>//[^\n]*|/\*[\s\S]*?\*/)|"
    r'(?P<string>"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`)|'
    r"(?P<keyword>\b(?:async|await|const|else|export|for|from|function|if|import|let|new|null|of|return|true|false|"
    r"undefined|while)\b)"
)
HTML = re.compile(
    r"(?P<comment><!--[\s\S]*?-->|{%\s*comment\s*%}[\s\S]*?{%\s*endcomment\s*%}|{#[^\n]*?#})|"
    r"(?P<keyword>{%[\s\S]*?%}|{{[\s\S]*?}})|(?P<string></?[\w-]+|/?>)"
)
LANGUAGES = {"py": PYTHON, "js": JAVASCRIPT, "html": HTML}


def highlighted(name, code):
    """Return the code of a file as HTML."""
    return format_html_join("", "{}", ((part,) for part in parts(LANGUAGES[name.rpartition(".")[2]], code)))


def parts(language, code):
    end = 0
    for match in language.finditer(code):
        yield code[end : match.start()]
        yield format_html('<span class="{}">{}</span>', match.lastgroup, match[0])
        end = match.end()
    yield code[end:]
