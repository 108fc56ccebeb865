"""Names of the configuration become objects; settings that contradict the data are refused here, in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, Probe, ServerContext
from ssfl.algorithms.dispfl import DisPFL, MaskSearch
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.local_training import LocalTraining
from ssfl.algorithms.random_masks import ClientwiseRandomMask, SharedRandomMask
from ssfl.algorithms.sparsyfed import GeometricDecay, SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.config import Config, cohort_size, fine_tune_epochs
from ssfl.config.validate import refuse
from ssfl.core.layout import Layout
from ssfl.core.masks import kept_count
from ssfl.core.optim import CosineRestarts, ExponentialDecay, FitSpec, Schedule
from ssfl.core.power import PowerLayers
from ssfl.core.saliency import CRITERIA
from ssfl.data.federation import Federation, build_federation
from ssfl.data.partition import PartitionSpec
from ssfl.data.preprocess import default_preprocess
from ssfl.data.sources import load_arrays
from ssfl.models import build_model


def federation_of(config: Config) -> Federation:
    """The data set and who owns which row. Raises DataError or PartitionError."""
    data = config.dataset
    arrays = load_arrays(data.name, Path(data.data_dir))
    spec = PartitionSpec(
        method=data.partition_method,
        clients=config.training.client_num_in_total,
        alpha=data.partition_alpha,
        seed=config.experiment.seed,
        min_examples=data.min_examples,
    )
    return build_federation(arrays, spec, default_preprocess(arrays, data.augment))


def module_of(config: Config, federation: Federation) -> nn.Module:
    """The network with its initial weights: a pure function of the seed, PyTorch's own initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.experiment.seed)
        return build_model(
            config.model.name,
            num_classes=federation.arrays.num_classes,
            input_shape=federation.input_shape,
            norm=config.model.norm,
        )


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
    """`default`: lr * decay ** round; `cosine_annealing`: warm restarts inside each round."""
    optimizer = config.optimizer
    if optimizer.scheduler == "cosine_annealing":
        return CosineRestarts(optimizer.lr, optimizer.scheduler_cycle_len)
    if optimizer.scheduler == "geometric":
        return GeometricDecay(optimizer.lr, optimizer.final_lr, config.training.comm_round)
    return ExponentialDecay(optimizer.lr, optimizer.lr_decay)


def algorithm_of(config: Config, layout: Layout) -> Algorithm[Any]:
    """The method by its name."""
    build = ALGORITHMS.get(config.algorithm.name)
    if build is None:
        raise refuse("algorithm.name", config.algorithm.name, ", ".join(sorted(ALGORITHMS)))
    return build(config, layout)


def _ssfl(config: Config, layout: Layout) -> Algorithm[Any]:
    mode, density = config.algorithm.params.mode, config.model.dense_ratio
    if mode == "random_clientwise":
        return ClientwiseRandomMask(fit_of(config), cohort_size(config), density)
    if mode in ("random_global", "random_layerwise"):
        return SharedRandomMask(fit_of(config), cohort_size(config), density, mode.removeprefix("random_"))
    return SSFL(fit_of(config), cohort_size(config), discovery_of(config, layout), mask_round_of(config))


def mask_round_of(config: Config) -> int:
    """Dense rounds before the mask is made; warmup_rounds rules, initial_mask_freq when it is 0."""
    params = config.algorithm.params
    return params.warmup_rounds or params.initial_mask_freq


def discovery_of(config: Config, layout: Layout) -> Discovery:
    """SSFL's first phase as configured. Raises ConfigError when the density or the floors keep nothing."""
    params, density = config.algorithm.params, config.model.dense_ratio
    keep = kept_count(layout.prunable_size, density)
    if keep == 0:
        least = f"at least {1 / layout.prunable_size:.2g}, one of the {layout.prunable_size} prunable weights"
        raise refuse("model.dense_ratio", density, least)
    if params.min_layer_density > 0:
        floors = sum(
            max(1, kept_count(b - a, params.min_layer_density)) for _, a, b in layout.prunable_segments
        )
        if floors > keep:
            allowed = (
                f"floors of at most {keep} weights in all (model.dense_ratio={density}); these keep {floors}"
            )
            raise refuse("algorithm.params.min_layer_density", params.min_layer_density, allowed)
    criterion = CRITERIA[params.method]
    probe = Probe(
        saliency=criterion.score,
        batches=config.model.itersnip_iteration,
        batch_size=config.training.batch_size,
        training_mode=criterion.training_mode,
    )
    return Discovery(
        probe,
        density,
        params.weighting,
        params.saliency_fraction,
        params.ties,
        params.min_layer_density,
    )


def _fedavg(config: Config, layout: Layout) -> Algorithm[Any]:
    return FedAvg(fit_of(config), cohort_size(config))


def _fedavg_ft(config: Config, layout: Layout) -> Algorithm[Any]:
    tune = fit_of(config, fine_tune_epochs(config), fine_tune_schedule(config))
    return FedAvg(fit_of(config), cohort_size(config), fine_tune=tune)


def fine_tune_schedule(config: Config) -> Schedule:
    """The initial learning rate, not the decayed one (see `ssfl.algorithms.fedavg`)."""
    if config.optimizer.scheduler == "cosine_annealing":
        return schedule_of(config)
    return ExponentialDecay(config.optimizer.lr, 1.0)


def _dispfl(config: Config, layout: Layout) -> Algorithm[Any]:
    params, model = config.algorithm.params, config.model
    return DisPFL(
        fit_of(config),
        model.dense_ratio,
        search=MaskSearch(model.anneal_factor, params.regrow),
        topology=params.topology,
        neighbour_count=params.neighbours if params.neighbours > 0 else cohort_size(config),
        different_initial=params.different_initial,
        erk_power_scale=model.erk_power_scale,
        per_round=cohort_size(config) if params.fair_budget else None,
    )


def _sparsyfed(config: Config, layout: Layout) -> Algorithm[Any]:
    params = config.algorithm.params
    return SparsyFed(
        fit_of(config),
        cohort_size(config),
        config.model.dense_ratio,
        layers=PowerLayers(params.beta),
        prune_activations=params.prune_activations,
    )


def _local(config: Config, layout: Layout) -> Algorithm[Any]:
    return LocalTraining(fit_of(config), cohort_size(config) if config.algorithm.params.fair_budget else None)


ALGORITHMS: Mapping[str, Callable[[Config, Layout], Algorithm[Any]]] = {
    "ssfl": _ssfl,
    "fedavg": _fedavg,
    "fedavg_ft": _fedavg_ft,
    "dispfl": _dispfl,
    "sparsyfed": _sparsyfed,
    "local": _local,
}


@dataclass(frozen=True)
class Parts:
    """A run's ingredients, checked against each other, before anything is written."""

    config: Config
    federation: Federation
    module: nn.Module
    layout: Layout
    theta: Tensor
    algorithm: Algorithm[Any]
    context: ServerContext


def parts_of(config: Config) -> Parts:
    """Load, partition, build; raises one-line errors, writes nothing."""
    check_device(config)
    federation = federation_of(config)
    module = module_of(config, federation)
    layout = Layout.of(module)
    counts = {k: federation.examples(k) for k in range(federation.num_clients)}
    context = ServerContext(layout, counts, config.experiment.seed)
    theta = layout.flatten(module)
    return Parts(config, federation, module, layout, theta, algorithm_of(config, layout), context)


def check_device(config: Config) -> None:
    """Refuse a device that is not there."""
    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise refuse("engine.device", "cuda", "cpu or auto (PyTorch sees no CUDA device here)")
