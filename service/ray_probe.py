"""Connect to a Ray cluster and leave it again: `python -m service.ray_probe ADDRESS`.

In a process of its own, for where no cluster answers Ray's C++ writes page after page, tries for
minutes, and may end the process. The first line says that Ray is loaded; the second, what failed.
"""

import logging
import os
import sys

import typer

__all__ = ["main"]


def main() -> None:
    """Exit with status 0 where a cluster answers."""
    import ray  # noqa: PLC0415 - an extra

    typer.echo()
    try:
        ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked tells it
        typer.echo(" ".join(str(error).split()) or type(error).__name__)
        os._exit(1)
    ray.shutdown()


if __name__ == "__main__":
    main()
