"""run.toml -> RunConfig: frozen, every problem at once, an unknown key is an error."""

from fedpeft.config.load import load, parse, read_config
from fedpeft.config.model import RunConfig
from fedpeft.config.resolved import config_digest, resolved

__all__ = ["RunConfig", "config_digest", "load", "parse", "read_config", "resolved"]
