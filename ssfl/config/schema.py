"""The whole configuration as frozen dataclasses: each key's name, type, default, range and meaning in one place.

Published keys keep their published names. Defaults are those of the paper's CIFAR-10 recipe (SSFL, TMLR 2026, and
the authors' README); where the authors' schema and base.yaml disagree, docs/configuration.md says which value is used.
The classes are frozen because a run must not change the configuration that its folder records. conf/base.yaml and the
tables of docs/configuration.md are made from them (`python -m ssfl.config.document`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, final

from ssfl.algorithms.method import Method
from ssfl.algorithms.table import find_method
from ssfl.settings import setting


def _default_params() -> Any:
    return find_method("ssfl").settings()


@final
@dataclass(frozen=True)
class AlgorithmConfig:
    """Which method trains."""

    name: str = setting(
        "ssfl",
        "a method of ssfl.algorithms.table, or package.module:CLASS for a custom method",
        published=True,
    )
    params: Any = field(default_factory=_default_params)
    """The method's own settings: an instance of its `Method.settings`."""

    @property
    def method(self) -> Method:
        """The method with this name."""
        return find_method(self.name)

    @property
    def unread_keys(self) -> tuple[str, ...]:
        """Keys of the configuration without effect on this method with these settings."""
        return self.method.unread_keys(self.params)


@final
@dataclass(frozen=True)
class ModelConfig:
    """The network and how much of it is kept."""

    name: str = setting(
        "resnet18",
        "a name in ssfl.models, or package.module:Class for a custom network",
        published=True,
    )
    norm: str = setting("group", "`group`, `group2` (or another number of groups), `batch`")
    dense_ratio: float = setting(
        0.5,
        "density: share of the prunable weights kept (DisPFL: of all trained parameters)",
        above=0,
        at_most=1,
        published=True,
    )
    itersnip_iteration: int = setting(
        1, "minibatches averaged into a client's score", at_least=1, published=True
    )
    anneal_factor: float = setting(
        0.5, "DisPFL: first drop rate of the cosine", at_least=0, at_most=1, published=True
    )
    cs: str = setting("v0", "not read", published=True, unread=True)
    erk_power_scale: float = setting(1.0, "DisPFL: exponent of the ERK densities", at_least=0, published=True)


PartitionMethod = Literal["dir", "patho", "dir_unbalanced", "iid", "natural"]


@final
@dataclass(frozen=True)
class DatasetConfig:
    """The data and who owns which part of it."""

    name: str = setting(
        "cifar10", "a known set, DATA_DIR/NAME.npz, or the path of an .npz or an image folder", published=True
    )
    data_dir: str = setting("./dataset", "folder of the data sets", published=True)
    partition_method: PartitionMethod = setting(
        "dir",
        "Dirichlet labels with equal sizes (`dir`) or not (`dir_unbalanced`); `patho`: few classes per client; "
        "`iid`: equal random parts; `natural`: by site",
        published=True,
    )
    partition_alpha: float = setting(
        0.3,
        "`dir`, `dir_unbalanced`: concentration; `patho`: classes per client (2 when below 1)",
        above=0,
        published=True,
    )
    augment: bool = setting(True, "random crop and flip, for data sets that use them")
    min_examples: int = setting(
        1, "minimum of a client's training examples; a partition with fewer is refused", at_least=1
    )
    validation_portion: float = setting(
        0.0, "share of each client's training examples held out for validation", at_least=0, below=1
    )
    features: Literal["standardised", "unchanged"] = setting(
        "standardised",
        "tables: `standardised`: mean 0 and deviation 1 by column; `unchanged`: as stored in the file (token numbers)",
    )
    public_portion: float = setting(0.0, "not read", published=True, unread=True)
    data_loader_max_workers: int | None = setting(None, "not read", published=True, unread=True)


Scheduler = Literal["default", "cosine_annealing", "geometric"]


