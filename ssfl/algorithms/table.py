"""The methods by name. A method's file is imported on request; this module does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache

from ssfl.algorithms.method import Method, MethodError, method_of_class
from ssfl.errors import UserError

METHODS: Mapping[str, str] = {
    "ssfl": "ssfl.algorithms.ssfl:METHOD",
    "fedavg": "ssfl.algorithms.fedavg:METHOD",
    "fedavg_ft": "ssfl.algorithms.fedavg:METHOD_FT",
    "dispfl": "ssfl.algorithms.dispfl:METHOD",
    "sparsyfed": "ssfl.algorithms.sparsyfed:METHOD",
    "local": "ssfl.algorithms.local_training:METHOD",
}
"""Name in `algorithm=` -> location of its `Method`."""


@cache
def find_method(name: str) -> Method:
    """The method with this name, or at a path "package.module:NAME" of a `Method` or of an algorithm's dataclass.

    Raises MethodError.
    """
    path = METHODS.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        allowed = f"{', '.join(METHODS)}, or package.module:CLASS for a custom method"
        raise MethodError("no such method", where=f"algorithm={name}", allowed=allowed)
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:  # a user's module may fail in any way while it is imported
        reason = f"importing {module_name} failed ({type(error).__name__}: {error})"
        missing = isinstance(error, ModuleNotFoundError) and error.name in (
            module_name,
            module_name.split(".")[0],
        )
        remedy = (
            "run from the folder that contains it, or install its package"
            if missing
            else "correct the module"
        )
        raise MethodError(reason, where=f"algorithm={name}", remedy=remedy) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise MethodError(f"{module_name} has no {attribute}", where=f"algorithm={name}")
    return found if isinstance(found, Method) else method_of_class(found)
