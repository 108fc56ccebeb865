"""`ssfl export`: a finished run's network, preprocessing included, in a file that can be used without ssfl."""

from __future__ import annotations

import importlib.util
import io
import logging
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from ssfl import run_folder
from ssfl.assemble.build import network_for
from ssfl.config import read_config
from ssfl.errors import UserError
from ssfl.models.description import METADATA_KEY
from ssfl.models.trained import TrainedFile, TrainedNetwork, read_trained
from ssfl.output import output, whole_file

Format = Literal["pt2", "onnx", "safetensors"]
EXAMPLES = 2
"""Examples in the traced batch; the exported graph accepts any batch size."""


class ExportError(UserError):
    """A network that cannot be written in the requested format; one line."""


def export_file(
    folder: Path, form: Format | None = None, out: Path | None = None, client: int | None = None
) -> Path:
    """Write the network of a finished run (or one client's), atomically; returns the file's path.

    form: None: by the end of `out`, else pt2.

    pt2: torch.export, read by torch.export.load; onnx: needs the extra onnx. Both take raw rows [B, *input_shape] and
    return logits. safetensors: weights, with the preprocessing in the metadata. Raises ExportError or ModelError.
    """
    form = _format_of(form, out)
    run_folder.check_run_folder(folder)
    source = folder / (run_folder.MODEL if client is None else run_folder.CLIENT_MODELS)
    if client is None and not source.exists() and (folder / run_folder.CLIENT_MODELS).exists():
        raise ExportError("has no global model", where=str(folder), remedy="choose a client: --client 0")
    if client is not None and not source.exists() and (folder / run_folder.MODEL).exists():
        raise ExportError(
            "has one global model and no client models", where=str(folder), remedy="omit --client"
        )
    if not run_folder.is_finished(folder):
        raise ExportError(
            "is not finished", where=str(folder), remedy=f"ssfl resume {shlex.quote(str(folder))}"
        )
    file = read_trained(source, client)
    stem = "model" if client is None else f"client{client:05d}"
    target = out or folder / f"{stem}_exported.{form}"
    with _whole(target) as partial:
        WRITERS[form](file, _network(folder, file), partial)
    return target


def _format_of(form: Format | None, out: Path | None) -> Format:
    named = next((f for f in get_args(Format) if out is not None and out.suffix == f".{f}"), None)
    if form and named and form != named:
        raise ExportError(
            f"ends in .{named}",
            where=f"--out {out}",
            remedy=f"use --format {named}, or a name that ends in .{form}",
        )
    return form or named or "pt2"


def _network(folder: Path, file: TrainedFile) -> TrainedNetwork:
    """The network from the run's configuration, which may name a custom network: the folder is the user's own."""
    config = read_config(folder / run_folder.CONFIG)
    about = file.about
    return file.into(network_for(config, about.num_classes, about.input_shape, file.input_dtype))


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    with output(f"--out {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as partial:
            yield partial


def _write_safetensors(file: TrainedFile, network: TrainedNetwork, path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    path.write_bytes(save(tensors, metadata=_metadata(file)))


def _write_pt2(file: TrainedFile, network: TrainedNetwork, path: Path) -> None:
    with _explained("torch.export"):
        program = torch.export.export(network, (_example(file),), dynamic_shapes=_free_batch())
    # In memory first: PyTorch's own writer ends the process where the disk is full.
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files=_metadata(file))
    path.write_bytes(stream.getbuffer())


def _write_onnx(file: TrainedFile, network: TrainedNetwork, path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"needs {package}", where="--format onnx", remedy="bash setup.sh --with=onnx")
    with _explained("torch.onnx.export"):
        program = torch.onnx.export(
            network,
            (_example(file),),
            dynamo=True,
            input_names=["rows"],
            output_names=["logits"],
            dynamic_shapes=_free_batch(),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(_metadata(file))
    program.save(str(path))


WRITERS: Mapping[Format, Callable[[TrainedFile, TrainedNetwork, Path], None]] = MappingProxyType(
    {"pt2": _write_pt2, "onnx": _write_onnx, "safetensors": _write_safetensors}
)


def _example(file: TrainedFile) -> Tensor:
    return torch.zeros(EXAMPLES, *file.about.input_shape, dtype=getattr(torch, file.inputs.input_dtype))


def _free_batch() -> dict[str, dict[int, object]]:
    return {"x": {0: torch.export.Dim("batch", min=1)}}


def _metadata(file: TrainedFile) -> dict[str, str]:
    return {METADATA_KEY: file.metadata}


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Converts any error of tracing the network's code to ExportError; PyTorch's own output is suppressed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx")]
    levels = [log.level for log in loggers]
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for log in loggers:
                log.setLevel(logging.CRITICAL)
            yield
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ExportError(
            f"{what} cannot trace this network ({reason})", remedy="use --format safetensors"
        ) from error
    finally:
        for log, level in zip(loggers, levels):
            log.setLevel(level)
