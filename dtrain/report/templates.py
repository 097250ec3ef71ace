"""Where the pages' templates are, and what they may call. Renders escaped text; reads only files beside it."""

from pathlib import Path

import jinja2

from dtrain.report.words import count, duration, percent


def render(template: str, **values: object) -> str:
    """Return the template of that name, filled in; all values are escaped but those that are Markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=count, duration=duration, percent=percent)
    return environment.get_template(template).render(**values)
