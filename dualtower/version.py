"""The version of dualtower, for the package's metadata and for what is written with it."""

__version__ = "0.1.0"
