"""The named networks: published sizes, output shapes, second implementations, transforms that they must support."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from ssfl.models import MODEL_NAMES, build_model

SMALL = ("resnet8", "resnet20", "cnn", "digits_cnn", "mlp")
NORMED = tuple(name for name in MODEL_NAMES if name != "mlp")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy cores two threads are many times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, classes: int, shape: tuple[int, ...], norm: str = "group", seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(name, classes, shape, norm)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def sizes(module: nn.Module) -> tuple[int, int, int]:
    """(weights of convolutions and linear layers, affine parameters of norms, biases of the former)"""
    weights = norms = biases = 0
    for layer in module.modules():
        own = {name: parameter.numel() for name, parameter in layer.named_parameters(recurse=False)}
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            weights += own.pop("weight")
            biases += sum(own.values())
        else:
            norms += sum(own.values())
    return weights, norms, biases


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("resnet18", 10, (11_164_352, 9_600, 10)),
        ("resnet18", 100, (11_210_432, 9_600, 100)),
        ("tiny_resnet18", 200, (11_261_632, 9_600, 200)),
        ("resnet50", 10, (23_467_712, 53_120, 10)),
        ("resnet50", 100, (23_705_252 - 53_120 - 100, 53_120, 100)),
        # ResNet34 by hand: stem, then per stage its 3×3 convolutions and its 1×1 shortcut.
        (
            "resnet34",
            10,
            (
                9 * 3 * 64
                + 9 * (6 * 64**2 + 64 * 128 + 7 * 128**2 + 128 * 256 + 11 * 256**2 + 256 * 512 + 5 * 512**2)
                + (64 * 128 + 128 * 256 + 256 * 512 + 5120),
                2 * (7 * 64 + 9 * 128 + 13 * 256 + 7 * 512),
                10,
            ),
        ),
        # 269,722 parameters in the 2015 paper, plus two projection shortcuts with their norms.
        ("resnet20", 10, (270_896, 1_568, 10)),
        (
            "resnet8",
            10,
            (
                432 + 2 * 2_304 + 4_608 + 9_216 + 512 + 18_432 + 36_864 + 2_048 + 640,
                2 * (3 * 16 + 3 * 32 + 3 * 64),
                10,
            ),
        ),
        ("cnn", 10, (122_336, 320, 234)),
        ("mlp", 10, (3072 * 200 + 200 * 200 + 200 * 10, 0, 410)),
    ],
)
def test_parameter_counts(name: str, classes: int, expected: tuple[int, int, int]) -> None:
    shape = (3, 64, 64) if name == "tiny_resnet18" else (3, 32, 32)
    assert sizes(build(name, classes, shape)) == expected


def test_totals_that_are_published() -> None:
    assert sum(sizes(build("resnet18", 10, (3, 32, 32)))) == 11_173_962
    assert sum(sizes(build("resnet50", 10, (3, 32, 32)))) == 23_520_842
    assert sum(sizes(build("cnn", 10, (3, 32, 32)))) == 122_890
    assert 10_000 <= sum(sizes(build("digits_cnn", 10, (1, 8, 8)))) <= 40_000


SHAPES = [(name, shape) for name in MODEL_NAMES for shape in [(3, 8, 8), (1, 9, 12)]]


@pytest.mark.parametrize(("name", "shape"), [*SHAPES, ("mlp", (5,)), ("tiny_resnet18", (3, 64, 64))])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_for_every_name(name: str, shape: tuple[int, ...], training: bool) -> None:
    module = build(name, 7, shape).train(training)
    with torch.no_grad():
        logits = module(draw(2, *shape))
    assert tuple(logits.shape) == (2, 7)
    assert bool(logits.isfinite().all())
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("side", [4, 5, 7, 12, 28, 32, 64])
def test_cnn_fits_its_pools_to_the_image(side: int) -> None:
    module = build("cnn", 10, (3, side, side))
    with torch.no_grad():
        assert tuple(module(draw(1, 3, side, side)).shape) == (1, 10)


def cnn_by_hand(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The reference network with ReLU before the pool, written with functions only."""
    for layer in range(3):
        x = F.conv2d(x, p[f"convs.{layer}.weight"], p[f"convs.{layer}.bias"], padding=1)
        x = F.group_norm(x, 4, p[f"norms.{layer}.weight"], p[f"norms.{layer}.bias"])
        x = F.max_pool2d(F.relu(x), 2)
    x = F.relu(F.linear(x.reshape(len(x), -1), p["hidden.weight"], p["hidden.bias"]))
    return F.linear(x, p["output.weight"], p["output.bias"])


def test_pool_before_relu_is_the_same_function_with_the_same_gradient() -> None:
    module = build("cnn", 10, (3, 32, 32)).double()
    x, y = draw(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 9, 3])
    parameters = dict(module.named_parameters())
    ours, by_hand = module(x), cnn_by_hand(parameters, x)
    torch.testing.assert_close(ours, by_hand)
    for a, b in zip(
        torch.autograd.grad(F.cross_entropy(ours, y), list(parameters.values())),
        torch.autograd.grad(F.cross_entropy(by_hand, y), list(parameters.values())),
    ):
        torch.testing.assert_close(a, b)


