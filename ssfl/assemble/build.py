"""Builds a run's objects from the configuration; refuses settings that contradict the data, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.algorithms.method import Recipe
from ssfl.algorithms.table import METHODS
from ssfl.assemble.checked_method import CheckedMethod, MethodFault, checked, described
from ssfl.assemble.communication import wire_of
from ssfl.assemble.network_checks import check_method, check_network
from ssfl.config import Config, codecs_of, cohort_size, fine_tune_epochs
from ssfl.config.validate import refuse, refuse_setting, validate
from ssfl.core.layout import Layout
from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec, GeometricDecay, Schedule
from ssfl.core.tensor_roles import fixed_state
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import UNCHANGED, default_preprocess
from ssfl.data.sources import KNOWN, load_arrays, missing_file, without_pixels
from ssfl.engine.client.data_source import input_dtype
from ssfl.models import build_model, check_model_name
from ssfl.models.description import INPUT_TYPES, Inputs
from ssfl.settings import SettingError
from ssfl.wire.stack import WireStack


def with_sites_counted(config: Config, arrays: Arrays) -> Config:
    """The configuration with one client per site of the data, if the partition is natural.

    Raises ConfigError if a cohort of these clients is impossible.
    """
    if config.dataset.partition_method != "natural" or arrays.train_site is None:
        return config
    sites = len(torch.unique(arrays.train_site))
    if sites == config.training.client_num_in_total:
        return config
    counted = replace(config, training=replace(config.training, client_num_in_total=sites))
    validate(counted)
    return counted


def counting_notes(asked: Config, config: Config) -> Iterator[str]:
    """What to say of data that is only counted: the file is not here; the notes on the number of clients."""
    if file := missing_file(asked.dataset.name, Path(asked.dataset.data_dir)):
        known = KNOWN[asked.dataset.name]
        rows = f"{sum(known.train_rows):,} training and {sum(known.test_rows):,} test rows"
        yield f"no file {file}: counted with the {rows} of the published {asked.dataset.name}"
    if note := sites_note(asked, config):
        yield note


def sites_note(asked: Config, config: Config) -> str:
    """A note if the data determined the number of clients, else ""."""
    clients = config.training.client_num_in_total
    if clients == asked.training.client_num_in_total:
        return ""
    return (
        f"dataset.partition_method=natural: {clients} clients, one per site of the data; "
        f"training.client_num_in_total={asked.training.client_num_in_total} is not used"
    )


def federation_of(config: Config, pixels: bool = True) -> Federation:
    """The data set divided over clients. Raises DataError or PartitionError. pixels: as for `arrays_of`."""
    arrays = arrays_of(config, pixels)
    return federation_from(with_sites_counted(config, arrays), arrays)


def arrays_of(config: Config, pixels: bool = True) -> Arrays:
    """The data set. Raises DataError, or ConfigError if its features cannot be used unchanged.

    pixels: False if only rows are counted; a published set without a file is then not downloaded.
    """
    data = config.dataset
    unchanged = data.features == "unchanged"
    if not pixels and missing_file(data.name, Path(data.data_dir)):
        arrays = without_pixels(data.name)
    else:
        arrays = load_arrays(data.name, Path(data.data_dir), whole=unchanged)
    if unchanged and arrays.train_x.dim() != 2:
        allowed = (
            f"only for tables; {data.name} contains images, which networks need scaled: keep standardised"
        )
        raise refuse("dataset.features", "unchanged", allowed)
    return arrays


def federation_from(config: Config, arrays: Arrays) -> Federation:
    """A loaded data set divided over clients. Raises PartitionError."""
    data = config.dataset
    spec = PartitionSpec(
        method=data.partition_method,
        clients=config.training.client_num_in_total,
        alpha=data.partition_alpha,
        seed=config.experiment.seed,
        min_examples=data.min_examples,
    )
    preprocess = UNCHANGED if data.features == "unchanged" else default_preprocess(arrays, data.augment)
    return build_federation(arrays, spec, preprocess, data.validation_portion)


def check_model(config: Config) -> None:
    """Raise ModelError if there is no network `model.name`; needs no data."""
    check_model_name(config.model.name)


def module_of(config: Config, federation: Federation) -> nn.Module:
    """The network with its initial weights: PyTorch's initialisation, determined by the seed."""
    return network_for(config, federation.arrays.num_classes, federation.input_shape, input_dtype(federation))


