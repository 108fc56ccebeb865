"""The engine with the kernels of `ssfl.native`: results equal PyTorch's to rounding, and executors agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ssfl.algorithms.base import Algorithm, Probe
from ssfl.algorithms.fedavg import FedAvg
from ssfl.algorithms.sparsyfed import SparsyFed
from ssfl.algorithms.ssfl import SSFL, Discovery
from ssfl.core.layout import Layout
from ssfl.core.optim import ExponentialDecay, FitSpec
from ssfl.core.saliency import SNIP
from ssfl.engine.client.runner import ClientRunner
from ssfl.engine.compute import flat_module
from ssfl.engine.compute.arithmetic import Arithmetic
from ssfl.engine.compute.flat_module import FlatModule
from ssfl.engine.compute.fused_layers import native_layers
from ssfl.engine.executors.batched.executor import BatchedExecutor
from ssfl.engine.executors.executor import Executor
from ssfl.engine.executors.processes.executor import ProcessExecutor
from ssfl.engine.executors.sequential import SequentialExecutor
from ssfl.engine.executors.threads import ThreadExecutor
from ssfl.models import build_model
from ssfl.native import available
from tests.support.rigs import float_data, make_rig

pytestmark = pytest.mark.skipif(
    not available(), reason="the kernels were not built: no C compiler at installation"
)
FIT = FitSpec(1, 8, ExponentialDecay(0.05, 0.99), clip_norm=10.0)
METHODS: dict[str, Algorithm[Any]] = {
    "fedavg": FedAvg(FIT, 3),
    "ssfl": SSFL(FIT, 3, Discovery(Probe(SNIP), 0.5)),
    "sparsyfed": SparsyFed(FIT, 3, 0.5),
}


def small_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("digits_cnn", 3, (1, 6, 6))


def winograd_net() -> nn.Module:
    """A network with a convolution that the Winograd kernels support."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("resnet8", 3, (1, 6, 6))


NETS: dict[bool, Callable[[], nn.Module]] = {False: small_net, True: winograd_net}
"""Networks by whether the Winograd kernels support them."""


def runner_of(
    method: str,
    native: bool,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    winograd: bool | None = None,
) -> ClientRunner:
    """winograd: None is a network without such convolutions."""
    arithmetic = Arithmetic(channels_last=last, dtype=dtype, native=native, winograd=bool(winograd))
    net = NETS[winograd is not None]()
    return ClientRunner(net, float_data(), METHODS[method].tasks, 0, arithmetic=arithmetic)


def trained(
    method: str, executor: Executor, rounds: int = 2, net: Callable[[], nn.Module] = small_net
) -> Tensor:
    try:
        rig = make_rig(METHODS[method], float_data(), net(), dtype=torch.float32, executor=executor)
        return rig.run(rounds)
    finally:
        executor.close()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_one_without_kernels_to_rounding(method: str, last: bool) -> None:
    plain, native = (
        trained(method, SequentialExecutor(runner_of(method, native, last=last))) for native in (False, True)
    )
    assert not native.equal(plain)  # otherwise the test would compare a result with itself
    torch.testing.assert_close(native, plain, rtol=0, atol=2e-5)


def test_threads_and_processes_have_the_sequential_bits() -> None:
    alone = trained("ssfl", SequentialExecutor(runner_of("ssfl", True)))
    assert trained("ssfl", ThreadExecutor(runner_of("ssfl", True), 2)).equal(alone)
    assert trained("ssfl", ProcessExecutor(runner_of("ssfl", True), 2)).equal(alone)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_winograd_is_the_direct_one_to_rounding(method: str) -> None:
    direct, winograd = (
        trained(method, SequentialExecutor(runner_of(method, True, last=True, winograd=w)), net=winograd_net)
        for w in (False, True)
    )
    assert not winograd.equal(direct)
    torch.testing.assert_close(winograd, direct, rtol=0, atol=2e-5)


def test_with_winograd_too_threads_and_processes_have_the_sequential_bits() -> None:
    def runner() -> ClientRunner:
        return runner_of("ssfl", True, last=True, winograd=True)

    alone = trained("ssfl", SequentialExecutor(runner()), net=winograd_net)
    assert trained("ssfl", ThreadExecutor(runner(), 2), net=winograd_net).equal(alone)
    assert trained("ssfl", ProcessExecutor(runner(), 2), net=winograd_net).equal(alone)