def block_by_hand(
    p: Mapping[str, Tensor], at: str, x: Tensor, stride: int, kernels: list[int], groups: int
) -> Tensor:
    """A residual block; in a bottleneck the 3×3 convolution has the stride, in a basic block the first one."""
    y, strided = x, kernels.index(3)
    for number, kernel in enumerate(kernels):
        step = stride if number == strided else 1
        y = F.conv2d(y, p[f"{at}.conv{number + 1}.weight"], stride=step, padding=kernel // 2)
        y = F.group_norm(y, groups, p[f"{at}.norm{number + 1}.weight"], p[f"{at}.norm{number + 1}.bias"])
        y = y if number + 1 == len(kernels) else F.relu(y)
    if f"{at}.shortcut.0.weight" in p:
        x = F.conv2d(x, p[f"{at}.shortcut.0.weight"], stride=stride)
        x = F.group_norm(x, groups, p[f"{at}.shortcut.1.weight"], p[f"{at}.shortcut.1.bias"])
    return F.relu(x + y)


@pytest.mark.parametrize(
    ("name", "depths", "kernels"),
    [("resnet18", (2, 2, 2, 2), [3, 3]), ("resnet50", (3, 4, 6, 3), [1, 3, 1])],
)
def test_resnet_is_the_published_architecture(name: str, depths: tuple[int, ...], kernels: list[int]) -> None:
    """A second implementation with functions only and the 4×4 average pool of the reference network."""
    module = build(name, 10, (3, 32, 32))
    x, p = draw(1, 3, 32, 32), dict(module.named_parameters())
    with torch.no_grad():
        z = F.conv2d(x, p["conv1.weight"], padding=1)
        z = F.relu(F.group_norm(z, 32, p["norm1.weight"], p["norm1.bias"]))
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                z = block_by_hand(p, f"layer{stage + 1}.{block}", z, stride, kernels, 32)
        z = F.linear(F.avg_pool2d(z, 4).flatten(1), p["linear.weight"], p["linear.bias"])
        torch.testing.assert_close(module(x), z)


@pytest.mark.parametrize("name", ["cnn", "resnet8", "mlp"])
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    shape = (2, 8, 8)
    module = build(name, 3, shape).double()
    x, y = draw(3, *shape, dtype=torch.float64), torch.tensor([0, 2, 1])
    parameters = {key: value.detach() for key, value in module.named_parameters()}
    direction = {key: draw(*value.shape, dtype=torch.float64) for key, value in parameters.items()}

    def loss(at: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(module, at, (x,)), y)

    def moved(step: float) -> float:
        return float(loss({key: parameters[key] + step * direction[key] for key in parameters}))

    gradient = grad(loss)(parameters)
    slope = sum(float((gradient[key] * direction[key]).sum()) for key in parameters)
    # The step is so small that no ReLU changes its sign between the two points.
    assert (moved(1e-8) - moved(-1e-8)) / 2e-8 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_several_clients_at_once(name: str) -> None:
    shape, clients = (3, 8, 8), 3
    modules = [build(name, 5, shape, seed=client).double() for client in range(clients)]
    stacked, _ = stack_module_state(modules)
    x, y = draw(clients, 4, *shape, dtype=torch.float64), torch.arange(4 * clients).reshape(clients, 4) % 5

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(modules[0], parameters, (x,)), y)

    together = vmap(grad(loss))(stacked, x, y)
    for client, module in enumerate(modules):
        torch.autograd.backward(F.cross_entropy(module(x[client]), y[client]))
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(together[key][client], parameter.grad)


@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_channels_last_gives_the_same_outputs_and_gradients(name: str) -> None:
    shape = (3, 8, 8)
    x = draw(2, *shape, dtype=torch.float64)
    plain = build(name, 4, shape).double()
    strided = build(name, 4, shape).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    outputs = plain(x), strided(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(*outputs)
    for output in outputs:
        torch.autograd.backward(F.cross_entropy(output, torch.tensor([1, 3])))
    for a, b in zip(plain.parameters(), strided.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", NORMED)
def test_batch_norm_variant_has_running_statistics_and_group_norm_none(name: str) -> None:
    shape = (3, 8, 8)
    groups, batch = build(name, 4, shape), build(name, 4, shape, norm="batch")
    assert not list(groups.buffers())
    norms = [layer for layer in batch.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == sum(isinstance(layer, nn.GroupNorm) for layer in groups.modules()) > 0
    assert sum(
        1 for key, _ in batch.named_buffers() if key.endswith(("running_mean", "running_var"))
    ) == 2 * len(norms)
    assert sizes(batch) == sizes(groups)


def test_batch_norm_statistics_of_several_clients_at_once() -> None:
    shape, clients = (3, 8, 8), 2
    modules = [build("cnn", 4, shape, norm="batch", seed=client).double() for client in range(clients)]
    parameters, buffers = stack_module_state(modules)
    x = draw(clients, 5, *shape, dtype=torch.float64)

    def forward(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(modules[0], (parameters, buffers), (x,))

    together = vmap(forward)(parameters, buffers, x)
    for client, module in enumerate(modules):
        torch.testing.assert_close(together[client], module(x[client]))
        for key, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[key][client], buffer)


@pytest.mark.parametrize(
    ("name", "norm", "groups"),
    [
        ("resnet18", "group", 32),
        ("resnet50", "group", 32),
        ("resnet18", "group2", 2),
        ("resnet8", "group", 8),
        ("cnn", "group", 4),
        ("cnn", "group1", 1),
        ("digits_cnn", "group16", 16),
    ],
)
def test_number_of_groups(name: str, norm: str, groups: int) -> None:
    module = build(name, 4, (3, 8, 8), norm=norm)
    assert {layer.num_groups for layer in module.modules() if isinstance(layer, nn.GroupNorm)} == {groups}


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_are_pytorchs_default_and_follow_the_callers_seed(name: str) -> None:
    module = build(name, 4, (3, 8, 8), seed=3)
    again = build(name, 4, (3, 8, 8), seed=4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for layer in again.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.GroupNorm)):
                layer.reset_parameters()
    for a, b in zip(module.parameters(), again.parameters()):
        assert torch.equal(a, b)
    other = build(name, 4, (3, 8, 8), seed=4)
    assert any(not torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters()))
