"""run.toml -> RunConfig: frozen, every problem at once, an unknown key is an error."""

from fedpeft.config.model import RunConfig

__all__ = ["RunConfig"]
