"""Bad input: one line with the key, the value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssfl.config import Config, ConfigError, cohort_size, fine_tune_epochs, load_config, validate
from ssfl.config.combinations import combinations
from ssfl.config.errors import near_match

REFUSED = [
    ("model.dense_ratio=1.5", "model.dense_ratio", "above 0 and at most 1"),
    ("model.dense_ratio=0", "model.dense_ratio", "above 0 and at most 1"),
    ("model.dense_ratio=abc", "model.dense_ratio", "a number"),
    ("model.no_such_key=1", "model.no_such_key", "no such key"),
    ("model.dense_rato=0.3", "model.dense_rato", "did you mean model.dense_ratio?"),
    ("lr=0.1", "lr", "did you mean optimizer.lr?"),
    ("hydra.run.dir=x", "hydra.run.dir", "no such key"),
    ("model=3", "model", "is a section"),
    ("training.frac=0", "training.frac", "above 0"),
    ("training.frac=2", "training.frac", "at most 1"),
    ("training.frac=0.001", "training.frac", "at least 0.01"),
    ("training.epochs=0", "training.epochs", "at least 1"),
    ("training.epochs=1.5", "training.epochs", "a whole number"),
    ("training.batch_size=-4", "training.batch_size", "at least 1"),
    ("training.client_num_in_total=0", "training.client_num_in_total", "at least 1"),
    ("training.client_num_per_round=101", "training.client_num_per_round", "at most client_num_in_total=100"),
    ("training.client_num_per_round=0", "training.client_num_per_round", "at least 1, or -1"),
    ("algorithm=nope", "algorithm", "fedavg"),
    ("algorithm=fedavgg", "algorithm", "did you mean fedavg?"),
    ("algorithm=[ssfl]", "algorithm", "must be one of"),
    ("algorithm/mode=nope", "algorithm/mode", "random_global"),
    ("preset=nope", "preset", "digits"),
    ("algorithm.params.mode=randm", "algorithm.params.mode", "random_clientwise"),
    (
        "algorithm.params.warmup_rounds=1001",
        "algorithm.params.warmup_rounds",
        "at most training.comm_round=1000",
    ),
    ("algorithm.params.min_layer_density=0.6", "algorithm.params.min_layer_density", "at most"),
    ("dataset.partition_alpha=-1", "dataset.partition_alpha", "above 0"),
    ("dataset.partition_method=dirichlet", "dataset.partition_method", "natural"),
    ("dataset.name=''", "dataset.name", "not be empty"),
    ("optimizer.lr=nan", "optimizer.lr", "finite"),
    ("optimizer.lr=inf", "optimizer.lr", "finite"),
    ("optimizer.momentum=1", "optimizer.momentum", "below 1"),
    ("experiment.seed=x", "experiment.seed", "a whole number"),
    ("experiment.seed=-1", "experiment.seed", "at least 0"),
    ("engine.block=1.5", "engine.block", "a whole number"),
    ("engine.workers=two", "engine.workers", "or auto"),
    ("model.norm=layer", "model.norm", "group2"),
    ("model.name=${model.nme}", "model.name", "not found"),
    ("tracking.tensorboard=maybe", "tracking.tensorboard", "true or false"),
    ("wandb.exp_name=../x", "wandb.exp_name", "no slash"),
    ("wandb.exp_name=..", "wandb.exp_name", "no dot first"),
    ("wandb.mode=on", "wandb.mode", "online"),
    ("just-a-word", "just-a-word", "KEY=VALUE"),
    ("~model.name", "~model.name", "cannot be deleted"),
    ("model.dense_ratio=0.5,0.1", "model.dense_ratio", "ssfl sweep"),
    ("dataset.data_dir=a(b", "dataset.data_dir=a(b", "\"dataset.data_dir='a(b'\""),
    ("wandb.exp_name='${a'", "wandb.exp_name", "a reference that cannot be read"),
    ("wandb.exp_name=${a b}", "wandb.exp_name", "a reference that cannot be read"),
    ("optimizer.lr=", "optimizer.lr", "has no value; must be a number, above 0"),
]
MALFORMED = [
    ("optimizer.lr=0.1,", "write optimizer.lr=0.1"),
    ("optimizer.lr=,0.1", "write optimizer.lr=0.1"),
    ("optimizer.lr=0.1,,0.2", "write optimizer.lr=0.1,0.2"),
    ("optimizer.lr=,", "write optimizer.lr=VALUE"),
    ("preset=digits,", "write preset=digits"),
    ("optimizer.lr=[1,,2]", "an item of the list is empty"),
    ("optimizer.lr==0.1", "write optimizer.lr=0.1"),
    ("optimizer.lr=[0.1", "[ is not closed; optimizer.lr must be a number, above 0"),
    ("optimizer.lr=0.1]", "] has no [ before it"),
    ("optimizer.lr={a:1", "{ is not closed"),
    ("optimizer.lr=range(1,4", "( is not closed"),
    ("optimizer.lr=foo(1)", "range(START,STOP,STEP)"),
    ("optimizer.lr=choice()", "choice(a,b)"),
    ("optimizer.lr=0.1;", "; is a special character; optimizer.lr must be a number"),
    ("optimizer..lr=1", "a part of the key optimizer..lr is empty; write optimizer.lr=1"),
    (".optimizer.lr=1", "write optimizer.lr=1"),
    ("optimizer.=1", "a part of the key optimizer. is empty"),
    ("optimizer.lr = 1", "write optimizer.lr=1"),
    ("optimizer lr=1", "write optimizer.lr=1"),
    ("optimizer@lr=1", "write optimizer.lr=1"),
    ("=1", "the key before = is missing"),
    ("lr", "did you mean optimizer.lr?"),
    ("optimizer.lr", "is a key without a value; write optimizer.lr=VALUE"),
    ("", "is not of the form KEY=VALUE"),
    ("wandb.exp_name='a", "the quote ' has no partner; text with special characters needs quotes"),
    ('wandb.exp_name="a', 'the quote " has no partner'),
    ("wandb.exp_name=a'b", "the quote ' has no partner"),
    ("wandb.exp_name='a','b", "the quote ' has no partner"),
    ("wandb.exp_name=${x", "the reference ${ has no }"),
    ("wandb.exp_name=é", "\"wandb.exp_name='é'\""),
    ("wandb.exp_name=a#b", "\"wandb.exp_name='a#b'\""),
]
TOKENS = ("EOF", "BRACKET_OPEN", "expecting", "viable", "token", "extraneous", "evaluating", "Error")
"""Of the parser's own messages."""


