"""The whole configuration as frozen dataclasses: names, types, defaults (docs/configuration.md explains them).

Published keys keep their published names. Defaults are those of the paper's CIFAR-10 recipe (SSFL, TMLR 2026, and
the authors' README); where the authors' schema and base.yaml disagree, docs/configuration.md says which was taken.
The classes stay frozen because a run must not change what its folder says it was told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

SSFL_IGNORES = (
    "training.fine_tune_epochs",
    "model.anneal_factor",
    "model.erk_power_scale",
    "algorithm.params.topology",
    "algorithm.params.neighbours",
    "algorithm.params.regrow",
    "algorithm.params.different_initial",
    "algorithm.params.fair_budget",
    "algorithm.params.beta",
    "algorithm.params.prune_activations",
)
"""What conf/algorithm/ssfl.yaml says, so that `Config()` is the default run."""


@final
@dataclass(frozen=True)
class AlgorithmParams:
    """What is special to a method; `AlgorithmConfig.ignores` says which of it a method does not read."""

    mode: str = "static"  # static | random_global | random_layerwise | random_clientwise
    method: str = "ssfl"  # the score: ssfl (cross-entropy, eval) | ssfl_aux (raw nll, train) | grasp, ...
    initial_mask_freq: int = 0  # the round before which the mask is made when warmup_rounds is 0
    warmup_rounds: int = 0  # dense rounds before the mask is made
    weighting: str = "examples"  # examples: p_k = n_k / sum n_i | uniform: 1 / K
    saliency_fraction: float = 1.0  # share of all clients that score
    ties: str = "exact"  # exact: exactly the asked number, ties by index | keep: all tied entries stay
    min_layer_density: float = 0.0  # floor of every layer's density; 0: none
    topology: str = "random"  # dispfl: who hears whom: random | ring | full
    neighbours: int = -1  # dispfl, topology=random: how many a client hears; -1: the cohort size
    regrow: str = "gradient"  # dispfl: gradient | random | none
    different_initial: bool = True  # dispfl: every client its own first mask
    fair_budget: bool = False  # dispfl, local: train a sampled cohort a round instead of every client
    beta: float = 1.25  # sparsyfed: exponent of the re-parameterisation
    prune_activations: bool = True  # sparsyfed: in the weight gradient


@final
@dataclass(frozen=True)
class AlgorithmConfig:
    """Which method trains."""

    name: str = "ssfl"
    params: AlgorithmParams = field(default_factory=AlgorithmParams)
    ignores: list[str] = field(
        default_factory=lambda: list(SSFL_IGNORES)
    )  # keys (or KEY.*) of no effect here


@final
@dataclass(frozen=True)
class ModelConfig:
    """The network and how much of it is kept."""

    name: str = "resnet18"  # a name of ssfl.models, or the dotted path of an nn.Module
    norm: str = "group"  # group | groupN (N groups) | batch
    dense_ratio: float = 0.5  # density: share of the prunable weights that is kept
    itersnip_iteration: int = 1  # minibatches averaged into a client's score
    anneal_factor: float = 0.5  # dispfl: first drop rate of the cosine
    cs: str = "v0"  # leftover
    erk_power_scale: float = 1.0  # dispfl: exponent of the ERK densities


@final
@dataclass(frozen=True)
class DatasetConfig:
    """The data and who owns which part of it."""

    name: str = "cifar10"  # a known set, DATA_DIR/NAME.npz, or the path of an .npz or an image folder
    data_dir: str = "./dataset"
    partition_method: str = "dir"  # dir | patho | dir_unbalanced | iid | natural
    partition_alpha: float = 0.3  # dir: concentration; patho: classes per client
    augment: bool = True  # random crop and flip, where the data set has them
    min_examples: int = 1  # no client may own fewer training examples
    public_portion: float = 0.0  # leftover
    data_loader_max_workers: int | None = None  # leftover


@final
@dataclass(frozen=True)
class OptimizerConfig:
    """A client's local optimiser."""

    client_optimizer: str = "sgd"
    lr: float = 0.1
    lr_decay: float = 0.998  # scheduler=default: lr * lr_decay ** round, rounds counted from 1
    momentum: float = 0.0
    wd: float = 5e-4
    scheduler: str = "default"  # default | cosine_annealing | geometric
    final_lr: float = 0.01  # scheduler=geometric: the last round's
    scheduler_cycle_len: int = 10  # local epochs; scheduler=cosine_annealing
    clip_norm: float = 10.0  # global norm of the masked gradient; 0: no clipping


@final
@dataclass(frozen=True)
class TrainingConfig:
    """Rounds, cohorts and local epochs."""

    batch_size: int = 16
    epochs: int = 5  # local epochs
    comm_round: int = 1000  # rounds trained (the authors' loop trains one fewer)
    frac: float = 0.1  # cohort: int(client_num_in_total * frac) clients
    client_num_in_total: int = 100
    client_num_per_round: int = -1  # cohort size; -1: from frac
    frequency_of_the_test: int = 1  # evaluate every so many rounds, and after the last
    max_workers: int = 20  # upper limit of engine.workers
    fine_tune_epochs: int = -1  # fedavg_ft: local epochs after the last round; -1: as training.epochs


@final
@dataclass(frozen=True)
class ExperimentConfig:
    """Seed, place and label of the run."""

    seed: int = 550
    gpu: int = 0  # number of the CUDA device
    tag: str = ""  # a word of the user's own; recorded, without effect
    debug_mode: bool = False  # show the traceback of an input error too
    output_dir: str = "outputs"
    ci: int = 0  # leftover


@final
@dataclass(frozen=True)
class EngineConfig:
    """How the computing is done. None of it may change what is computed, precision excepted."""

    executor: str = "auto"  # auto | sequential | threads | batched | processes
    workers: int | str = "auto"
    block: int | str = "auto"  # clients trained together by the batched executor
    precision: str = "fp32"  # fp32 | tf32 | bf16
    memory_format: str = "auto"  # of images: auto | contiguous | channels_last | mixed
    convolutions: str = "auto"  # 3x3 ones, with channels last: auto | direct | winograd
    kernels: str = "auto"  # of norms and what follows them on a CPU: auto | native | torch
    compile: bool = False
    device: str = "auto"  # auto | cpu | cuda
    threads: int | str = "auto"  # intra-op threads of each process
    compaction: bool = False  # leave out what zero weights multiply
    state_memory_mb: int | str = "auto"  # of the clients' memories; more goes to the run folder
    rank_exchange: str = "mean"  # torchrun: mean (one reduction where the method allows) | replies (exact)
    rank_timeout_seconds: float = 1800.0  # torchrun: longest wait for the slowest rank


@final
@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is written as soon as either has passed; 0 switches a rule off."""

    every_rounds: int = 10
    every_seconds: float = 120.0
    stop_after_seconds: float = 0.0  # stop in order after the round in which they have passed; 0: never


@final
@dataclass(frozen=True)
class TrackingConfig:
    """Where progress is shown."""

    console: str = "auto"  # auto | rich | plain | quiet | json
    tensorboard: bool = False


@final
@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, and the run's name (used with or without it)."""

    mode: str = "disabled"  # online | offline | disabled
    project: str = "ssfl-experiments"
    exp_name: str = "ssfl"


@final
@dataclass(frozen=True)
class Config:
    """One run, resolved and checked."""

    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


LEFTOVERS: tuple[str, ...] = (
    "model.cs",
    "dataset.public_portion",
    "dataset.data_loader_max_workers",
    "experiment.ci",
)
"""Published keys that the authors' SSFL code never reads: accepted, with a warning when somebody sets one."""
