"""`mfdan serve` that tells what it opens and whom it calls, and can write to no file.

The audit hook hears what Python opens. What libraries open without Python is stopped by the system:
no file may grow by a byte, be it on a disk, in memory or without a name.
"""

import os
import resource
import sys
import tempfile

CALLS = ("socket.connect", "socket.getaddrinfo", "subprocess.", "os.system", "os.exec", "os.posix_")
WATCHED = "watched:"


def hear(event: str, args: tuple[object, ...]) -> None:
    if event == "open":
        path, mode, flags = args
        kind = "write" if _may_write(mode, flags) else "read"
        _tell(f"{kind} {path!r}")
    elif event.startswith(CALLS):
        _tell(f"call {event}")


def _may_write(mode: object, flags: object) -> bool:
    by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return by_mode or (isinstance(flags, int) and flags & os.O_ACCMODE != os.O_RDONLY)


def _tell(what: str) -> None:
    os.write(2, f"{WATCHED} {what}\n".encode(errors="replace"))


def prove() -> None:
    """Try what must be noticed and must fail."""
    with tempfile.TemporaryFile(buffering=0, dir=os.environ["MFDAN_MODELS_DIR"]) as spool:
        try:
            spool.write(b"a")
        except OSError as error:
            _tell(f"failed {error.strerror}")
    memory = os.memfd_create("proof")
    try:
        os.write(memory, b"a")
    except OSError as error:
        _tell(f"failed {error.strerror}")
    os.close(memory)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.addaudithook(hear)
    prove()
    from service.main import main

    sys.argv = ["mfdan", "serve"]
    main()