@pytest.mark.parametrize(("word", "key", "reason"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_in_one_line(word: str, key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([word])
    text = str(caught.value)
    assert caught.value.key == key
    assert key.partition("=")[0] in text
    assert reason in text
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize(("word", "reason"), MALFORMED, ids=[row[0] for row in MALFORMED])
@pytest.mark.parametrize("read", [load_config, combinations])
def test_a_malformed_word_is_explained(
    word: str, reason: str, read: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(["preset=digits", word])
    text = str(caught.value)
    assert text.startswith(f"{word!r}: ")
    assert reason in text
    assert not [token for token in TOKENS if token in text]
    assert len(text) < 300
    assert capsys.readouterr() == ("", "")


def _refusal(words: list[str]) -> str:
    try:
        load_config(words)
    except ConfigError as error:
        return str(error)
    return ""


SIGNS = st.sampled_from([*"=.,'\"()[]{}$ \\#é", "lr", "0.1", "optimizer", "range", "${", "'${"])


@given(st.lists(SIGNS, max_size=8).map("".join))
def test_any_word_is_read_or_explained(value: str) -> None:
    said = [_refusal([word]) for word in (value, f"wandb.exp_name={value}")]
    assert not [token for token in ("\n", *TOKENS) if token in "".join(said)]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("experiment.seed=range(4,1)", "lists no value"),
        ("experiment.seed=range(1,4,0)", "range(START,STOP,STEP)"),
        ("optimizer.lr=interval(0,1)", "choice(a,b)"),
        ("experiment.seed=range(0,1000000000)", "more than 10000 runs"),
        ("experiment.seed=range(0,1e12)", "more than 10000 runs"),
    ],
)
def test_lists_of_a_sweep_that_cannot_be_multiplied(word: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        combinations([word])


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_a_block_needs_an_executor_of_blocks(executor: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.executor={executor} takes one client at a time") as caught:
        load_config([f"engine.executor={executor}", "engine.block=8"])
    assert caught.value.key == "engine.block"
    assert load_config([f"engine.executor={executor}", "engine.block=1"]).engine.block == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["engine.executor=threads"], "not with engine.executor=threads; use sequential or processes"),
        (["engine.executor=batched"], "not with engine.executor=batched"),
        (["engine.compaction=true"], "not with engine.compaction=true"),
        (["engine.kernels=native"], "not with engine.compile=true"),
    ],
)
def test_what_compiling_does_not_go_with(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(["engine.compile=true", *words])
    assert caught.value.key in ("engine.compile", "engine.kernels")


def test_the_mixed_format_needs_the_kernels() -> None:
    with pytest.raises(ConfigError, match=r"engine.memory_format=mixed.*needs engine.kernels=native"):
        load_config(["engine.memory_format=mixed", "engine.kernels=torch"])
    assert load_config(["engine.memory_format=mixed"]).engine.memory_format == "mixed"


@pytest.mark.parametrize(
    ("other", "because"),
    [
        ("engine.kernels=torch", "needs engine.kernels=native"),
        ("engine.compile=true", "needs engine.kernels=native"),
        ("engine.memory_format=mixed", "needs engine.memory_format=channels_last"),
        ("engine.executor=batched", "not in blocks of clients"),
        ("engine.block=4", "not in blocks of clients"),
        ("engine.precision=bf16", "computes in float32"),
    ],
)
def test_winograd_says_what_it_needs(other: str, because: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.convolutions=winograd.*{because}"):
        load_config(["engine.convolutions=winograd", other])
    assert load_config(["engine.convolutions=winograd"]).engine.convolutions == "winograd"


def test_a_mode_for_a_method_without_masks() -> None:
    with pytest.raises(ConfigError, match=r"algorithm/mode=random_global.*fedavg.*algorithm=ssfl"):
        load_config(["algorithm=fedavg", "algorithm/mode=random_global"])


@given(total=st.integers(1, 5000), percent=st.integers(1, 100))
def test_cohort_is_the_floor_of_the_exact_product(total: int, percent: int) -> None:
    training = replace(Config().training, client_num_in_total=total, frac=percent / 100)
    assert (
        cohort_size(replace(Config(), training=training)) == total * percent // 100
    )  # integers: no rounding


def test_cohort_given_as_a_number_wins() -> None:
    assert cohort_size(load_config(["training.client_num_per_round=7"])) == 7


def test_fine_tune_epochs_default_to_the_local_epochs() -> None:
    assert fine_tune_epochs(load_config(["algorithm=fedavg_ft", "training.epochs=3"])) == 3
    assert fine_tune_epochs(load_config(["algorithm=fedavg_ft", "training.fine_tune_epochs=2"])) == 2


@given(density=st.floats(allow_nan=True, allow_infinity=True))
def test_density_is_in_the_half_open_unit_interval(density: float) -> None:
    config = replace(Config(), model=replace(Config().model, dense_ratio=density))
    if 0 < density <= 1:
        validate(config)
    else:
        with pytest.raises(ConfigError):
            validate(config)


def test_near_match_stays_silent_when_nothing_is_near() -> None:
    assert near_match("zzz", ["alpha", "beta"]) == ""
    assert near_match("algorithm.lr", ["optimizer.lr", "model.name"]) == " (did you mean optimizer.lr?)"
