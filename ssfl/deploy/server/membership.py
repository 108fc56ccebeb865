"""Which keys may take part in a run, and as which clients: the roster, which may change during the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from ssfl.deploy.errors import DeployError
from ssfl.deploy.federation.roster import Member
from ssfl.deploy.log import EventLog
from ssfl.deploy.transport.port import SiteInfo


@final
class Membership:
    """The members of a run as of now.

    members: the roster at the start; empty: every site may take part. read: reads the roster; on a DeployError the
    last members stay. fields: of every event in the log.
    """

    def __init__(self, members: Sequence[Member], log: EventLog, fields: Mapping[str, Any]) -> None:
        self._open = not members
        self._members = {m.key: m for m in members}
        self.read: Callable[[], Sequence[Member]] = lambda: tuple(self._members.values())
        self._log, self._fields = log, fields
        self._error = ""
        self._unknown_keys: set[str] = set()

    def get(self, key: str) -> Member | None:
        """The member with this key; None if there is none."""
        return self._members.get(key)

    def update(self) -> set[str]:
        """Read the roster. Returns the keys that were added, removed or given to another client or name."""
        if self._open:
            return set()
        try:
            members = {m.key: m for m in self.read()}
        except DeployError as error:
            if str(error) != self._error:
                self._error = str(error)
                self._log.error("roster_unreadable", f"{error}; the last one is used", **self._fields)
            return set()
        self._error = ""
        before, self._members = self._members, members
        self._unknown_keys -= members.keys()
        changed = {key for key in before.keys() | members.keys() if before.get(key) != members.get(key)}
        if changed:
            ordered = sorted(members.values(), key=lambda member: member.client)
            names = ", ".join(f"{m.name} (client {m.client})" for m in ordered)
            self._log.info("roster_changed", f"the sites are now {names}", **self._fields)
        return changed

    def admits(self, info: SiteInfo) -> bool:
        """Whether a site may take part; logs a key that is not on the roster once."""
        if self._open or info.key in self._members:
            return True
        if info.key not in self._unknown_keys:
            self._unknown_keys.add(info.key)
            text = f"key {info.key[:16]} is not on the roster"
            self._log.warning("site_refused", text, **self._fields, key=info.key)
        return False
