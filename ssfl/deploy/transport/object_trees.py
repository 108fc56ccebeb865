"""The SuperLink's object trees, with a limit on their size.

Sites announce the objects of an answer as a tree, and the SuperLink keeps for each object the ids of its children. If
an object has the same child twice, and so has the child, its tree doubles with every level: Flower would build it in
the SuperLink and send it to the ServerApp. Protobuf cannot read a tree of more than 100 levels.
"""

from __future__ import annotations

from typing import Any

from ssfl.deploy.transport import internals as flower

MOST_OBJECTS = 20_000
"""An object has at most 5 MiB, so this is a message of 100 GB."""
MOST_LEVELS = 16
"""A message of ssfl has five."""


def patch_object_trees() -> None:
    """Replace the store's function in this process. The SuperLink drops a message whose tree is refused."""
    module = flower.patched_module("objects")
    missing = module.NoObjectInStoreError

    def get_object_tree(self: Any, object_id: str) -> flower.ObjectTree:
        with self.lock_store:
            return _tree(self.store, object_id, missing)

    module.InMemoryObjectStore.get_object_tree = get_object_tree


def _tree(store: Any, object_id: str, missing: type[Exception]) -> flower.ObjectTree:
    """The tree below an object. Raises `missing`."""
    root = flower.ObjectTree(object_id=object_id)
    known, unread = 1, [(root, 1)]
    while unread:
        node, level = unread.pop()
        if (entry := store.get(node.object_id)) is None:
            raise missing(f"Object with ID '{node.object_id}' was not pre-registered.")
        known += len(entry.child_object_ids)
        if known > MOST_OBJECTS or (entry.child_object_ids and level == MOST_LEVELS):
            raise missing(
                f"Object with ID '{object_id}' has more than {MOST_OBJECTS} objects or {MOST_LEVELS} levels."
            )
        unread += [(node.children.add(object_id=child), level + 1) for child in entry.child_object_ids]
    return root
