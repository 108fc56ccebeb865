"""The description of a method for the configuration: its settings, and how to build it from them.

Settings are defined in the method's own file; `table.py` lists the files. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, final, get_type_hints

from ssfl.errors import UserError
from ssfl.settings import Setting, SettingError, settings_of

if TYPE_CHECKING:
    from ssfl.algorithms.base import Algorithm
    from ssfl.core.layout import Layout
    from ssfl.core.optim import FitSpec


ScoreForm = Literal["full", "factored"]


class MethodError(UserError):
    """A method that cannot be found, or an object that is not a method."""


@final
@dataclass(frozen=True)
class Recipe:
    """The common ingredients from which methods are built, besides their own settings."""

    fit: FitSpec
    """Local training as configured."""
    fine_tune: FitSpec
    """Local training after the last round, at the initial learning rate."""
    per_round: int
    """Clients in a cohort."""
    rounds: int
    """Number of training rounds."""
    layout: Layout
    density: float
    """Share of prunable weights kept, (0, 1]; `model.dense_ratio`."""
    probe_batches: int
    """Minibatches averaged into a client's score; `model.itersnip_iteration`."""
    drop_rate: float
    """First drop rate of a changing mask, 0-1; `model.anneal_factor`."""
    erk_power_scale: float
    """Exponent of ERK densities; `model.erk_power_scale`."""
    score_form: ScoreForm = "full"
    """Whether clients send all scores or their factors; `communication.scores`."""

    def check_keeps(self, kept: int, size: int, of: str = "prunable weights") -> None:
        """Raises SettingError if `kept`, of `size` weights at this density, is 0: nothing would be trained."""
        if kept == 0:
            raise SettingError(
                "model.dense_ratio", self.density, f"at least {1 / size:.2g}, one of the {size} {of}"
            )


KEYS = {
    "fine_tune": ("training.fine_tune_epochs", "optimizer.fine_tune_lr"),
    "density": ("model.dense_ratio",),
    "probe_batches": ("model.itersnip_iteration",),
    "drop_rate": ("model.anneal_factor",),
    "erk_power_scale": ("model.erk_power_scale",),
    "score_form": ("communication.scores",),
}
"""Recipe fields that only some methods read -> the configuration keys that set them."""


@final
@dataclass(frozen=True)
class NoSettings:
    """Settings of a method that has none."""


def _all_read(settings: Any) -> tuple[str, ...]:
    """Every setting has an effect."""
    return ()


def _no_check(settings: Any, density: float, rounds: int) -> None:
    """Accepts every combination."""


@final
@dataclass(frozen=True)
class Method:
    """A method of the package, or one from outside."""

    build: Callable[[Any, Recipe], Algorithm[Any]]
    """(settings, recipe) -> the algorithm. Raises SettingError for settings that do not fit the network."""
    label: Callable[[Any], str]
    """settings -> the method's name in tables and plots."""
    settings: type[Any] = NoSettings
    """A frozen dataclass of `ssfl.settings.setting` fields, the keys algorithm.params.*."""
    reads: tuple[str, ...] = ()
    """The fields of `KEYS` that the method reads; the others have no effect on it."""
    check: Callable[[Any, float, int], None] = _no_check
    """(settings, density, rounds) -> None. Raises SettingError for combinations that are impossible for any network."""
    unread: Callable[[Any], tuple[str, ...]] = _all_read
    """settings -> the configuration keys without effect with these settings, besides those that `reads` excludes."""

    def __post_init__(self) -> None:
        unknown = set(self.reads) - set(KEYS)
        if unknown or not isinstance(self.reads, tuple):
            raise MethodError(
                f"reads={self.reads!r}", where="Method", allowed=f"a tuple of {', '.join(KEYS)}"
            )
        undeclared = undeclared_field(self.settings)
        if undeclared:
            remedy = "declare it with ssfl.settings.setting(default, meaning)"
            raise MethodError(
                f"the field {undeclared} is no setting", where=_name(self.settings), remedy=remedy
            )

    def unread_keys(self, settings: Any) -> tuple[str, ...]:
        """Keys of the configuration without effect on this method with these settings."""
        never = (key for name, keys in KEYS.items() if name not in self.reads for key in keys)
        return tuple(dict.fromkeys((*never, *self.unread(settings))))

    @property
    def reads_density(self) -> bool:
        """Whether `model.dense_ratio` has an effect; if not, the method is dense."""
        return "density" in self.reads


def method_of_class(algorithm: Any) -> Method:
    """A `Method` for an algorithm's dataclass: fields named like recipe fields are set from the recipe, fields made by
    `setting` are the settings. Raises MethodError for a class that is not a dataclass, or another field without a
    default.
    """
    name = _name(algorithm)
    if not isinstance(algorithm, type):
        raise MethodError("is no class", where=name, remedy="name an algorithm's dataclass, or a Method")
    if not dataclasses.is_dataclass(algorithm):
        raise MethodError("is not a dataclass", where=name, remedy="decorate it with @dataclass(frozen=True)")
    given = {one.name for one in dataclasses.fields(Recipe)}
    fields = {one.name: one for one in dataclasses.fields(algorithm) if one.init}
    known = _settings_of(algorithm)
    unknown = [n for n, one in fields.items() if n not in given and n not in known and not _has_default(one)]
    if unknown:
        remedy = "give it a default with ssfl.settings.setting(default, meaning)"
        raise MethodError(f"the field {unknown[0]} has no value", where=name, remedy=remedy)
    hints = get_type_hints(algorithm)
    own = [
        (n, hints[n], dataclasses.field(default=s.default, metadata=fields[n].metadata))
        for n, s in known.items()
    ]
    settings = make_dataclass(
        f"{name}Settings", own, frozen=True, namespace={"__module__": algorithm.__module__}
    )

    def build(chosen: Any, recipe: Recipe) -> Algorithm[Any]:
        values = {n: getattr(recipe, n) for n in fields if n in given}
        return cast("Algorithm[Any]", algorithm(**values, **{n: getattr(chosen, n) for n in known}))

    return Method(build, lambda chosen: name, settings, tuple(n for n in KEYS if n in fields))


def undeclared_field(settings: Any) -> str:
    """The first field of a dataclass of settings that was not made by `setting`; "" if there is none."""
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise MethodError(
            "is not a dataclass", where=_name(settings), remedy="settings are a frozen dataclass"
        )
    known = _settings_of(settings)
    return next((one.name for one in dataclasses.fields(settings) if one.name not in known), "")


def _settings_of(kind: type[Any]) -> Mapping[str, Setting]:
    try:
        return settings_of(kind)
    except (TypeError, NameError) as error:  # an annotation that is no type of settings, or not defined
        raise MethodError(f"its annotations cannot be read ({error})", where=_name(kind)) from error


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def _has_default(one: dataclasses.Field[Any]) -> bool:
    return one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING
