"""YAML configs and the schema that reads them."""

from .load import ConfigError, builtin_configs, check_config, did_you_mean, dump_config, load_config
from .schema import Config, CostKind, Cut, LatencyConfig

__all__ = [
    "Config",
    "ConfigError",
    "CostKind",
    "Cut",
    "LatencyConfig",
    "builtin_configs",
    "check_config",
    "did_you_mean",
    "dump_config",
    "load_config",
]