@pytest.mark.parametrize("method", METHODS)
def test_one_client_over_two_threads_is_one_over_one_to_rounding(method: str) -> None:
    """The kernels' bits do not depend on the threads (tests/native/test_parallel.py); PyTorch's sums may."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            executor = SequentialExecutor(runner_of(method, True, last=True, winograd=True))
            found.append(trained(method, executor, net=winograd_net))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-5)


def test_a_block_is_one_client_after_the_other_to_rounding() -> None:
    alone = trained("ssfl", SequentialExecutor(runner_of("ssfl", True)))
    block = trained("ssfl", BatchedExecutor(runner_of("ssfl", True), 4))
    torch.testing.assert_close(block, alone, rtol=0, atol=2e-5)


def test_doubles_go_pytorchs_way_to_the_bit() -> None:
    plain, native = (
        trained("fedavg", SequentialExecutor(runner_of("fedavg", native, torch.float64)), 1)
        for native in (False, True)
    )
    torch.testing.assert_close(native, plain, rtol=0, atol=1e-12)


def test_layers_are_as_before_afterwards() -> None:
    net = small_net()
    x = torch.randn(2, 1, 6, 6)
    before = net(x)
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    with contextlib.suppress(ZeroDivisionError), native_layers(net):
        assert all("fused" in vars(m) for m in norms)
        raise ZeroDivisionError
    assert not any({"fused", "forward"} & set(vars(m)) for m in norms)
    assert net(x).equal(before)
    with native_layers(net, wanted=False):
        assert not any("fused" in vars(m) for m in norms)


class Mine(nn.Module):
    """A custom network: separate norms, pooling of a map with odd sides, a norm without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 2)
        self.norm = nn.GroupNorm(4, 16)
        self.bare = nn.GroupNorm(4, 16, affine=False)
        self.out = nn.Linear(16 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(self.bare(x).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_users_network_computes_the_same(form: torch.memory_format) -> None:
    net, x = Mine(), torch.randn(3, 1, 6, 6).contiguous(memory_format=form)
    plain = net(x)
    wanted = torch.autograd.grad(plain.square().sum(), list(net.parameters()))
    with native_layers(net):
        found = net(x)
        gradients = torch.autograd.grad(found.square().sum(), list(net.parameters()))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("name", ["cnn", "digits_cnn", "resnet8", "resnet18"])
def test_the_projects_networks_compute_the_same(name: str, winograd: bool) -> None:
    torch.manual_seed(0)
    net = build_model(name, 10, (3, 16, 16))
    x = torch.randn(4, 3, 16, 16)
    for form in (torch.contiguous_format, torch.channels_last):
        images = x.contiguous(memory_format=form)
        plain = net(images)
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(plain.sum(), list(net.parameters()))])
        with native_layers(net, winograd=winograd):
            found = net(images)
            gradients = torch.autograd.grad(found.sum(), list(net.parameters()))
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
        mine = torch.cat([g.flatten() for g in gradients])
        assert float((mine - wanted).norm() / wanted.norm()) < 1e-4


def test_mixed_formats_compute_the_same() -> None:
    torch.manual_seed(0)
    net = build_model("resnet18", 10, (3, 32, 32), "group2")
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    formats = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            formats[name] = output.is_contiguous()

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    with native_layers(net):
        plain = net(x)
    for handle in handles:
        handle.remove()
    with native_layers(net, mixed=True):
        hooked = [
            m.register_forward_hook(note(n)) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)
        ]
        mixed = net(x)
    assert len(hooked) == len(handles)
    torch.testing.assert_close(mixed, plain, rtol=1e-4, atol=1e-4)
    assert formats["layer4.1.conv2"]
    assert formats["layer4.0.conv1"]  # its input has 64 pixels, its output 16
    assert not formats["layer3.1.conv2"]


class Filtered(nn.Module):
    """A custom network: convolutions with a bias, without a norm, and with a replaced forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.own = nn.Conv2d(16, 32, 3, padding="same")
        self.own.forward = lambda x: 2 * nn.Conv2d.forward(self.own, x)  # type: ignore[method-assign,assignment]
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.own(torch.relu(self.first(x)))).mean((2, 3))  # type: ignore[no-any-return]


def test_a_users_convolutions_use_winograd_unless_they_compute_something_else() -> None:
    net, x = Filtered(), torch.randn(3, 16, 5, 6).contiguous(memory_format=torch.channels_last)
    own = net.own.forward
    plain = net(x)
    wanted = torch.autograd.grad(plain.square().sum(), list(net.parameters()))
    with native_layers(net, winograd=True):
        assert "forward" in vars(net.first)
        assert net.own.forward is own
        found = net(x)
        gradients = torch.autograd.grad(found.square().sum(), list(net.parameters()))
        half = net.double()(x.double())  # not supported by the kernels
    assert "forward" not in vars(net.first)
    assert net.own.forward is own
    assert not found.equal(plain)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(half.float(), plain, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


class Reused(nn.Module):
    """Two convolutions; the loss depends on the first one twice, once, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.times = 1

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.first(x)
        return self.last(x).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("moved_bytes", [0, 1 << 30])
def test_gradients_in_their_places_are_those_that_would_be_copied(
    moved_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat_module, "MOVED_BYTES", moved_bytes)
    net = Reused()
    flat = FlatModule(net, Layout.of(net))
    x = torch.randn(3, 16, 5, 6).contiguous(memory_format=torch.channels_last)
    for times in (1, 2, 0, 2, 1):
        net.times = times
        found = []
        for places in (None, flat.places):
            with native_layers(net, winograd=True, places=places):
                net(x).square().sum().backward()
            found.append(flat.take_gradient().clone())
            flat.gradient.fill_(torch.nan)
        assert found[1].equal(found[0])
        assert bool(found[1][: 9 * 16 * 16].count_nonzero()) == (times > 0)


def test_a_gradient_in_its_place_is_not_copied() -> None:
    net = Reused()
    flat = FlatModule(net, Layout.of(net))
    with native_layers(net, winograd=True, places=flat.places):
        net(torch.randn(3, 16, 5, 6).contiguous(memory_format=torch.channels_last)).square().sum().backward()
    ends = [p.grad.data_ptr() - flat.gradient.data_ptr() for p in net.parameters() if p.grad is not None]
    assert ends == [0, 9 * 16 * 16 * 4]


def test_bf16_leaves_the_norms_to_pytorch() -> None:
    arithmetic = Arithmetic("bf16", native=True)
    runner = ClientRunner(small_net(), float_data(), METHODS["fedavg"].tasks, 0, arithmetic=arithmetic)
    assert bool(trained("fedavg", SequentialExecutor(runner)).isfinite().all())
