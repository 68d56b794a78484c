"""`recur cache`: what tuning has found on this machine."""

from __future__ import annotations

import click


@click.command()
def cache() -> None:
    """List the cache's folder, the tuned configurations, and those that failed and are not tried again."""
    from recur.runtime.cache import cache_dir
    from recur.runtime.tuning import records

    click.echo(f"folder\t{cache_dir()}")
    for entry in records.entries():
        shape = ",".join(f"{name}={size}" for name, size in entry["shape"].items())
        place = f"{entry['key']['device']}, Triton {entry['key']['triton']}"
        times = f"{entry['both_us']} us, {entry['default_both_us']} us by default"
        strategies = ",".join(entry["key"]["strategies"])
        click.echo(f"tuned\t{entry['name']}\t{strategies}\t{shape}\t{place}\t{times}")
    for f in records.failures():
        click.echo(f"quarantined\t{f.kernel}\t{f.kernel_hash}\t{f.launch}\t{f.device}, Triton {f.triton}\t{f.reason}")
