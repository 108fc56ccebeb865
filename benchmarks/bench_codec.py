"""Codecs on real masks and updates of ResNet18: bytes against the entropy bound, error, CPU time and MB/s, one thread.

The material is computed first, which takes minutes (`codec_material.py`). --quick: one density, one round, four
scoring clients.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.codec_material import ROUNDS, SCORERS, Material, Update, make
from benchmarks.figures import Figure, options, publish, times
from benchmarks.rotation import rotated_error
from ssfl.core.factored import factored_size, factors_of, scores_of
from ssfl.core.masks import kept_count, top_k_mask
from ssfl.core.payloads import SCORES, DenseValues, Part, Payload
from ssfl.engine.compute.malloc import keep_freed_memory
from ssfl.wire.coding import Coding, Votes, smallest_mask
from ssfl.wire.half import Half
from ssfl.wire.int8 import Int8
from ssfl.wire.log import Log
from ssfl.wire.lossless import Lossless
from ssfl.wire.mask_codec import encode_packed
from ssfl.wire.message import decode, encode
from ssfl.wire.parts import CodedMask
from ssfl.wire.stack import Hop, Received
from ssfl.wire.uniform import Uniform
from ssfl.wire.value_codec import ValueCodec

DENSITIES = (0.5, 0.3, 0.1, 0.05, 0.01)
QUICK_DENSITIES = (0.1,)
QUICK_SCORERS = 4
QUICK_ROUNDS = 1
FLOAT_BYTES = 4
UPLINK: Mapping[str, ValueCodec] = {
    "lossless": Lossless(),
    "bf16": Half(torch.bfloat16),
    "bf16 zstd": Half(torch.bfloat16, "zstd"),
    "int8": Int8(),
    "int8 raw": Int8(stage="raw"),
    "uniform 0.25": Uniform(0.25),
    "uniform 0.5": Uniform(0.5),
    "uniform 0.5 stochastic": Uniform(0.5, "stochastic"),
    "uniform 1": Uniform(1.0),
    "uniform 2": Uniform(2.0),
}
DOWNLINK: Mapping[str, ValueCodec] = {
    "lossless": Lossless(),
    "bf16 zstd": Half(torch.bfloat16, "zstd"),
    "int8": Int8(256, "nearest"),
    "uniform 0.05": Uniform(0.05),
    "uniform 0.1": Uniform(0.1),
}
SCORE_FORMS: Mapping[str, ValueCodec | None] = {
    "fp32": None,
    "bf16": Half(),
    "log256": Log(256, 16),
    "log64": Log(64, 5),
    "log16": Log(16, 1),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Timed:
    """CPU seconds of each repetition; with one thread and no files, load on the machine matters only through caches."""

    seconds: list[float]

    @staticmethod
    def of(call: Callable[[], T], trials: int) -> tuple[Timed, T]:
        """Measure after one unmeasured call."""
        result = call()
        seconds = []
        for _ in range(trials):
            start = time.process_time()
            result = call()
            seconds.append(time.process_time() - start)
        return Timed(seconds), result


def binary_entropy_bytes(bits: Tensor, segments: Sequence[tuple[str, int, int]]) -> float:
    """Minimum bytes of a mask [N] if only each layer's density is known."""
    total = 0.0
    for _, start, stop in segments:
        share = float(bits[start:stop].double().mean())
        if 0 < share < 1:
            p = torch.tensor([share, 1 - share], dtype=torch.float64)
            total -= (stop - start) * float((p * p.log2()).sum())
    return total / 8


def symbol_entropy_bytes(delta: Tensor, counts: Sequence[int], step: float) -> float:
    """Bytes of round(delta / (step rms)) [n] by the empirical entropy of all symbols together."""
    symbols = []
    for part in torch.split(delta, [n for n in counts if n]):
        unit = step * float(part.norm()) / len(part) ** 0.5
        symbols.append((part / unit).round() if unit else torch.zeros_like(part))
    shares = torch.unique(torch.cat(symbols), return_counts=True)[1].double() / len(delta)
    return -float((shares * shares.log2()).sum()) * len(delta) / 8


