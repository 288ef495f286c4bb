"""YAML configs and the schema that reads them."""

from .load import ConfigError, builtin_configs, check_config, dump_config, layered, load_config
from .registry import Registry, did_you_mean
from .schema import Config, CostKind, Cut, LatencyConfig, Repair

__all__ = [
    "Config",
    "ConfigError",
    "CostKind",
    "Cut",
    "LatencyConfig",
    "Registry",
    "Repair",
    "builtin_configs",
    "check_config",
    "did_you_mean",
    "dump_config",
    "layered",
    "load_config",
]
