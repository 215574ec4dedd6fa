"""`farm models`: what lies in an artifact store, what serves, and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from model.artifact.formula import Formula
    from model.registry.pointer import Pointer, Shadow, Split
    from model.registry.store import ArtifactStore

Models = Annotated[
    str, typer.Option(help="Artifact store: a folder, or a URL such as s3://bucket/models (extra `models`).")
]
Trusted = Annotated[
    Path | None, typer.Option("--trusted-keys", help="File of public keys; what none of them signed is refused.")
]
Artifact = Annotated[Path, typer.Option(help="ARTIFACT folder, made by `farm export`.")]
By = Annotated[str | None, typer.Option(help="Who asks, for the record; default user@machine.")]
Version = Annotated[str, typer.Argument(help="Of a model in the store.")]
_DEFAULT = "default"

models = typer.Typer(
    name="models", help="Models in an artifact store: push, activate, roll back, sign.", no_args_is_help=True
)


@models.command("list")
def list_models(
    models: Models,
    trusted_keys: Trusted = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the list to this file too.")] = None,
) -> None:
    """Print every version, what serves, and what is not complete.

    Example: `farm models list --models /srv/farm/models`
    """
    from model.registry.show import as_records, show

    store = _open(models, trusted_keys)
    pointer, found = store.read_pointer(), store.list()
    show(pointer, found)
    if json is not None:
        import orjson

        json.write_bytes(orjson.dumps(as_records(pointer, found), option=orjson.OPT_INDENT_2) + b"\n")


@models.command()
def push(models: Models, artifact: Artifact, trusted_keys: Trusted = None) -> None:
    """Verify an artifact and copy it into the store; prints its version.  Nothing is served by that yet.

    Example: `farm models push --models /srv/farm/models --artifact artifact`
    """
    typer.echo(_open(models, trusted_keys).push(artifact))


@models.command()
def activate(
    version: Version,
    models: Models,
    formula: Annotated[
        str | None, typer.Option(help="File with the score formula, or `default`; without it the active one is kept.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Version that answers a share of the users.")] = None,
    split_share: Annotated[float | None, typer.Option(min=0, max=1, help="Of the users.")] = None,
    split_salt: Annotated[
        str | None, typer.Option(help="Another salt draws other users; default the split's version.")
    ] = None,
    shadow: Annotated[str | None, typer.Option(help="Version that scores a share of the requests once more.")] = None,
    shadow_share: Annotated[float | None, typer.Option(min=0, max=1, help="Of the requests.")] = None,
    by: By = None,
    trusted_keys: Trusted = None,
) -> None:
    """Make a version serve, with the split and the shadow that are given and no others.

    Example: `farm models activate 20260131T120000Z-0a1b2c3d --models /srv/farm/models`
    """
    store = _open(models, trusted_keys)
    parts = _shadow(shadow, shadow_share), _split(split, split_share, split_salt)
    before = store.read_pointer()
    pointer = store.activate(version, _formula(formula, before), *parts, by)
    _say(f"nothing to change: {_told(pointer)}" if before and before.number == pointer.number else _told(pointer))


@models.command()
def rollback(models: Models, by: By = None, trusted_keys: Trusted = None) -> None:
    """Return to what served before; again, to what served before that.

    Example: `farm models rollback --models /srv/farm/models`
    """
    _say(_told(_open(models, trusted_keys).rollback(by)))


@models.command()
def fetch(
    models: Models,
    cache: Annotated[Path, typer.Option("--models-cache", help="Folder for copies.")],
    version: Annotated[str | None, typer.Argument(help="Of a model in the store; default all that serve.")] = None,
    trusted_keys: Trusted = None,
) -> None:
    """Copy a version to this machine, every checksum and signature verified; prints the folder.

    Example: `farm models fetch --models s3://bucket/models --models-cache /var/cache/farm`
    """
    store = _open(models, trusted_keys)
    for one in (version,) if version else _serving(store):
        typer.echo(store.fetch(one, cache))


@models.command()
def sign(
    artifact: Artifact,
    key: Annotated[Path, typer.Option("--signing-key", help="Private key, made by `farm models keygen`.")],
) -> None:
    """Verify an artifact and sign its manifest; `farm models push` takes the signature along.

    Example: `farm models sign --artifact artifact --signing-key farm.pem`
    """
    from model.registry.signing import sign as run

    _say(f"{artifact}: signed by {run(artifact, key)}")


@models.command()
def keygen(out: Annotated[Path, typer.Option(help="File for the private key; it must not be there.")]) -> None:
    """Make a key to sign with, and print the public one: a line for the file of trusted keys.

    Example: `farm models keygen --out farm.pem`
    """
    from model.registry.signing import make_key

    typer.echo(make_key(out))


def _open(models: str, trusted_keys: Path | None) -> ArtifactStore:
    from model.registry.signing import read_keys
    from model.registry.store import ArtifactStore

    return ArtifactStore.open(models, () if trusted_keys is None else read_keys(trusted_keys))


def _serving(store: ArtifactStore) -> tuple[str, ...]:
    from model.registry.pointer import versions_of

    pointer = store.read_pointer()
    if pointer is None:
        raise ValueError(f"{store.name}: nothing serves; say what with `farm models activate`")
    return versions_of(pointer.model, pointer.split, pointer.shadow)


def _formula(given: str | None, active: Pointer | None) -> Formula | None:
    from model.artifact.formula import Formula

    if given is None:
        return active.formula if active else None
    return None if given == _DEFAULT else Formula.load(given)


def _shadow(version: str | None, share: float | None) -> Shadow | None:
    from model.registry.pointer import Shadow

    share = _share("--shadow", version, share)
    return None if version is None else Shadow(version=version, share=share)


def _split(version: str | None, share: float | None, salt: str | None) -> Split | None:
    from model.registry.pointer import Split

    share = _share("--split", version, share)
    if share == 1:
        raise typer.BadParameter("of all users: activate that version instead", param_hint="--split-share")
    return None if version is None else Split(version=version, share=share, salt=salt or version)


def _share(option: str, version: str | None, share: float | None) -> float:
    """0 when neither is given."""
    if (version is None) != (not share):
        raise typer.BadParameter(
            "give both, and a share greater than 0, or none", param_hint=f"{option} / {option}-share"
        )
    return share or 0.0


def _told(pointer: Pointer) -> str:
    parts = [f"pointer {pointer.number}: {pointer.model} serves"]
    if pointer.formula is not None:
        parts.append(f"formula {pointer.formula.version}")
    if pointer.split is not None:
        parts.append(f"{pointer.split.version} answers {pointer.split.share:.3g} of the users")
    if pointer.shadow is not None:
        parts.append(f"{pointer.shadow.version} shadows {pointer.shadow.share:.3g} of the requests")
    back = f"a rollback returns to {pointer.previous.model}" if pointer.previous else "nothing to roll back to"
    return "; ".join([*parts, back])


def _say(text: str) -> None:
    typer.echo(text, err=True)
