"""The forms of the predictions: what may be sent, and one reading of what was.

FastAPI could take each field by itself, and did: that was half of its work for a pair, and it
drops in silence what these forms refuse.
"""

from collections.abc import Iterator
from contextlib import aclosing
from itertools import chain
from typing import Annotated, Any, ClassVar, Self, cast

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.answers import Burst, ClipUpload, Options, Upload
from service.errors import ClientGone, FieldsInvalid, field_fault
from service.multipart import FORM, FormBroken, FormLimits, Part, read_parts
from service.schemas import FieldFault
from service.settings import MAX_BURST, MAX_CANDIDATES, MAX_FACES, MAX_PAIRS

__all__ = ["MODEL_NAME", "BatchForm", "PredictForm", "form_body"]

_LIMITS = FormLimits(max_files=2 * MAX_BURST, max_texts=16, max_text_bytes=1024)
"""Twice as many files as a burst may have, so that one too long is told so, and not that
its form is malformed."""
_WAYS = (("onset", "apex"), ("clip",), ("frames", "fps"))
"""Of sending something to `/predict`: each field of one, and none of the others."""
_WAYS_IN_WORDS = "send either onset and apex, or clip, or frames and fps"
_OF_CLIPS = {"onset_frame", "apex_frame", "candidates"}
_MAX_FPS = 10_000
_MAX_FRAME = 10**9
MODEL_NAME = 64
"""Characters of the name of a model."""
_NAME_SHOWN = 64
"""Characters of an unknown field's name that its fault repeats."""

# Described as what they are when they are sent: no form can hold null in place of a file, and the
# documentation page would offer a line of text.
_FILE: JsonSchemaValue = {"type": "string", "contentMediaType": "application/octet-stream"}
_File = Annotated[bytes, WithJsonSchema(_FILE)]
_AsFile = WithJsonSchema(_FILE)
_AsFiles = WithJsonSchema({"type": "array", "items": _FILE, "minItems": 2, "maxItems": MAX_BURST})
_FrameNumber = Annotated[int | None, Field(ge=0, le=_MAX_FRAME)]


class _Form(BaseModel):
    """The fields that both forms have."""

    model_config = ConfigDict(frozen=True)
    files: ClassVar[set[str]]
    repeatable: ClassVar[set[str]]

    model: str | None = Field(
        None, max_length=MODEL_NAME, description="Name of the model; none: the default one."
    )
    faces: int = Field(1, ge=1, le=MAX_FACES, description="Faces to answer for, the largest first.")
    explain: bool = Field(
        default=False, description="Whether to tell how each part of the face moved."
    )

    @classmethod
    async def sent_in(cls, request: Request) -> Self:
        """Read the form of a request. Raises: FieldsInvalid, HTTPException (400), ClientGone."""
        parts = await _parts(request)
        _refuse([*_faults(parts, {*cls.model_fields}, cls.files, cls.repeatable)])
        given = [part for part in parts if not part.blank]
        _refuse([*cls._combination_faults({part.name for part in given})])
        values: dict[str, Any] = {}
        for part in given:
            value = part.text if part.filename is None else part.data
            if part.name in cls.repeatable:
                values.setdefault(part.name, []).append(value)
            else:
                values[part.name] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            faults = [field_fault(fault["loc"], fault["msg"]) for fault in error.errors()]
            raise FieldsInvalid(*faults) from None

    @classmethod
    def _combination_faults(cls, _names: set[str]) -> Iterator[FieldFault]:
        """Yield what is wrong with fields of these names together."""
        yield from ()

    @property
    def options(self) -> Options:
        """What the caller chose beside the pictures."""
        return Options(model=self.model, faces=self.faces, explain=self.explain)


