"""YAML configs and the schema that reads them."""

from .load import ConfigError, builtin_configs, check_config, did_you_mean, dump_config, load_config
from .schema import Config, Cut

__all__ = [
    "Config",
    "ConfigError",
    "Cut",
    "builtin_configs",
    "check_config",
    "did_you_mean",
    "dump_config",
    "load_config",
]
