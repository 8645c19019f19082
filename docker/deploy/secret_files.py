"""Files of one secret: a key, a password."""

from pathlib import Path

__all__ = ["Unreadable", "read_secret"]


class Unreadable(Exception):
    """A file does not give its secret; the message names it and says why."""


def read_secret(path: Path) -> str:
    """Return the one line of a file, less the white space around it. Raises: Unreadable.

    ASCII only, as what goes into a header of HTTP; never quoted in the message.
    """
    try:
        secret = path.read_text("ascii").strip()
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{path} cannot be read (it is no ASCII text)") from None
    if not secret.isprintable():
        raise Unreadable(f"{path} cannot be read (it is more than one line)")
    return secret