class PredictForm(_Form):
    """One pair or one clip."""

    files: ClassVar = {"onset", "apex", "clip", "frames"}
    repeatable: ClassVar = {"frames"}

    onset: Annotated[bytes | None, _AsFile] = Field(
        None, description="The frame in which the movement begins."
    )
    apex: Annotated[bytes | None, _AsFile] = Field(
        None, description="The frame of its peak, of the same size."
    )
    clip: Annotated[bytes | None, _AsFile] = Field(
        None, description="MP4, MOV, MKV, WebM, AVI, GIF or animated WebP."
    )
    frames: Annotated[list[bytes] | None, _AsFiles] = Field(
        None, max_length=MAX_BURST, description="The frames of a clip, as pictures, in order."
    )
    fps: float | None = Field(
        None,
        gt=0,
        le=_MAX_FPS,
        allow_inf_nan=False,
        description="Frames a second of `frames`.",
    )
    onset_frame: _FrameNumber = Field(None, description="Of a clip: the onset, counted from 0.")
    apex_frame: _FrameNumber = Field(None, description="Of a clip: the apex, counted from 0.")
    candidates: int = Field(
        5,
        ge=1,
        le=MAX_CANDIDATES,
        description="Of a clip: movements of each face to answer for, the strongest first.",
    )

    @classmethod
    def _combination_faults(cls, names: set[str]) -> Iterator[FieldFault]:
        """Yield what keeps the fields from being exactly one of the three ways."""
        begun = [way for way in _WAYS if names & {*way}]
        if len(begun) != 1:
            for field in names & {*chain(*_WAYS)} or cls.files:
                yield FieldFault(field=field, message=_WAYS_IN_WORDS)
            return
        (way,) = begun
        for field in {*way} - names:
            yield FieldFault(field=field, message="Field required")
        if "onset" in way:
            for field in names & _OF_CLIPS:
                yield FieldFault(field=field, message="belongs to a clip or frames, not to a pair")

    @property
    def options(self) -> Options:
        """What the caller chose beside the pictures."""
        return Options(
            model=self.model,
            faces=self.faces,
            explain=self.explain,
            onset_frame=self.onset_frame,
            apex_frame=self.apex_frame,
            candidates=self.candidates,
        )

    @property
    def sent(self) -> Upload | ClipUpload | Burst:
        """What was sent: exactly one of the three is there."""
        if self.clip is not None:
            return ClipUpload(self.clip)
        if self.frames is not None and self.fps is not None:
            return Burst(tuple(self.frames), self.fps)
        onset, apex = cast("tuple[bytes, bytes]", (self.onset, self.apex))
        return Upload(onset, apex)


class BatchForm(_Form):
    """Many pairs."""

    files: ClassVar = {"onset", "apex"}
    repeatable: ClassVar = {"onset", "apex"}

    onset: list[_File] = Field(
        min_length=1, max_length=MAX_PAIRS, description="The onset frame of each pair."
    )
    apex: list[_File] = Field(
        min_length=1,
        max_length=MAX_PAIRS,
        description="The apex frame of each pair, in the order of the onsets.",
    )

    @property
    def sent(self) -> list[Upload]:
        """The pairs. Raises: FieldsInvalid."""
        if len(self.onset) != len(self.apex):
            message = f"there are {len(self.onset)} onset and {len(self.apex)} apex frames"
            raise FieldsInvalid(FieldFault(field="apex", message=message))
        return [Upload(*pair) for pair in zip(self.onset, self.apex, strict=True)]


def form_body(form: type[_Form]) -> dict[str, Any]:
    """Describe the body of a route that takes this form, for OpenAPI."""
    content = {FORM: {"schema": form.model_json_schema()}}
    return {"requestBody": {"content": content, "required": True}}


async def _parts(request: Request) -> list[Part]:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() not in {"", FORM}:
        raise FieldsInvalid(FieldFault(field="body", message=f"must be a form, sent as {FORM}"))
    try:
        async with aclosing(request.stream()) as chunks:
            return await read_parts(kind, chunks, _LIMITS)
    except FormBroken as fault:
        raise HTTPException(400, str(fault)) from None
    except ClientDisconnect:
        raise ClientGone("the caller left before the form had arrived") from None


def _refuse(faults: list[FieldFault]) -> None:
    if faults:
        raise FieldsInvalid(*sorted(faults, key=lambda fault: fault.field))


def _faults(
    parts: list[Part], fields: set[str], files: set[str], repeatable: set[str]
) -> Iterator[FieldFault]:
    """Yield what is wrong with parts by themselves, before their values are looked at."""
    names = [part.name for part in parts]
    for name in {*names} - fields:
        yield FieldFault(field=_shown(name), message="is not a field of this form")
    for name in fields - repeatable:
        if names.count(name) > 1:
            yield FieldFault(field=name, message="is given more than once")
    given = [(part.name, part.filename is None) for part in parts if not part.blank]
    for name in {name for name, is_text in given if is_text} & files:
        yield FieldFault(field=name, message="must be a file: give the part a file name")
    for name in {name for name, is_text in given if not is_text} & (fields - files):
        yield FieldFault(field=name, message="must be text: give the part no file name")
    for name in repeatable:
        if len({part.blank for part in parts if part.name == name}) > 1:
            yield FieldFault(field=name, message="one of its parts is empty and has no file name")


def _shown(name: str) -> str:
    """Return the beginning of a name as text that JSON can hold: a caller made it up."""
    return name[:_NAME_SHOWN].encode(errors="backslashreplace").decode()