@final
@dataclass(frozen=True)
class OptimizerConfig:
    """A client's local optimiser."""

    client_optimizer: Literal["sgd"] = setting(
        "sgd", "plain SGD, as every method of the table uses it", published=True
    )
    lr: float = setting(0.1, "initial learning rate", above=0, published=True)
    lr_decay: float = setting(
        0.998,
        "`scheduler=default`: lr * lr_decay ** round (DisPFL: round - 1), rounds from 1",
        above=0,
        at_most=1,
        published=True,
    )
    momentum: float = setting(
        0.0, "heavy-ball factor; the velocity starts at zero each round", at_least=0, below=1, published=True
    )
    wd: float = setting(5e-4, "weight decay", at_least=0, published=True)
    scheduler: Scheduler = setting(
        "default",
        "`default`: lr_decay; `cosine_annealing`: restarts each round; `geometric`: lr to final_lr over the rounds",
        published=True,
    )
    final_lr: float = setting(0.01, "`scheduler=geometric`: the last round's learning rate", above=0)
    scheduler_cycle_len: int = setting(
        10, "`scheduler=cosine_annealing`: cycle length in local epochs", at_least=1, published=True
    )
    fine_tune_lr: float = setting(
        -1.0,
        "FedAvg-FT: learning rate of fine-tuning; -1: the initial lr (or the same cosine)",
        above=0,
        also=(-1,),
    )
    clip_norm: float = setting(
        10.0, "maximum L2 norm of the gradient (SSFL: after masking); 0: no clipping", at_least=0
    )


@final
@dataclass(frozen=True)
class TrainingConfig:
    """Rounds, cohorts and local epochs."""

    batch_size: int = setting(
        16, "examples in a minibatch, for training and scoring", at_least=1, published=True
    )
    epochs: int = setting(5, "local epochs", at_least=1, published=True)
    comm_round: int = setting(
        1000, "rounds trained (the authors' loop trains one fewer)", at_least=1, published=True
    )
    frac: float = setting(
        0.1, "cohort: int(client_num_in_total * frac) clients", above=0, at_most=1, published=True
    )
    client_num_in_total: int = setting(100, "number of clients", at_least=1, published=True)
    client_num_per_round: int = setting(
        -1, "cohort size; -1: from frac", at_least=1, also=(-1,), published=True
    )
    frequency_of_the_test: int = setting(
        1, "rounds between evaluations; the last round is always evaluated", at_least=1, published=True
    )
    max_workers: int = setting(
        20, "upper limit of what engine.workers=auto chooses", at_least=1, published=True
    )
    fine_tune_epochs: int = setting(
        -1, "FedAvg-FT: local epochs after the last round; -1: the value of epochs", at_least=0, also=(-1,)
    )
    missing_replies: float = setting(
        0.0, "share of each exchange's clients that do not answer, drawn from the seed", at_least=0, below=1
    )
    lone_example: Literal["join", "drop"] = setting(
        "join",
        "BatchNorm and a last minibatch of one example: `join` it to the previous minibatch, or `drop` it",
    )


@final
@dataclass(frozen=True)
class ExperimentConfig:
    """Seed, place and label of the run."""

    seed: int = setting(550, "seed of all random draws", at_least=0, at_most=2**63 - 1, published=True)
    gpu: int = setting(0, "number of the CUDA device", at_least=0, published=True)
    tag: str = setting("", "a label for the run; recorded, without effect", published=True)
    debug_mode: bool = setting(False, "save the inputs of a failed step, and show tracebacks", published=True)
    output_dir: str = setting("outputs", "run folders are OUTPUT_DIR/EXP_NAME/TIME")
    ci: int = setting(0, "not read", published=True, unread=True)


Auto = Literal["auto"]
ExecutorName = Literal["sequential", "threads", "batched", "processes"]


@final
@dataclass(frozen=True)
class EngineConfig:
    """How the work is computed; `auto` is chosen by a short measurement and recorded."""

    executor: Auto | ExecutorName = setting("auto", "how a cohort's clients are computed")
    workers: int | Auto = setting("auto", "number of threads or processes", at_least=1, at_most=1024)
    block: int | Auto = setting(
        "auto", "clients computed as one network, by `batched` or by each process", at_least=1
    )
    precision: Literal["fp32", "tf32", "bf16"] = setting("fp32", "number type of matrix products")
    memory_format: Literal["auto", "contiguous", "channels_last", "mixed"] = setting(
        "auto", "memory format of images; `mixed`: channels last, except maps of at most 16 pixels"
    )
    convolutions: Literal["auto", "direct", "winograd"] = setting(
        "auto",
        "method for 3x3 convolutions; `winograd` needs native kernels, `channels_last`, fp32 and block 1",
    )
    kernels: Literal["auto", "native", "torch"] = setting(
        "auto", "for norms and the operations after them on a CPU: `native` C kernels, or PyTorch"
    )
    compile: bool = setting(False, "use torch.compile for training steps; slower on every CPU measured")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "device of the computation")
    threads: int | Auto = setting(
        "auto",
        "intra-op threads with `sequential` and `batched`; workers use one each",
        at_least=1,
        at_most=1024,
    )
    compaction: bool = setting(
        False, "remove channels whose weights are zero: same results except for the order of sums"
    )
    state_memory_mb: int | Auto = setting(
        "auto",
        "memory for client states, MB; the rest is stored in files; `auto`: a quarter of what this process may use",
        at_least=0,
    )
    rank_exchange: Literal["mean", "replies"] = setting(
        "mean",
        "torchrun: `mean`: one reduction if the method allows it; `replies`: all replies, same bits as one process",
    )
    rank_timeout_seconds: float = setting(1800.0, "torchrun: maximum wait for the slowest rank", above=0)


Profile = Literal["exact", "balanced", "small"]
ValueCodecName = Literal["fp32", "lossless", "bf16", "fp16", "int8", "uniform"]
ScoreCodec = Literal["fp32", "bf16", "log256", "log64", "votes", "factored"]
MaskCodec = Literal["bitmap", "coded"]
Rounding = Literal["nearest", "stochastic"]


@final
@dataclass(frozen=True)
class CommunicationConfig:
    """How payloads become bytes (docs/communication.md); `auto`: the profile's value."""

    profile: Profile = setting(
        "exact",
        "`exact`: every bit of every value; `balanced`: 8 bits per value, unbiased; `small`: fewest bytes",
    )
    uplink: ValueCodecName | Auto = setting(
        "auto", "codec of the difference between a client's values and those it received"
    )
    uplink_step: float = setting(
        0.5,
        "`uplink=uniform`: step, in root mean squares of a tensor's difference",
        at_least=1e-5,
        at_most=16,
    )
    uplink_rounding: Rounding | Auto = setting(
        "auto",
        "`uplink=int8`, `uniform`: `stochastic` is unbiased; `auto`: `stochastic` for int8, else `nearest`",
    )
    error_feedback: bool = setting(
        False, "clients add the coding error of earlier replies to the next reply; kept in the client state"
    )
    downlink: ValueCodecName | Auto = setting("auto", "codec of the server's values")
    downlink_step: float = setting(
        0.05,
        "`uniform`: step of the downlink and of values without a reference, in root mean squares of a tensor's values",
        at_least=1e-5,
        at_most=1,
    )
    downlink_versions: int = setting(
        0,
        "models that the server keeps, to send the difference to a client's model if that is smaller",
        at_least=0,
        at_most=1000,
    )
    scores: ScoreCodec | Auto = setting(
        "auto",
        "form of clients' saliency scores; `votes`: one bit each; `factored`: factors of each layer",
    )
    mask: MaskCodec | Auto = setting(
        "auto", "`bitmap`: one bit per weight; `coded`: the smallest of three forms"
    )
    measure: Literal["closed_form", "exact"] = setting(
        "closed_form",
        "bytes of messages by a formula, or (`exact`) from encoded messages; the numbers are the same",
    )
    link_mbits: float = setting(
        0.0,
        "Mbit/s of a client's link, to compute the transfer time of messages; 0: not computed",
        at_least=0,
    )
    link_round_trip_ms: float = setting(0.0, "round trip of that link, ms", at_least=0)


@final
@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is written when either interval has passed; 0 disables an interval."""

    every_rounds: int = setting(10, "training rounds between checkpoints; 0: not by rounds", at_least=0)
    every_seconds: float = setting(120.0, "seconds between checkpoints; 0: not by time", at_least=0)
    stop_after_seconds: float = setting(
        0.0,
        "stop after the round in which this time has passed; `ssfl resume` continues; 0: never",
        at_least=0,
    )


@final
@dataclass(frozen=True)
class TrackingConfig:
    """How progress is shown and recorded."""

    console: Literal["auto", "rich", "plain", "quiet", "json"] = setting(
        "auto", "how progress is shown; `json`: events on stdout, and the summary on stderr"
    )
    tensorboard: bool = setting(False, "needs the extra tensorboard")
    metrics: Literal["accuracy", "imbalanced"] = setting(
        "accuracy",
        "`imbalanced`: also AUC, balanced accuracy, F1, sensitivity and specificity of the global model; one more pass",
    )


@final
@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, and the run's name (used with or without it)."""

    mode: Literal["online", "offline", "disabled"] = setting(
        "disabled", "needs the extra wandb", published=True
    )
    project: str = setting("ssfl-experiments", "project on Weights & Biases", published=True)
    exp_name: str = setting(
        "ssfl", "name of the run and of its folder, also without Weights & Biases", published=True
    )


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
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
