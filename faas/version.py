"""The version of this package, in the one place where it is written; the build reads it here too."""

__version__ = "0.1.0"