def mask_figures(material: Material, density: float, trials: int) -> Iterator[Figure]:
    """Sizes compared with the per-layer entropy; encoding and decoding of the smallest form."""
    layout, bits = material.layout, material.updates[density].bits
    bound = binary_entropy_bytes(bits, layout.prunable_segments)
    encoding, coded = Timed.of(lambda: smallest_mask(bits, layout), trials)
    assert isinstance(coded, CodedMask)
    decoding, back = Timed.of(coded.decoded, trials)
    assert back.bits.equal(bits)
    name = f"mask at density {density}"
    yield Figure(f"{name}: bitmap", len(bits) / 8, "bytes", "layer entropy", bound / (len(bits) / 8))
    packed = len(encode_packed(bits))
    yield Figure(f"{name}: packed, zstd", packed, "bytes", "layer entropy", bound / packed)
    yield Figure(f"{name}: coded", coded.nbytes, "bytes", "layer entropy", bound / coded.nbytes)
    yield Figure(f"{name}: coded, share of the layer entropy", coded.nbytes / bound, "share")
    both = [1e3 * (a + b) for a, b in zip(encoding.seconds, decoding.seconds)]
    yield times(f"{name}: encode", [1e3 * s for s in encoding.seconds], "ms")
    yield times(f"{name}: decode", [1e3 * s for s in decoding.seconds], "ms")
    yield times(f"{name}: encode and decode", both, "ms")


def crossed(coding: Coding, payload: Payload, hop: Hop, trials: int) -> tuple[Part, Part, Timed, Timed]:
    """(sent part, decoded part, encoding, decoding) of the transform, without the message's header."""
    encoding, sent = Timed.of(lambda: coding.send(payload, hop, {})[0], trials)
    decoding, back = Timed.of(lambda: coding.receive(sent, hop, {})[0], trials)
    (name,) = payload.parts
    return sent.parts[name], back.parts[name], encoding, decoding


def value_figures(material: Material, density: float, trials: int) -> Iterator[Figure]:
    """Uplink codecs of differences, downlink codecs of whole values; error relative to the update or the weights."""
    update, layout = material.updates[density], material.layout
    received = Received([Payload({"w": update.before})], lambda sent: sent)
    up = Hop("up", 1, "train", 3, 0, layout, received)
    down = Hop("down", -1, "train", 3, 0, layout)
    count = len(update.delta)
    for label, codec in UPLINK.items():
        name = f"uplink at density {density}, {label}"
        coding = Coding(delta=codec)
        part, found, encoding, decoding = crossed(coding, Payload({"w": update.after}, 1), up, trials)
        error = float((_values(found) - update.after.values).norm() / update.delta.norm())
        bound = None
        if isinstance(codec, Uniform) and codec.rounding == "nearest":
            bound = symbol_entropy_bytes(update.delta, update.after.counts, codec.step) / part.nbytes
        yield from _value_rows(name, part.nbytes / count, error, bound, count, encoding, decoding)
    for label, codec in DOWNLINK.items():
        name = f"downlink at density {density}, {label}"
        coding = Coding(values=codec)
        part, found, encoding, decoding = crossed(coding, Payload({"w": update.after}), down, trials)
        error = float((_values(found) - update.after.values).norm() / update.after.values.norm())
        yield from _value_rows(name, part.nbytes / count, error, None, count, encoding, decoding)
    for bits in (1, 2, 3, 4):
        size, error = rotated_error(update.delta, bits)
        yield Figure(f"rotation at density {density}, {bits} bits", size, "bytes a value")
        yield Figure(f"rotation at density {density}, {bits} bits: relative error", error, "share")


def _values(part: Part) -> Tensor:
    found: Tensor = vars(part)["values"]
    return found


def _value_rows(
    name: str, size: float, error: float, bound: float | None, count: int, encoding: Timed, decoding: Timed
) -> Iterator[Figure]:
    against = "symbol entropy" if bound is not None else "float32"
    yield Figure(name, size, "bytes a value", against, bound or FLOAT_BYTES / size)
    yield Figure(f"{name}: relative error", error, "share")
    megabytes = FLOAT_BYTES * count / 1e6
    yield times(f"{name}: encode", [megabytes / s for s in encoding.seconds], "MB/s")
    yield times(f"{name}: decode", [megabytes / s for s in decoding.seconds], "MB/s")
    both = [1e3 * (a + b) for a, b in zip(encoding.seconds, decoding.seconds)]
    yield times(f"{name}: encode and decode", both, "ms")


