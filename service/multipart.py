"""Reads a multipart form as it comes: into memory, within bounds, and to its end.

Starlette's reader makes a temporary file of each picture, and takes a form that is cut short for a
whole one: two frames of a clip would be answered as if no third one had been sent.
"""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

if TYPE_CHECKING:  # it is there for type checkers only
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["FORM", "FormBroken", "FormLimits", "Part", "read_parts"]

FORM = "multipart/form-data"


class FormBroken(Exception):
    """The body is not a whole multipart form within the limits; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FormLimits:
    """What one form may hold. Its bytes as a whole are bounded where they arrive."""

    max_files: int
    max_texts: int
    max_text_bytes: int


class Part(NamedTuple):
    """One field of a form."""

    name: str
    data: bytes
    filename: str | None
    """None: the part is text; empty: a file that nobody chose, if it holds nothing."""

    @property
    def text(self) -> str:
        """What was sent as text: UTF-8 (RFC 7578), or else Latin-1."""
        return _text(self.data)

    @property
    def blank(self) -> bool:
        """Whether a form sent this for a field that nobody filled."""
        return not (self.data or self.filename)


async def read_parts(
    content_type: str, chunks: AsyncIterator[bytes], limits: FormLimits
) -> list[Part]:
    """Read the parts of a form in the order in which they were sent.

    None of a body that is no multipart form, which is not read, or that is empty.
    Raises: FormBroken, and what `chunks` raises.
    """
    kind, options = parse_options_header(content_type)
    if kind != FORM.encode():
        return []
    if b"boundary" not in options:
        raise FormBroken("The form's content type names no boundary.")
    reader = _Reader(limits)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks)
        async for chunk in chunks:
            reader.begun = reader.begun or bool(chunk)
            parser.write(chunk)
    except FormParserError:
        raise FormBroken("The body is not a multipart form.") from None
    if reader.begun and not reader.ended:
        raise FormBroken("The form ends in the middle of a part.")
    return reader.parts


@dataclass(slots=True)
class _Reader:
    """Puts parts together from what the parser finds in each chunk."""

    limits: FormLimits
    parts: list[Part] = field(default_factory=list)
    begun: bool = False
    ended: bool = False
    _header: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _name: str = ""
    _filename: str | None = None
    _files: int = 0
    _texts: int = 0
    _data: io.BytesIO = field(default_factory=io.BytesIO)

    @property
    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._more_header,
            "on_header_value": self._more_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._more_data,
            "on_part_end": self._close,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition = b""
        self._data = io.BytesIO()

    def _more_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _more_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise FormBroken("A part of the form has no name.")
        self._name = _text(options[b"name"])
        filename = options.get(b"filename")
        self._filename = None if filename is None else _text(filename)
        if filename is None:
            self._texts += 1
        else:
            self._files += 1
        if self._files > self.limits.max_files:
            raise FormBroken(f"A form may hold {self.limits.max_files} files.")
        if self._texts > self.limits.max_texts:
            raise FormBroken(f"A form may hold {self.limits.max_texts} texts.")

    def _more_data(self, data: bytes, start: int, end: int) -> None:
        self._data.write(memoryview(data)[start:end])
        most = self.limits.max_text_bytes
        if self._filename is None and self._data.tell() > most:
            raise FormBroken(f"A text of a form may hold {most} bytes.")

    def _close(self) -> None:
        self.parts.append(Part(self._name, self._data.getvalue(), self._filename))

    def _end(self) -> None:
        self.ended = True


def _text(sent: bytes) -> str:
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return sent.decode("latin-1")
