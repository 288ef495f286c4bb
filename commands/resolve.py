"""From what a caller names (a config, a run folder, a plan) to one checked config."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..configs import Config, ConfigError, dump_config, load_config
from ..networks import find_weights
from ..pruners.plan import RatioPlan
from ..pruners.saved import is_saved
from ..storage.files import replacing
from ..storage.folders import CONFIG_NAME

Given = Config | str | Path | None


def resolve_config(
    given: Given,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    plan: RatioPlan | None = None,
    plan_folder: Path | None = None,
    own_network: str | None = None,
    spends: bool = True,
    seed: int | None = None,
) -> Config:
    """The config given, else the run folder's, else a minimal one for the caller's own network; overrides on top.

    Args:
        given: a `Config`, a built-in name or a YAML file.
        overrides: `section.key=value`.
        folder: a run folder whose config is taken where none is given.
        plan: that will be applied: its method and criterion count, and its budget and objective where nothing else
            says one.
        plan_folder: that it lies in: what the config there says of layers counts, without which the plan would not fit.
        own_network: name of the class, where the caller brings a module.
        spends: whether a budget counts; where it does not, a network of one's own needs no config.
        seed: instead of the config's.

    Raises:
        ConfigError: see `load_config`; or there is none to be had.
    """
    if given is None and folder is not None and (folder / CONFIG_NAME).is_file():
        config = _of_run(folder)
    elif given is None and own_network is not None and (plan is not None or not spends):
        budget = plan.budget.fractions if plan is not None else {"flops": 1.0}
        config = Config.model_validate({"name": own_network, "budget": budget})
        if plan is not None:
            config = config.model_copy(update={"objective": plan.objective})
    elif given is None and own_network is not None:
        raise ConfigError(
            'a config says what a network may cost: Session(Config.model_validate({"name": "mine", "budget": '
            '{"flops": 0.5}}), model=…)'
        )
    elif given is None and folder is not None:
        raise ConfigError(f"no {CONFIG_NAME} in {folder}: give the config that the plan was made with (--config)")
    else:
        config = load_config(given)
        if plan_folder is not None and (plan_folder / CONFIG_NAME).is_file():
            with suppress(ConfigError):  # a config was given in the place of that one
                config = config.model_copy(update={"layers": load_config(plan_folder / CONFIG_NAME).layers})
    config = load_config(config, overrides, seed=seed)
    if plan is not None:
        config = config.model_copy(update={"method": plan.method, "criterion": plan.criterion})
    return config


def _of_run(folder: Path) -> Config:
    try:
        return load_config(folder / CONFIG_NAME)
    except ConfigError as error:
        raise ConfigError(f"{error}; restore it, or write it anew with the settings of the run") from error


def home_of(given: Given, beside: Path | None) -> Path | None:
    """The run folder that a config belongs to: where weights that were trained for it lie."""
    if given is None:
        return beside
    return Path(given).parent if not isinstance(given, Config) and Path(given).is_file() else None


def save_config(config: Config, folder: Path) -> None:
    """Write a config to a run folder, with paths that hold from anywhere."""
    with replacing(folder / CONFIG_NAME) as temporary:
        temporary.write_text(dump_config(absolute(config)), encoding="utf-8")


def absolute(config: Config) -> Config:
    """Paths that hold from any working directory, so that a run folder can be used from anywhere."""
    network, data, finetune = config.network, config.data, config.finetune
    if finetune.initial is not None:
        earlier = find_weights(finetune.initial, weight_folders(config)).resolve()
        finetune = finetune.model_copy(update={"initial": earlier})
    if network is not None and network.weights is not None:
        weights = (applied_folder(config) or find_weights(network.weights, weight_folders(config))).resolve()
        network = network.model_copy(update={"weights": weights})
    if data is not None and data.root is not None:
        data = data.model_copy(update={"root": data.root.resolve()})
    return config.model_copy(update={"network": network, "data": data, "finetune": finetune})


def applied_folder(config: Config) -> Path | None:
    """The folder of a network that is compressed further, where `network.weights` is one; none where it is a file."""
    if config.network is None or config.network.weights is None:
        return None
    folders = [base / config.network.weights for base in (Path(), *weight_folders(config))]
    return next((folder for folder in folders if is_saved(folder)), None)


def weight_folders(config: Config) -> list[Path]:
    """Where relative paths of weights are looked for, besides the working directory."""
    return [config.data.root] if config.data is not None and config.data.root is not None else []
