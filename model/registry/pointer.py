"""The pointer: what serves.  One small JSON record with a number that only grows, never changed once it is written."""

from __future__ import annotations

import getpass
import os
import re
import socket
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.artifact.formula import Formula
from model.registry.errors import RegistryError

_VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def check_version(version: str) -> str:
    """The version itself.  RegistryError when the text is none, so that it can never be a path."""
    if not is_version(version):
        raise RegistryError(f"version {version!r}: must look like 20260131T120000Z-0a1b2c3d; see `farm models list`")
    return version


Version = Annotated[str, AfterValidator(check_version)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Earlier(_Record):
    """The pointer that a rollback returns to."""

    number: int = Field(ge=1)
    model: Version


class Shadow(_Record):
    """A candidate that scores a share of the requests once more, without answering."""

    version: Version
    share: float = Field(gt=0, le=1)  # of the requests


class Split(_Record):
    """A second model that answers a share of the users."""

    version: Version
    share: float = Field(gt=0, lt=1)  # of the users
    salt: str = Field(min_length=1, max_length=64)  # another salt draws other users


class Pointer(_Record):
    """What serves, and since when."""

    format: Literal[1] = 1
    number: int = Field(ge=1)
    model: Version
    formula: Formula | None = None  # None: the default formula
    calibration: str  # hash of the model's calibration
    previous: Earlier | None = None  # None: nothing to return to
    shadow: Shadow | None = None
    split: Split | None = None
    at: datetime  # UTC
    by: str  # who asked for it

    @classmethod
    def parse(cls, content: bytes, name: str) -> Pointer:
        """Read what `to_json` wrote.  RegistryError, with the name, when it is no pointer that this version reads."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "JSON"
            raise RegistryError(f"{name}: no pointer that this FARM reads: {field}: {problem['msg']}") from None

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def versions(self) -> tuple[str, ...]:
        """Every model that must be loaded for it: the model, then those of split and shadow."""
        return versions_of(self.model, self.split, self.shadow)

    def answers_like(self, other: Pointer) -> bool:
        """Whether both give the same answers: a shadow answers nobody."""
        answering = {"model", "formula", "split"}
        return self.model_dump(include=answering) == other.model_dump(include=answering)


def versions_of(model: str, split: Split | None, shadow: Shadow | None) -> tuple[str, ...]:
    """Each once, the model first."""
    others = (part.version for part in (split, shadow) if part is not None)
    return tuple(dict.fromkeys((model, *others)))


def whoami() -> str:
    """user@machine, for `Pointer.by`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
