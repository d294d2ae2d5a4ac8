"""One HTML file that needs nothing from elsewhere: styles, programs and data are written into it.

What names of classes and files hold is only text to a browser. Three things see to it: Jinja escapes what it is given,
data stand in a block that is never run and can't be closed from inside, and the page's own policy lets no program run
but those whose hashes it states, and loads nothing from a network.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from octvideo._version import __version__
from octvideo.files import json_text

_FOLDER = files("octvideo.pages")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what UTF-8 and HTML have no place for


def page_html(
    template: str, *, title: str, scripts: Sequence[str], data: Any, server: bool = False, **values: Any
) -> str:
    """A page as HTML.

    Args:
        template: its file in this folder, which extends base.html.j2.
        title: of the page.
        scripts: names of JavaScript files in this folder, run in this order, at the end of the page.
        data: what scripts read, as JSON, from the element with the id "data".
        server: the page may also ask the server that it came from.
        values: what else the template shows.
    """
    sources = [source(name) for name in scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            title=plain_text(title),
            style=Markup(source("look.css")),
            scripts=[Markup(text) for text in sources],
            data=Markup(json_block(data)),
            policy=_policy(sources, server=server),
            version=__version__,
            **_plain(values),
        )
    )


def json_block(data: Any) -> str:
    """JSON that may stand in a `<script>` element, whatever texts it holds.

    Example:
        >>> json_block(["</script><b>"])
        '["\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e"]'
    """
    text = json_text(data)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def plain_text(text: str) -> str:
    """A name as UTF-8 can hold it: bytes of a file's name that are no text become \ufffd."""
    return _NO_TEXT.sub("\ufffd", text)


def counted(count: int, noun: str) -> str:
    """A number of things in words.

    Example:
        >>> counted(1, "class"), counted(1200, "class")
        ('1 class', '1,200 classes')
    """
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


@functools.cache
def source(name: str) -> str:
    """The text of a file of this folder."""
    return _FOLDER.joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("octvideo", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _policy(scripts: Sequence[str], *, server: bool) -> str:
    """What the browser may run and load: the scripts of the page, and videos and pictures beside it."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": hashes or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "'self' data: file:",
        "media-src": "'self' blob: file:",
        "connect-src": "'self'" if server else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value if isinstance(value, Markup) else plain_text(value)
    if isinstance(value, Mapping):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return value
