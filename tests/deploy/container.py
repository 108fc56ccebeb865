"""A service of compose.yaml without Docker: the same user, capabilities, read-only root and mounts, by namespaces.

What is missing: the image (this machine's system and virtual environment stand for it) and a separate network.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

DOCKER = ROOT / "deploy" / "docker"
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc", "proc", "dev")


def reason_against() -> str | None:
    """Why this machine cannot run a service like this; None if it can."""
    if os.geteuid() != 0:
        return "mounts need root"
    missing = [tool for tool in ("unshare", "setpriv", "chroot") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)}: missing"
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return "mounts are not allowed here" if done.returncode else None


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml with `${NAME:?text}` replaced, as compose does: an error for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise KeyError(f"{match[1]}: {match[2]}")
        return variables[match[1]]

    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(re.sub(r"\$\{(\w+):\?([^}]*)\}", value, text)))


def image_folders() -> dict[str, int]:
    """Folder -> mode, of those that the Dockerfile makes for volumes; a new volume takes over the mode."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    found = re.findall(r"install -d -m (\d+)((?: /\w+)+)", text)
    return {folder: int(mode, 8) for mode, folders in found for folder in folders.split()}


def image_variable(name: str) -> str:
    """An environment variable of the Dockerfile."""
    (value,) = re.findall(rf"\b{name}=(\S+)", (DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    return str(value)


@dataclass(frozen=True)
class Machine:
    """A host with the folders that compose mounts; `root`/deploy/docker would hold compose.yaml."""

    root: Path
    services: Mapping[str, Any]
    names: tuple[str, ...]
    """Host names that mean this machine."""

    def volume(self, name: str) -> Path:
        """The folder of a named volume."""
        return self.root / "volumes" / name

    def words(self, service: str, command: list[str]) -> list[str]:
        """The command line that runs `command` as the service would."""
        about = self.services[service]
        new = self.root / "roots" / service
        new.mkdir(parents=True, exist_ok=True)
        (self.root / "hosts").write_text("".join(f"127.0.0.1 {n}\n" for n in ("localhost", *self.names)))
        lines = ["set -e", *_system(new), f"mount --bind {self.root}/hosts {new}/etc/hosts"]
        lines += [f"mkdir -m {mode:o} {new}{folder}" for folder, mode in image_folders().items()]
        lines += [line for text in about["volumes"] for line in self._volume(new, text)]
        lines += [
            f"mkdir -p {new}{path}; mount -t tmpfs -o mode=1777 tmpfs {new}{path}" for path in about["tmpfs"]
        ]
        lines += [f"mount -o remount,ro {new}"] if about["read_only"] else []
        lines.append(f"exec chroot {new} {shlex.join([*_privileges(about), *_environment(), *command])}")
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]

    def _volume(self, new: Path, text: str) -> list[str]:
        source, target, *options = text.split(":")
        if source.startswith("."):
            path = (self.root / "deploy" / "docker" / source).resolve()
        else:
            path = self.volume(source)
            if not path.exists():  # made by root, with the mode of the image's folder
                path.mkdir(parents=True)
                path.chmod(image_folders().get(target, 0o755))
        lines = [f"mkdir -p {new}{target}", f"mount --bind {path} {new}{target}"]
        return [*lines, f"mount -o remount,ro,bind {new}{target}"] if options == ["ro"] else lines


def _system(new: Path) -> list[str]:
    """Mount an empty root with this machine's system, Python and checkout in it."""
    lines = [f"mount -t tmpfs -o mode=755 tmpfs {new}"]
    for name in SYSTEM:
        if Path("/", name).is_symlink():
            lines.append(f"cp -P /{name} {new}/{name}")
        elif Path("/", name).exists():
            lines.append(f"mkdir {new}/{name}; mount --rbind /{name} {new}/{name}")
    for path in {str(ROOT), sys.base_prefix, sys.prefix}:
        if not path.startswith("/usr"):
            lines.append(f"mkdir -p {new}{path}; mount --bind {path} {new}{path}")
    return lines


def _privileges(about: Mapping[str, Any]) -> list[str]:
    user, _, group = about["user"].partition(":")
    words = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    if about["cap_drop"] == ["ALL"]:
        words += ["--bounding-set=-all", "--inh-caps=-all"]
    return [*words, "--no-new-privs"] if "no-new-privileges:true" in about["security_opt"] else words


def _environment() -> list[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return ["env", "-i", "-C", "/runs", f"PATH={path}", f"HOME={image_variable('HOME')}"]