def network_for(
    config: Config, num_classes: int, input_shape: Sequence[int], input_dtype: torch.dtype | None
) -> nn.Module:
    """The configured network for examples of this shape and type, made from `experiment.seed`. Raises ModelError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.experiment.seed)
        return build_model(config.model.name, num_classes, input_shape, config.model.norm, input_dtype)


def fit_of(config: Config, epochs: int | None = None, schedule: Schedule | None = None) -> FitSpec:
    """Local training as configured."""
    optimizer, training = config.optimizer, config.training
    return FitSpec(
        epochs=training.epochs if epochs is None else epochs,
        batch_size=training.batch_size,
        schedule=schedule or schedule_of(config),
        momentum=optimizer.momentum,
        weight_decay=optimizer.wd,
        clip_norm=optimizer.clip_norm or None,
    )


def schedule_of(config: Config) -> Schedule:
    """`default`: lr * decay ** round; `cosine_annealing`: warm restarts inside each round; `geometric`: to final_lr."""
    optimizer = config.optimizer
    if optimizer.scheduler == "cosine_annealing":
        return CosineRestarts(optimizer.lr, optimizer.scheduler_cycle_len)
    if optimizer.scheduler == "geometric":
        return GeometricDecay(optimizer.lr, optimizer.final_lr, config.training.comm_round)
    return ExponentialDecay(optimizer.lr, optimizer.lr_decay)


def algorithm_of(config: Config, layout: Layout) -> Algorithm[Any]:
    """The configured method; one from outside the package is checked at every call (`checked_method.py`).

    Raises ConfigError if its settings contradict the network, or if it is not an algorithm.
    """
    algorithm = config.algorithm
    if algorithm.method.reads_density and not layout.prunable_size:
        allowed = (
            "prunes weights of nn.Linear and nn.Conv layers, but this network trains none; use algorithm=fedavg, or "
            'give the layer an attribute prunable_parameters = ("NAME", ...) with the names of its own parameters'
        )
        raise refuse("algorithm.name", algorithm.name, allowed)
    if algorithm.name not in METHODS:
        return _own_algorithm(config, layout)
    try:
        return algorithm.method.build(algorithm.params, recipe_of(config, layout))
    except SettingError as error:
        raise refuse_setting(error) from error


def _own_algorithm(config: Config, layout: Layout) -> CheckedMethod:
    """A method from outside the package, whose code may fail in any way."""
    algorithm = config.algorithm
    try:
        label = algorithm.method.label(algorithm.params)
        if not isinstance(label, str) or not label.strip():
            raise MethodFault(f"its label is {label!r}; it must be a text")
        return checked(algorithm.method.build(algorithm.params, recipe_of(config, layout)), layout)
    except SettingError as error:
        raise refuse_setting(error) from error
    except MethodFault as fault:
        raise refuse("algorithm.name", algorithm.name, str(fault)) from fault
    except Exception as error:
        raise refuse("algorithm.name", algorithm.name, f"cannot be built: {described(error)}") from error


def recipe_of(config: Config, layout: Layout) -> Recipe:
    """The common ingredients of methods."""
    model = config.model
    return Recipe(
        fit=fit_of(config),
        fine_tune=fit_of(config, fine_tune_epochs(config), fine_tune_schedule(config)),
        per_round=cohort_size(config),
        rounds=config.training.comm_round,
        layout=layout,
        density=model.dense_ratio,
        probe_batches=model.itersnip_iteration,
        drop_rate=model.anneal_factor,
        erk_power_scale=model.erk_power_scale,
        score_form="factored" if codecs_of(config).scores == "factored" else "full",
    )


def fine_tune_schedule(config: Config) -> Schedule:
    """`fine_tune_lr` if it was set; else the initial rate, not the decayed one (see `ssfl.algorithms.fedavg`)."""
    if config.optimizer.fine_tune_lr != -1:
        return ExponentialDecay(config.optimizer.fine_tune_lr, 1.0)
    if config.optimizer.scheduler == "cosine_annealing":
        return schedule_of(config)
    return ExponentialDecay(config.optimizer.lr, 1.0)


@dataclass(frozen=True)
class RunSetup:
    """A run's objects, checked for consistency before any file is written."""

    config: Config
    federation: Federation
    module: nn.Module
    layout: Layout
    theta: Tensor
    algorithm: Algorithm[Any]
    context: ServerContext
    wire: WireStack
    """The transforms of payloads in both directions."""
    inputs: Inputs | None = None
    """How raw rows become the network's input; None if each site scales its own rows."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """The entries of the network's state_dict that are not in theta; copied before the network is used."""

    def __post_init__(self) -> None:
        if not self.constants:
            object.__setattr__(self, "constants", fixed_state(self.module))


def setup_of(config: Config, pixels: bool = True) -> RunSetup:
    """Load, partition, build. Raises one-line errors; writes no files. pixels: as for `arrays_of`."""
    check_device(config)
    arrays = arrays_of(config, pixels)
    config = with_sites_counted(config, arrays)
    federation = federation_from(config, arrays)
    module = module_of(config, federation)
    check_network(config, federation, module)
    layout = Layout.of(module)
    counts = {k: federation.examples(k) for k in range(federation.num_clients)}
    context = ServerContext(layout, counts, config.experiment.seed)
    theta = layout.flatten(module)
    algorithm, wire = algorithm_of(config, layout), wire_of(config, layout)
    # The trial has an instance of its own, so that nothing of it remains in the run's.
    check_method(config, federation, module, algorithm_of(config, layout), theta, context)
    return RunSetup(
        config, federation, module, layout, theta, algorithm, context, wire, inputs_of(federation)
    )


def inputs_of(federation: Federation) -> Inputs:
    """The preprocessing that a user of the trained network must apply to a stored row."""
    arrays, scaling = federation.arrays, federation.preprocess
    pixels = arrays.train_x.dtype == torch.uint8
    return Inputs(
        input_dtype=INPUT_TYPES[arrays.train_x.dtype],
        divisor=255.0 if pixels else 1.0,
        mean=scaling.mean,
        std=scaling.std,
        class_names=arrays.class_names,
    )


def check_device(config: Config) -> None:
    """Raises ConfigError if the configured device does not exist."""
    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise refuse("engine.device", "cuda", "cpu or auto (PyTorch sees no CUDA device here)")
