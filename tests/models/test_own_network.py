"""A custom network by dotted path, and every error line of `build_model`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ssfl.models import MODEL_NAMES, ModelError, build_model

SOURCE = """
import torch
from torch import nn

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(12, 4))

class Sized(nn.Module):
    class Wide(Plain):
        pass

    def __init__(self, num_classes, input_shape, width=3):
        super().__init__()
        self.convolution = nn.Conv2d(input_shape[0], width, 1)
        self.head = nn.Linear(width, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.dropout(self.convolution(x).mean(dim=(2, 3))))

class Needy(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()

class Features(nn.Module):
    def forward(self, x):
        return {"logits": x}

def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(5, 1), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes))

def lazy_unused(num_classes):
    net = lazy(num_classes)
    net.forward = lambda x: x.flatten(1)[:, :num_classes]
    return net

def _with_buffer(num_classes, dtype):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
    net.register_buffer("odd", torch.ones(2).to(dtype))
    return net

def wide_complex(num_classes):
    return _with_buffer(num_classes, torch.complex128)

def narrow_float(num_classes):
    return _with_buffer(num_classes, torch.float8_e4m3fn)

class Silent(nn.Module):
    pass

class NoModule:
    pass

def function(num_classes, *, norm):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))
    net.norm = norm
    return net

def number():
    return 3

def broken():
    raise RuntimeError("two\\nlines")

constant = 7
"""
SHAPE = (3, 2, 2)


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(SOURCE)
    (package / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_types_that_no_file_can_hold_are_refused_before_training() -> None:
    with pytest.raises(
        ModelError, match="odd is complex128, which the file of a trained network cannot hold"
    ):
        build_model("own_package.nets:wide_complex", 4, SHAPE)
    assert build_model("own_package.nets:narrow_float", 4, SHAPE).state_dict()["odd"].dtype == torch.float32


def test_lazy_layers_get_their_sizes_and_the_weights_of_the_seed() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(build_model("own_package.nets:lazy", 4, SHAPE).state_dict())
    assert [tuple(t.shape) for t in made[0].values()] == [
        *[(5, 3, 1, 1), (5,)],
        *[(5,)] * 4,
        (),
        *[(4, 20), (4,)],
    ]
    assert all(t.equal(made[1][name]) for name, t in made[0].items())
    assert float(made[0]["3.weight"].std()) > 0.05  # drawn, not zero
    with pytest.raises(ModelError, match="has no shape yet"):
        build_model("own_package.nets:lazy_unused", 4, SHAPE)


@pytest.mark.parametrize(
    "path", ["own_package.nets:Plain", "own_package.nets.Plain", "own_package.nets:Sized.Wide"]
)
def test_class_without_arguments(path: str) -> None:
    module = build_model(path, 4, SHAPE)
    assert tuple(module(torch.zeros(5, *SHAPE)).shape) == (5, 4)
    assert all(layer.training for layer in module.modules())


def test_class_that_takes_the_sizes_and_is_seeded_by_the_caller() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = build_model("own_package.nets:Sized", 6, SHAPE)
        after = torch.get_rng_state()
        torch.manual_seed(5)
        convolution, head = nn.Conv2d(3, 3, 1), nn.Linear(3, 6)
        # The check of the output must not use the caller's generator.
        assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(module.convolution.weight, convolution.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(module.head.weight, head.weight)  # type: ignore[union-attr, arg-type]


def test_function_that_takes_the_norm() -> None:
    module = build_model("own_package.nets:function", 4, SHAPE, norm="batch")
    assert module.norm == "batch"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("own_package.", ["'own_package.' is incomplete", "package.module:Class"]),
        (":Net", ["':Net' is incomplete", "package.module:Class"]),
        ("absent_package.nets:Net", ["'absent_package.nets'", "ModuleNotFoundError", "PYTHONPATH"]),
        ("own_package.broken:Net", ["'own_package.broken' failed", "ZeroDivisionError"]),
        ("own_package.nets:Plan", ["has no 'Plan'", "Plain, Sized"]),
        ("own_package.nets:NoModule", ["neither a torch.nn.Module class"]),
        ("own_package.nets:constant", ["neither a torch.nn.Module class"]),
        ("own_package.nets:number", ["returned a int, not a torch.nn.Module"]),
        ("own_package.nets:broken", ["could not be created", "RuntimeError: two lines"]),
        ("own_package.nets:Needy", ["could not be created", "'width'", "needs a default"]),
        ("own_package.nets:Silent", ["fails on an input of shape [2, 3, 2, 2]", "NotImplementedError"]),
        ("own_package.nets:Features", ["returns dict", "logits of shape [2, 5]"]),
        ("own_package.nets:Plain", ["returns [2, 4]", "logits of shape [2, 5]"]),
    ],
)
def test_error_lines_of_own_networks(name: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        build_model(name, 5, SHAPE)
    check_line(error.value, [repr(name) if name.startswith("own_package.n") else name, *parts])


@pytest.mark.parametrize(
    ("name", "classes", "shape", "norm", "parts"),
    [
        (
            "resnet81",
            10,
            (3, 32, 32),
            "group",
            ["'resnet81' is unknown", "did you mean 'resnet8'", *MODEL_NAMES],
        ),
        ("", 10, (3, 32, 32), "group", ["'' is unknown", *MODEL_NAMES]),
        ("cnn", 1, (3, 32, 32), "group", ["num_classes is 1", "2 or more"]),
        ("cnn", 10, (32, 32), "group", ["(32, 32)", "(channels, height, width) or (features,)"]),
        ("mlp", 10, (0,), "group", ["(0,)", "at least 1"]),
        ("cnn", 10, (20,), "group", ["'cnn'", "(20,)", "choose 'mlp'"]),
        ("resnet18", 10, (3, 8, 7), "group", ["'resnet18'", "8x8 pixels", "(3, 8, 7)"]),
        ("resnet20", 10, (3, 3, 9), "group", ["'resnet20'", "4x4 pixels", "(3, 3, 9)"]),
        ("cnn", 10, (3, 2, 2), "group", ["'cnn'", "4x4 pixels", "(3, 2, 2)"]),
        ("digits_cnn", 10, (1, 3, 3), "group", ["'digits_cnn'", "4x4 pixels", "(1, 3, 3)"]),
        ("cnn", 10, (3, 32, 32), "layer", ["'layer'", "'group2'", "'batch'"]),
        ("cnn", 10, (3, 32, 32), "group0", ["'group0'", "'group2'", "'batch'"]),
        ("cnn", 10, (3, 32, 32), "group3", ["'group3'", "32 channels", "divides 32"]),
        ("mlp", 10, (20,), "batch", ["'batch'", "'mlp'", "no norm layers"]),
        ("own_package.nets:Plain", 4, SHAPE, "batch", ["'batch'", "takes no argument 'norm'"]),
    ],
)
def test_error_lines(name: str, classes: int, shape: tuple[int, ...], norm: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        build_model(name, classes, shape, norm)
    check_line(error.value, parts)


def check_line(error: ModelError, parts: list[str]) -> None:
    line = str(error)
    assert "\n" not in line
    assert len(line) < 400
    for words in parts:
        assert words in line


def test_model_error_is_a_value_error() -> None:
    assert issubclass(ModelError, ValueError)
