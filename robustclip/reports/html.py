"""How every HTML page and every chart is made: from templates that escape all that they are given.

A package keeps its templates in its folder `templates`. Those of this package can be used by all of them:
`base.html` is the page around the content, with one style in light and dark; `parts.html` holds sections,
tables and lists.
"""

from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

_SHARED = "robustclip.reports"


def render(template: str, *, package: str = _SHARED, **content: Any) -> str:
    """A template of `package`, filled in."""
    return _environment(package).get_template(template).render(content)


@cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _SHARED))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
