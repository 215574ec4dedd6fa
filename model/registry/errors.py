"""What can go wrong with an artifact store.  What is wrong with an artifact itself is an ArtifactError."""

from __future__ import annotations


class RegistryError(ValueError):
    """The store cannot do this: no such version, not complete, not reachable, not allowed."""


class PointerConflictError(RegistryError):
    """Somebody else replaced the pointer since it was read: read it again."""


class SignatureError(RegistryError):
    """No trusted key has signed the artifact, or a key file is none."""