def score_figures(material: Material, densities: Sequence[float]) -> Iterator[Figure]:
    """Bytes per client, and the overlap (IoU) of the mask with that from exact scores."""
    layout = material.layout
    hop = Hop("up", 1, "score", 1, 0, layout)
    exact = material.mean_scores
    for label, codec in SCORE_FORMS.items():
        yield from _mask_of_scores(material, label, Coding(scores=codec), exact, hop, densities)
    for density in densities:
        coding = Coding(scores=Votes(density), masks="coded")
        yield from _mask_of_scores(material, f"votes for {density}", coding, exact, hop, [density])
    weights = layout.take_prunable(material.theta)
    mean = torch.stack([factors_of(s, weights, layout) for s in material.scores]).mean(0)
    yield Figure("scores, factored", FLOAT_BYTES * factored_size(layout), "bytes a client")
    yield from _overlaps("factored", scores_of(mean, weights, layout), exact, densities)
    half = len(material.scores) // 2
    first, second = (
        torch.stack(list(part)).mean(0) for part in (material.scores[:half], material.scores[half:])
    )
    yield from _overlaps("exact, other clients", first, second, densities)


def _mask_of_scores(
    material: Material, label: str, coding: Coding, exact: Tensor, hop: Hop, densities: Sequence[float]
) -> Iterator[Figure]:
    total = torch.zeros_like(exact)
    sizes = []
    for scores in material.scores:
        sent, _ = coding.send(Payload({SCORES: DenseValues(scores)}, 1), hop, {})
        sizes.append(sent.parts[SCORES].nbytes)
        total += _values(coding.receive(sent, hop, {})[0].parts[SCORES])
    yield times(f"scores, {label}", sizes, "bytes a client")
    yield from _overlaps(label, total, exact, densities)


def _overlaps(label: str, scores: Tensor, exact: Tensor, densities: Sequence[float]) -> Iterator[Figure]:
    for density in densities:
        one, two = (top_k_mask(s, kept_count(len(s), density)) for s in (scores, exact))
        overlap = int((one & two).sum()) / int((one | two).sum())
        yield Figure(f"scores, {label}: IoU at density {density}", overlap, "share")


def message_figures(update: Update, material: Material, trials: int) -> Iterator[Figure]:
    """A complete message of plain values compared with a copy of its bytes."""
    payload = Payload({"w": update.after})
    making, raw = Timed.of(lambda: encode(payload, material.layout), trials)
    reading, _ = Timed.of(lambda: decode(raw, material.layout), trials)
    copying, _ = Timed.of(lambda: bytearray(raw), trials)
    megabytes = len(raw) / 1e6
    for name, timed in (("make", making), ("read", reading), ("copy", copying)):
        yield times(f"plain message: {name}", [megabytes / s for s in timed.seconds], "MB/s")


def figures(material: Material, trials: int, densities: Sequence[float]) -> Iterator[Figure]:
    """All rows."""
    for density in densities:
        yield from mask_figures(material, density, trials)
    for density in densities:
        yield from value_figures(material, density, trials)
    yield from message_figures(material.updates[densities[0]], material, trials)
    yield from score_figures(material, densities)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=int, help="default: 5, with --quick 3")
    folder = Path(os.environ.get("SSFL_DATA_DIR", "./dataset"))
    parser.add_argument("--data-dir", type=Path, default=folder, help="folder of CIFAR-10")
    return parser


def main() -> None:
    """See README.md in this folder."""
    chosen = parser().parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    densities = QUICK_DENSITIES if chosen.quick else DENSITIES
    extent = (QUICK_SCORERS, QUICK_ROUNDS) if chosen.quick else (SCORERS, ROUNDS)
    material = make(chosen.data_dir, densities, *extent)
    print(f"masks and updates of ResNet18 on {material.data}")
    publish(figures(material, chosen.trials or (3 if chosen.quick else 5), densities), chosen.json)


if __name__ == "__main__":
    main()
