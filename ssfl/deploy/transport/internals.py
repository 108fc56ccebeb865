"""All names of flwr that are not part of its public API; importing this module fails in one line on an unknown version.

Known versions: 1.41 and 1.42; the files named here are equal in both, except for tracing. The public API (`flwr.app`,
`flwr.serverapp`, the commands `flwr`, `flower-superlink`, `flower-superexec`, `flower-supernode`) is imported where it
is used. If a release moves a name, importing this module fails before anything is started.
"""

from __future__ import annotations

import importlib
import operator
import types
from importlib import metadata
from typing import Any, Literal

KNOWN = ((1, 41), (1, 42))


class FlowerVersionError(ImportError):
    """flwr is missing, or its version is not supported."""


def check_version() -> str:
    """Returns flwr's version. Raises FlowerVersionError."""
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise FlowerVersionError(
            "ssfl deploy needs Flower: `bash setup.sh --deploy` (Python 3.11 or newer)"
        ) from None
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers not in KNOWN:
        allowed = ", ".join(".".join(map(str, known)) for known in KNOWN)
        raise FlowerVersionError(
            f"flwr {version} is not supported by this version of ssfl, which needs {allowed}: "
            "pip install 'flwr>=1.41,<1.43'"
        )
    return version


VERSION = check_version()

try:
    from flwr.app import Error, Metadata
    from flwr.app.message import remove_content_from_message
    from flwr.app.message.arraychunk import ArrayChunk
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        DeactivateNodeRequest,
        PullMessagesRequest,
        PushMessagesRequest,
        RegisterNodeFleetRequest,
        UnregisterNodeFleetRequest,
    )
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.message_pb2 import (
        ConfirmMessageReceivedRequest,
        ObjectTree,
        PullObjectResponse,
        PushObjectRequest,
    )
    from flwr.proto.node_pb2 import Node
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, SendTaskHeartbeatRequest
    from flwr.supercore.constant import (
        FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS,
        FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES,
        OBJECT_PUSH_SESSION_TTL_SECONDS,
        PULL_MAX_TIME,
    )
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_body,
        get_object_head_values_from_object_content,
        get_object_tree,
        iterate_object_tree,
        no_object_id_recompute,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import (
        make_pull_object_fn_protobuf,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
        ObjectUnavailableError,
        get_num_workers,
        inflate_object_from_contents,
    )
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
except ImportError as error:
    raise FlowerVersionError(
        f"flwr {VERSION} has moved names that ssfl deploy needs ({error}); install a supported release: "
        "pip install 'flwr>=1.41,<1.43'"
    ) from None

PATCHED = {
    "grid": ("flwr.superlink.grid.http_grid", "push_objects", "HttpGrid._runtime_client"),
    "superlink": ("flwr.superlink.cli.flower_superlink", "uvicorn"),
    "middleware": ("starlette.middleware.base", "BaseHTTPMiddleware"),
    "objects": (
        "flwr.supercore.object_store.in_memory_object_store",
        "InMemoryObjectStore.get_object_tree",
        "NoObjectInStoreError",
    ),
    "executor": ("flwr.supernode.runtime.run_clientapp", "pull_and_inflate_object_from_tree"),
}
"""Modules in which attributes are replaced, and what the replacements use, by their user; a site imports none."""


def patched_module(user: Literal["grid", "superlink", "middleware", "objects", "executor"]) -> Any:
    """The module to patch. Raises FlowerVersionError if it lacks an attribute: a patch would silently do nothing."""
    name, *attributes = PATCHED[user]
    try:
        module = importlib.import_module(name)
        for attribute in attributes:
            operator.attrgetter(attribute)(module)
    except (ImportError, AttributeError) as error:
        raise FlowerVersionError(
            f"flwr {VERSION} has moved {name}.{', '.join(attributes)} ({error}); pip install 'flwr>=1.41,<1.43'"
        ) from None
    return module


def control_names() -> Any:
    """The names that `control.py` needs, imported only when it is used. Raises FlowerVersionError."""
    try:
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto import control_pb2
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.fab import Fab

        requests = (
            "RegisterNode", "UnregisterNode", "ListNodes", "StartRun", "ListRuns", "StopRun", "StreamLogs",
        )  # fmt: skip
        names = {f"{name}Request": getattr(control_pb2, f"{name}Request") for name in requests}
    except (ImportError, AttributeError) as error:
        raise FlowerVersionError(
            f"flwr {VERSION} has moved its Control API ({error}); pip install 'flwr>=1.41,<1.43'"
        ) from None
    return types.SimpleNamespace(
        **names,
        ControlHttpClient=ControlHttpClient,
        Fab=Fab,
        build_fab_from_disk=build_fab_from_disk,
        fab_to_proto=fab_to_proto,
        user_config_to_proto=user_config_to_proto,
    )


HEARTBEAT_SECONDS = 10
"""Heartbeat interval of a site (the minimum of flwr); a site counts as lost after twice that."""
NODE_NOT_ACTIVATED = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
RUN_NOT_ACTIVE = ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED


__all__ = [
    "AcquireTaskRequest",
    "ActivateNodeRequest",
    "ArrayChunk",
    "ConfirmMessageReceivedRequest",
    "DeactivateNodeRequest",
    "Error",
    "ErrorCode",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES",
    "FleetHttpClient",
    "FlowerError",
    "FlowerVersionError",
    "HEARTBEAT_SECONDS",
    "Metadata",
    "NODE_NOT_ACTIVATED",
    "Node",
    "NodeAuthHttpInterceptor",
    "OBJECT_PUSH_SESSION_TTL_SECONDS",
    "ObjectPullError",
    "ObjectPushError",
    "ObjectTree",
    "ObjectUnavailableError",
    "PULL_MAX_TIME",
    "ProtobufClient",
    "PullAppMessagesRequest",
    "PullMessagesRequest",
    "PullObjectResponse",
    "PushMessagesRequest",
    "PushObjectRequest",
    "RUN_NOT_ACTIVE",
    "RegisterNodeFleetRequest",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "RuntimeVersionHttpInterceptor",
    "SendNodeHeartbeatRequest",
    "SendTaskHeartbeatRequest",
    "SubStatus",
    "SuperExecAuthHttpInterceptor",
    "TaskIdentity",
    "UnregisterNodeFleetRequest",
    "VERSION",
    "check_version",
    "control_names",
    "generate_key_pairs",
    "get_all_nested_objects",
    "get_num_workers",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "get_object_tree",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "message_from_proto",
    "message_to_proto",
    "no_object_id_recompute",
    "patched_module",
    "public_key_to_bytes",
    "remove_content_from_message",
]
