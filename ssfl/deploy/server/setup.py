"""The objects of a deployed run on the server, made from the configuration and from what the sites report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from ssfl.algorithms.base import Algorithm, ServerContext
from ssfl.assemble.build import RunSetup, algorithm_of, arrays_of, check_device, inputs_of, module_of
from ssfl.assemble.communication import wire_of
from ssfl.assemble.network_checks import check_method, check_network
from ssfl.config import Config, validate
from ssfl.core.layout import Layout
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation
from ssfl.data.preprocess import NORMALISATION, Preprocess, default_preprocess
from ssfl.deploy.protocol.messages import Joined, Scaling
from ssfl.deploy.settings import DeploySettings
from ssfl.engine.central_test import CentralTest, ClientExamination, Examination
from ssfl.engine.compute.malloc import kept_inside


@dataclass(frozen=True)
class ServerData:
    """The server's knowledge of the data before a site has joined."""

    arrays: Arrays | None
    """The server's copy of the data set, to test the global model; None: it has none."""
    class_names: tuple[str, ...]
    scaling: Scaling | None


def server_data(config: Config, settings: DeploySettings, named: bool) -> ServerData:
    """The server's own data and the common scaling, as configured. Raises DataError.

    named: whether the run's words name a data set. If not, `dataset.name` is only a default.
    """
    arrays = arrays_of(config) if settings.server_data else None
    scaling = None
    if config.dataset.features == "unchanged":
        return ServerData(arrays, () if arrays is None else arrays.class_names, None)
    if settings.scaling == "server" and arrays is not None:
        scaling = scaling_of(default_preprocess(arrays, config.dataset.augment))
    elif settings.scaling == "server" and named and config.dataset.name in NORMALISATION:
        mean, std = NORMALISATION[config.dataset.name]
        crop = config.dataset.augment and config.dataset.name in ("cifar10", "cifar100", "tinyimagenet")
        scaling = Scaling(mean, std, 4 if crop else 0, crop)
    return ServerData(arrays, () if arrays is None else arrays.class_names, scaling)


def scaling_of(preprocess: Preprocess) -> Scaling:
    """The message form of a preprocessing."""
    return Scaling(preprocess.mean, preprocess.std, preprocess.crop_padding, preprocess.flip)


def federation_view(data: ServerData, first: Joined, clients: int) -> Federation:
    """The federation as the loop reads it: the server's test set, or an empty one, and no rows of clients."""
    nothing = torch.zeros(0, dtype=torch.int64)
    arrays = data.arrays
    if arrays is None:
        whole = first.inputs == "whole"
        row = torch.zeros(1, *first.input_shape, dtype=torch.int64 if whole else torch.float32)
        label = torch.zeros(1, dtype=torch.int64)
        names = tuple(map(str, range(first.num_classes)))
        arrays = Arrays("sites", first.num_classes, names, row, label, row, label)
    scaling = data.scaling or Scaling((0.0,), (1.0,))
    preprocess = Preprocess(scaling.mean, scaling.std, scaling.crop_padding, scaling.flip)
    return Federation(arrays, preprocess, (nothing,) * clients, (nothing,) * clients)


def layout_of(config: Config, data: ServerData, first: Joined) -> Layout:
    """The network's layout for sites like this one. Raises ModelError."""
    return Layout.of(module_of(config, federation_view(data, first, 1)))


def setup_for(
    config: Config, data: ServerData, first: Joined, counts: Mapping[int, int], clients: int
) -> RunSetup:
    """The run's setup. counts: client -> training examples, of the sites that have joined; clients: numbers in use.

    Raises ConfigError when the cohort is larger than the federation, and ConfigError or ModelError when the network
    cannot be trained by the method.
    """
    check_device(config)
    training = replace(config.training, client_num_in_total=len(counts))
    config = replace(config, training=training)
    validate(config)
    federation = federation_view(data, first, clients)
    module = module_of(config, federation)
    check_network(config, federation, module)
    layout = Layout.of(module)
    context = ServerContext(layout, dict(counts), config.experiment.seed)
    theta = layout.flatten(module)
    algorithm, wire = algorithm_of(config, layout), wire_of(config, layout)
    # The trial has an instance of its own, so that nothing of it remains in the run's.
    check_method(config, federation, module, algorithm_of(config, layout), theta, context)
    _share_memory(module, theta, layout)
    unchanged = config.dataset.features == "unchanged"
    known = data.arrays is not None and (data.scaling is not None or unchanged)
    inputs = inputs_of(federation) if known else None
    return RunSetup(config, federation, module, layout, theta, algorithm, context, wire, inputs)


def algorithm_for(setup: RunSetup, clients: int) -> Algorithm[Any]:
    """The run's method for another number of clients, of which `training.frac` may choose a cohort."""
    training = replace(setup.config.training, client_num_in_total=clients)
    return algorithm_of(replace(setup.config, training=training), setup.layout)


def _share_memory(module: nn.Module, theta: Tensor, layout: Layout) -> None:
    """Make the network's weights views of the initial model, so that a large one is in memory once.

    The server does not train this network; a test copies it.
    """
    own = dict(module.named_parameters())
    for name, view in layout.views(theta[: layout.trained_size]).items():
        if own[name].dtype == view.dtype:
            own[name].data = view


@final
class ServerTest:
    """Tests the global model on the server's test set, if it has one; the sites' test rows are not available here."""

    def __init__(self, central: CentralTest | None) -> None:
        self._central = central

    def examine(self, theta: Tensor) -> Examination | None:
        """Test a global model theta [P]; None without data."""
        if self._central is None:
            return None
        with kept_inside(theta.nbytes):
            return self._central.examine(theta)

    def examine_for_clients(self, theta: Tensor) -> ClientExamination:
        """Returns an empty result: the clients' test rows are at the sites."""
        return ClientExamination()
