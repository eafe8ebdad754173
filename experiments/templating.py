"""Pages in HTML from the package's templates."""

from __future__ import annotations

import jinja2


def templates() -> jinja2.Environment:
    """The templates; texts are escaped, and a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("experiments"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
