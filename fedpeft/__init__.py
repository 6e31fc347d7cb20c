"""fedpeft: fine-tune one language model across people who may not share their data."""

__all__ = ["__version__"]
__version__ = "0.1.0"
