"""The printer's templates: shells of kernels and host functions. An undefined name is an error."""

from __future__ import annotations

from functools import lru_cache

import jinja2

from recur.codegen.triton_printer.layout import print_tuple
from recur.codegen.triton_printer.wrapping import wrapped


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("recur.codegen.triton_printer", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quoted"] = '"{}"'.format
    environment.filters["as_tuple"] = print_tuple
    environment.filters["wrapped"] = lambda line: "\n".join(wrapped(line))
    return environment


def render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)
