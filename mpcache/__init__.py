"""MPCache: private inference of large language models by secure multi-party computation."""

__version__ = "0.1.0"
