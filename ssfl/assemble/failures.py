"""Messages and files of a run that stops before its end."""

from __future__ import annotations

import copy
import json
import shlex
import sys
import traceback
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save

from ssfl import run_folder
from ssfl.assemble.build import RunSetup
from ssfl.assemble.checked_method import MethodFault
from ssfl.assemble.execution import runner_of
from ssfl.engine.client.diagnosis import diagnose
from ssfl.engine.client.errors import ClientError, DivergedError, EngineError
from ssfl.engine.loop import NoReplyError
from ssfl.engine.simulator import Simulator
from ssfl.output import write_atomically


def say_how_to_resume(reason: str, folder: Path) -> None:
    """The last lines of a run that can be resumed."""
    print(f"ssfl: {reason}", file=sys.stderr)
    print(f"continue with: ssfl resume {shlex.quote(str(folder))}", file=sys.stderr)


def say_what_helps(reason: str, error: Exception, setup: RunSetup, folder: Path) -> None:
    """The last lines of a run that failed: a command that may help."""
    if isinstance(error, DivergedError):
        rate = setup.config.optimizer.lr / 10
        _say_how_to_start(
            reason, "a lower learning rate or better data may help", folder, f"optimizer.lr={rate:g}"
        )
        return
    share = setup.config.training.missing_replies
    if isinstance(error, NoReplyError) and share:  # drawn from the seed
        _say_how_to_start(reason, "more replies help", folder, f"training.missing_replies={share / 2:.2g}")
        return
    if isinstance(error, MethodFault):
        reason += "; the method can be corrected before the run is continued"
    say_how_to_resume(reason, folder)
    if isinstance(error, (ClientError, MethodFault)) and not setup.config.experiment.debug_mode:
        print(
            "experiment.debug_mode=true saves the traceback, and the inputs of a failed step",
            file=sys.stderr,
        )


def _say_how_to_start(reason: str, remedy: str, folder: Path, word: str) -> None:
    """The last lines of a run that would fail in the same way when it is resumed."""
    print(f"ssfl: {reason}", file=sys.stderr)
    print(f"a resumed run would fail again; {remedy}:", file=sys.stderr)
    print(f"start again with: {start_command(folder, word)}", file=sys.stderr)


def start_command(folder: Path, *words: str) -> str:
    """The shell command that started this run, with additional arguments."""
    try:
        began = json.loads((folder / run_folder.ENVIRONMENT).read_text(encoding="utf-8"))["command"]
        keys = {word.partition("=")[0] for word in words}
        old = [str(w) for w in began[1:] if "=" in str(w) and str(w).partition("=")[0] not in keys]
    except (OSError, ValueError, LookupError, TypeError):
        old = []
    return shlex.join(["ssfl", "run", *old, *words])


def keep_evidence(error: EngineError, setup: RunSetup, simulator: Simulator, folder: Path) -> Path | None:
    """With experiment.debug_mode: writes the traceback and the tensors of the failing step to FOLDER/debug.

    To find the step, the client's work is computed again alone; if that succeeds, only the traceback is written.
    Returns the folder; None without debug_mode, or if neither a client nor the method caused the error.
    """
    place = error.place if isinstance(error, ClientError) else None
    if not setup.config.experiment.debug_mode or not (place or isinstance(error, MethodFault)):
        return None
    out = folder / run_folder.DEBUG
    out.mkdir(exist_ok=True)
    text = (error.trace if isinstance(error, ClientError) else "") or "".join(
        traceback.format_exception(error)
    )
    job = None if place is None else simulator.job_of(place.client)
    # Other threads may still compute with the network.
    apart = replace(setup, module=copy.deepcopy(setup.module))
    found = None if job is None else diagnose(runner_of(apart), job)
    if found is not None:
        text += f"\ncomputed again, alone: {found}\n" + "".join(traceback.format_exception(found))
        write_atomically(out / "step.safetensors", save(dict(found.evidence), metadata={"error": str(found)}))
    (out / "error.txt").write_text(text, encoding="utf-8")
    return out
