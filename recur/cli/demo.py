"""`recur demo`: the examples in their short form."""

from __future__ import annotations

import click


@click.command()
def demo() -> None:
    """Run the examples on real data in their short form: under two minutes on two cores."""
    from recur.examples.demo import main

    main()
