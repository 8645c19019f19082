"""Jobs for `training.workers`: a module of its own, for worker processes import it by name."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FileJob:
    """Leaves a file, or ends as `fate` says."""

    path: Path
    fate: str = "write"

    def __str__(self) -> str:
        return self.path.name


class Unpicklable(ValueError):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def do(job: FileJob) -> None:
    """Write the process's id into the job's file, or fail in the way that it names."""
    if job.fate in {"disk", "killed"}:
        while not job.path.with_name("a").exists():  # lest it take that job along
            time.sleep(0.01)
    if job.fate == "value":
        raise Unpicklable("bad", "value")
    if job.fate == "disk":
        raise OSError(28, "No space left on device")
    if job.fate == "bug":
        raise ZeroDivisionError
    if job.fate == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.fate == "long":
        job.path.with_name(f"{job.path.name}-begun").write_text(str(os.getpid()))
        time.sleep(60)
    job.path.write_text(str(os.getpid()))
