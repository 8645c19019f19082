"""Which code made a model."""

import subprocess
from pathlib import Path

__all__ = ["current_commit"]


def current_commit() -> str:
    """Return the commit of this source tree, `-dirty` added when files differ; else `unknown`."""
    try:
        commit, changes = (
            subprocess.run(  # noqa: S603 - fixed arguments
                ["git", *arguments],  # noqa: S607 - whichever git the user has
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for arguments in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit
