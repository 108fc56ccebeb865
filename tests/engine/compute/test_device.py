"""Code for devices, tested on a CPU (static steps without waits, copied tensors) and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssfl.algorithms.base import ClientContext, Clock, Probe, Work
from ssfl.algorithms.dense import dense_training
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.masked import SupportMemo, masked_training
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.optim import ExponentialDecay, FitSpec, sgd_step_
from ssfl.core.saliency import SNIP
from ssfl.data import federation as federation_module
from ssfl.data.arrays import Arrays
from ssfl.data.federation import Federation
from ssfl.data.preprocess import Preprocess
from ssfl.engine.client.errors import DivergedError
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.device import (
    CPU,
    NoDeviceError,
    device_of,
    layer_draws,
    on_device,
    on_host,
    resolved_device,
    stacked,
)
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.batched.static_steps import (
    StaticBlock,
    StaticTrainer,
    block_epoch,
    masked_sgd_step_,
)
from ssfl.engine.executors.sequential import SequentialExecutor
from tests.contract.table import ALGORITHMS, run_to_end
from tests.support.rigs import float_data, make_rig, make_runner, tiny_net

WAITS = (
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "item",
    "unique",
    "_unique2",
)
"""Operations that make the host wait for a result or its size."""
SPECS = {
    "plain": FitSpec(2, 8, ExponentialDecay(0.1, 0.998), weight_decay=5e-2),
    "clip": FitSpec(2, 8, ExponentialDecay(0.1, 0.998), clip_norm=0.3),
    "momentum": FitSpec(3, 8, ExponentialDecay(0.1, 0.5), momentum=0.9, weight_decay=5e-2, clip_norm=0.5),
}
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; PyTorch sees none")


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, an operation that makes the host wait for the device is an error."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def pictures(sizes: Sequence[int] = (13, 8, 21)) -> Federation:
    """uint8 images that are cropped and flipped, a few for each client."""
    draws = torch.Generator().manual_seed(3)
    total = sum(sizes)
    x = torch.randint(0, 256, (total, 3, 6, 6), dtype=torch.uint8, generator=draws)
    y = torch.arange(total) % 3
    arrays = Arrays("pictures", 3, ("a", "b", "c"), x, y, x[:9].clone(), y[:9].clone())
    parts = torch.split(torch.randperm(total, generator=draws), list(sizes))
    return Federation(
        arrays, Preprocess((0.4,), (0.2,), 2, True), parts, torch.split(torch.arange(9), [4, 3, 2])
    )


def runner_on(
    spec: FitSpec, data: Any = None, precision: str = "fp32", last: bool = False, device: torch.device = CPU
) -> ClientRunner:
    source = data or pictures()
    net = tiny_net(channels=source.input_shape[0])
    tasks = FedAvg(spec, 2).tasks
    return ClientRunner(net, source, tasks, 7, arithmetic=Arithmetic(precision, last, torch.float32, device))


def context_of(runner: ClientRunner, client: int) -> ClientContext:
    return ClientContext(client, Clock(2, 5), 7, runner.layout, runner.federation.examples(client))


def block_of(runner: ClientRunner, clients: Sequence[int] = (0, 1, 2)) -> tuple[Work, list[ClientContext]]:
    theta = runner.layout.flatten(runner.module)
    return {"theta": theta.repeat(len(clients), 1)}, [context_of(runner, c) for c in clients]


# ── static steps ─────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["fedavg", "ssfl", "random_clientwise", "dispfl", "sparsyfed", "local"])
def test_static_blocks_give_the_sequential_executors_models(name: str) -> None:
    data, models = float_data(), []
    for static in (False, True):
        method, module = ALGORITHMS[name](), tiny_net()
        runner = make_runner(data, module, method.tasks)
        executor: Any = BatchedExecutor(runner, 3, static=True) if static else SequentialExecutor(runner)
        models.append(run_to_end(make_rig(method, data, module, executor=executor), 2))
    torch.testing.assert_close(*models, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("last", [False, True])
def test_unequal_clients_train_as_alone(name: str, last: bool) -> None:
    spec = SPECS[name]
    data = float_data((13, 8, 1, 21, 5))
    runner = make_runner(data, tiny_net(), FedAvg(spec, 2).tasks)
    runner.arithmetic = replace(runner.arithmetic, channels_last=last)
    task = dense_training(spec)
    trainer = StaticTrainer(runner)
    for _ in range(2):  # the second time the block's tensors are reused
        stack, contexts = block_of(runner, range(5))
        losses = trainer.fit(task, spec, stack, contexts)
        for k, context in enumerate(contexts):
            work = {"theta": runner.layout.flatten(tiny_net().double())}
            alone = runner.fit(task, spec, work, context)
            assert alone is not None
            assert losses[k].last_epoch == pytest.approx(alone.last_epoch, abs=1e-10)
            assert losses[k].all_epochs == pytest.approx(alone.all_epochs, abs=1e-10)
            torch.testing.assert_close(stack["theta"][k], work["theta"], rtol=0, atol=1e-11)
        runner.module.load_state_dict(tiny_net().double().state_dict())


def test_a_batch_size_above_every_client_takes_no_more_memory_than_the_largest() -> None:
    huge = replace(SPECS["plain"], batch_size=10**12)
    runner = runner_on(huge)
    whole, contexts = block_of(runner)
    StaticTrainer(runner).fit(dense_training(huge), huge, whole, contexts)
    most = max(context.examples for context in contexts)
    exact = replace(huge, batch_size=most)
    stack, _ = block_of(runner)
    StaticTrainer(runner).fit(dense_training(exact), exact, stack, contexts)
    assert whole["theta"].equal(stack["theta"])


def test_a_step_that_counts_nothing_changes_nothing() -> None:
    spec = SPECS["momentum"]
    runner = runner_on(spec)
    stack, _ = block_of(runner)
    block = StaticBlock(runner, dense_training(spec), spec, stack, runner.federation.input_shape)
    block.lr.fill_(0.5)
    assert block.velocity is not None
    block.velocity.fill_(0.25)
    block.step()
    assert block.theta.equal(stack["theta"])
    assert bool((block.velocity == 0.25).all())
    assert block.loss_sums.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", SPECS)
def test_the_step_with_a_tensor_rate_is_the_core_step(name: str) -> None:
    spec, draws = SPECS[name], torch.Generator().manual_seed(1)
    theta, gradient, velocity = torch.randn(3, 2, 40, dtype=torch.float64, generator=draws).unbind()
    own = velocity.clone() if spec.momentum else None
    mine, active = theta.clone(), torch.tensor([[True], [False]])
    masked_sgd_step_(mine, gradient.clone(), own, spec, torch.tensor(0.3, dtype=torch.float64), active)
    theirs = velocity[0].clone() if spec.momentum else None
    expected = theta[0].clone()
    sgd_step_(expected, gradient[0].clone(), theirs, spec, 0.3)
    torch.testing.assert_close(mine[0], expected, rtol=0, atol=1e-14)
    assert mine[1].equal(theta[1])
    if own is not None and theirs is not None:
        torch.testing.assert_close(own[0], theirs, rtol=0, atol=1e-14)
        assert own[1].equal(velocity[1])


def test_an_epoch_of_a_block_holds_the_clients_own_batches() -> None:
    runner = runner_on(SPECS["plain"])
    contexts = [context_of(runner, c) for c in range(3)]
    data = block_epoch(runner, contexts, 1, 8)
    assert data.counts.tolist() == [[8, 8, 8], [5, 0, 8], [0, 0, 5]]
    for k, context in enumerate(contexts):
        for step, (x, y) in enumerate(runner.train_batches(context, 1, 8)):
            assert data.x[k, step, : len(y)].equal(x)
            assert data.y[k, step, : len(y)].equal(y)
            assert bool((data.y[k, step, len(y) :] == -100).all())
    assert data.y[1, 1].tolist() == [0] * 8


def test_a_loss_that_is_not_finite_names_its_client() -> None:
    wild = FitSpec(3, 8, ExponentialDecay(1e30, 1.0))
    data = float_data((13, 8))
    runner = make_runner(data, tiny_net(norm="none"), FedAvg(wild, 2).tasks, dtype=torch.float32)
    rig = make_rig(
        FedAvg(wild, 2), data, tiny_net(norm="none"), executor=BatchedExecutor(runner, 2, static=True)
    )
    with pytest.raises(DivergedError, match="client 0, phase train, round 1"):
        rig.run(2)


@pytest.mark.parametrize("size", [1, 2])
def test_a_score_that_is_not_finite_names_its_client(size: int) -> None:
    data = float_data((13, 8))
    x, y = data.train[1]
    data = replace(data, train=(data.train[0], (x * 3e38, y)))
    algorithm = SSFL(FitSpec(1, 8, ExponentialDecay(0.1, 1.0)), 2, Discovery(Probe(SNIP, 1, 8), 0.3))
    runner = make_runner(data, tiny_net(norm="none"), algorithm.tasks, dtype=torch.float32)
    executor = SequentialExecutor(runner) if size == 1 else BatchedExecutor(runner, size)
    rig = make_rig(algorithm, data, tiny_net(norm="none"), dtype=torch.float32, executor=executor)
    with pytest.raises(DivergedError, match="client 1, phase score, round 1: a saliency score is not finite"):
        rig.run(2)


# ── nothing waits inside ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("masked", [False, True])
def test_local_epochs_never_wait_for_the_device(masked: bool) -> None:
    spec = SPECS["momentum"]
    runner = runner_on(spec)
    work = {"theta": runner.layout.flatten(runner.module)}
    task: Any = dense_training(spec)
    if masked:
        task = masked_training(spec, SupportMemo())
        work["mask"] = torch.arange(runner.layout.trained_size) % 2 == 0
    runner.flat(task)
    with NoWaiting():  # type: ignore[no-untyped-call]
        runner.train(task, spec, work, context_of(runner, 0))


def test_static_steps_never_wait_for_the_device() -> None:
    spec = SPECS["momentum"]
    runner = runner_on(spec)
    stack, contexts = block_of(runner)
    block = StaticBlock(runner, dense_training(spec), spec, stack, runner.federation.input_shape)
    with NoWaiting():  # type: ignore[no-untyped-call]
        block.load(stack)
        block_epoch(runner, contexts, 0, 8)
        block.step()


def test_the_watch_sees_a_wait() -> None:
    watch: Any = NoWaiting
    with watch(), pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(2).sum())


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_keeps_to_one_device(masked: bool) -> None:
    """Tensors on the device "meta" have no values: reading a value, or mixing with a CPU tensor, is an error there."""
    meta = torch.device("meta")
    spec = SPECS["momentum"]
    runner = make_runner(float_data((13, 8)), tiny_net(), FedAvg(spec, 2).tasks, dtype=torch.float32)
    runner.module.to(meta)
    runner.arithmetic = Arithmetic(device=meta)
    size = runner.layout.size
    work = {"theta": torch.zeros(size), "mask": torch.ones(runner.layout.trained_size, dtype=torch.bool)}
    task: Any = masked_training(spec, SupportMemo()) if masked else dense_training(spec)
    stack = stacked([work, work], meta)
    block = StaticBlock(runner, task, spec, stack, (1, 6, 6))
    block.step()
    assert block.theta.device == block.loss_sums.device == meta
    contexts = [context_of(runner, c) for c in (0, 1)]
    assert block_epoch(runner, contexts, 0, 8).x.device == meta
    alone = on_device(work, meta, task)
    losses, _ = runner.train(task, spec, alone, contexts[0])
    assert {part.device for part in losses} == {meta}
    assert alone["theta"].shape == (size,)


# ── what crosses ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_batches_do_not_depend_on_how_many_are_gathered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, order = pictures(), torch.arange(21).flip(0)

    def drawn(at_once: int) -> list[Tensor]:
        monkeypatch.setattr(federation_module, "_AUGMENTED_AT_ONCE", at_once)
        return [x for x, _ in data.train_batches(2, order, 4, torch.Generator().manual_seed(5))]

    for few, many in zip(drawn(4), drawn(1 << 14), strict=True):
        assert few.equal(many)


def test_a_federation_moves_once() -> None:
    data = pictures()
    assert data.to(CPU) is data
    assert data.preprocess.to(torch.device("meta")).normalise(torch.zeros(2, 3, device="meta")).is_meta


def test_works_are_stacked_and_come_back() -> None:
    theta, own = torch.randn(5), [torch.randn(3), torch.randn(3)]
    works: list[Work] = [{"theta": theta, "mask": own[0]}, {"theta": theta, "mask": own[1]}]
    stack = stacked(works, CPU)
    assert stack["theta"].equal(torch.stack([theta, theta]))
    assert stack["mask"].equal(torch.stack(own))
    stack["theta"][0] += 1  # a copy: the received tensor must not change
    assert stack["theta"][1].equal(theta)
    task = dense_training(SPECS["plain"])
    mine = on_device(works[0], CPU, task)
    assert mine is not works[0]
    assert all(mine[name] is works[0][name] for name in works[0])
    assert on_host(works[0], works[0], task) is works[0]
    copied = on_device(works[0], CPU, replace(task, updates=("mask",)))
    assert copied["theta"] is theta
    assert copied["mask"].data_ptr() != own[0].data_ptr()
    assert copied["mask"].equal(own[0])
    meta = on_device(works[0], torch.device("meta"), task)
    assert meta["theta"].is_meta
    assert meta["mask"].is_meta
    assert stacked(works, torch.device("meta"))["theta"].shape == (2, 5)


def test_devices_by_name() -> None:
    assert resolved_device("cpu") == "cpu"
    assert resolved_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_of("cpu", 3) == CPU
    with pytest.raises(NoDeviceError, match="no CUDA device 1000; PyTorch sees"):
        device_of("cuda", 1000)


def test_layers_draw_from_their_own_stream() -> None:
    before = torch.default_generator.get_state()
    with layer_draws(CPU, 5):
        drawn = torch.rand(4)
    assert torch.default_generator.get_state().equal(before)
    assert drawn.equal(torch.rand(4, generator=torch.Generator().manual_seed(5)))


def test_bf16_computes_in_bf16_over_float32_weights() -> None:
    spec = SPECS["plain"]
    models = {}
    for precision in ("fp32", "bf16"):
        runner = runner_on(spec, precision=precision)
        stack, contexts = block_of(runner)
        StaticTrainer(runner).fit(dense_training(spec), spec, stack, contexts)
        assert stack["theta"].dtype == torch.float32
        models[precision] = stack["theta"]
    assert not models["fp32"].equal(models["bf16"])
    torch.testing.assert_close(models["fp32"], models["bf16"], rtol=0, atol=0.02)


# ── with a device ────────────────────────────────────────────────────────────────────────────────────────────────
@gpu
@needs_gpu
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_device_gives_the_cpus_models(batched: bool, graphs: bool) -> None:
    spec = SPECS["momentum"]
    models = []
    for device in (CPU, torch.device("cuda", 0)):
        data = pictures().to(device)
        runner = runner_on(spec, data, device=device)
        executor: Any = SequentialExecutor(runner)
        if batched:
            executor = BatchedExecutor(runner, 2, graphs=graphs)
        rig = make_rig(FedAvg(spec, 2), data, tiny_net(channels=3), executor=executor)  # type: ignore[arg-type]
        models.append(rig.run(2))
    torch.testing.assert_close(models[0], models[1], rtol=0, atol=1e-4)
