"""Armarium: a Snakemake workflow that builds complete, self-contained model archives."""

__version__ = "0.1.0"
