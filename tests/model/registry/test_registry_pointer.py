"""The pointer: one winner among many writers, what fits what, and the way back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import ValidationError
from registry_facts import KINDS, VIEW, OpenStore, flip, make_artifact, opener, started

from model.artifact.calibration import Calibration
from model.artifact.formula import Formula, Term
from model.artifact.manifest import CALIBRATION, TABLES, ArtifactError
from model.registry.errors import PointerConflictError, RegistryError
from model.registry.pointer import Earlier, Pointer, Shadow, Split
from model.registry.remote import FsspecFiles
from model.registry.store import ArtifactStore

A, B = "20260131T120000Z-0000000a", "20260201T120000Z-0000000b"
AT = datetime(2026, 2, 1, tzinfo=UTC)
COUNTS_UP = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from registry_barrier import meet
from model.registry.errors import PointerConflictError
from model.registry.pointer import Pointer
from model.registry.store import ArtifactStore

store, wins = ArtifactStore.open(sys.argv[1]), 0
meet(Path(sys.argv[1], "racers"), 3)
while wins < 50:
    current = store.read_pointer()
    number = current.number if current else 0
    pointer = Pointer(number=number + 1, model=sys.argv[2], calibration="c", at=datetime.now(UTC), by=sys.argv[3])
    try:
        store.replace_pointer(pointer, number)
    except PointerConflictError:
        continue
    wins += 1
"""


def pointer(number: int = 1, model: str = A, **fields: object) -> Pointer:
    return Pointer.model_validate({"number": number, "model": model, "calibration": "c", "at": AT, "by": "me"} | fields)


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return opener(request.param, tmp_path / "store")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A directory with three models; the second has a calibration of its own."""
    store = ArtifactStore.open(tmp_path / "store")
    for seed, slope in ((0, 1.0), (1, 0.5), (2, 1.0)):
        store.push(make_artifact(tmp_path, seed, slope).path)
    return store


@pytest.fixture
def versions(store: ArtifactStore, tmp_path: Path) -> list[str]:
    """In the order of their seeds."""
    by_tables = {Path(store.fetch(one.version), TABLES).read_bytes(): one.version for one in store.list()}
    return [by_tables[folder.joinpath(TABLES).read_bytes()] for folder in sorted(tmp_path.glob("artifact-*"))]


def test_a_pointer_comes_back_as_it_was_written(open_store: OpenStore) -> None:
    assert open_store().read_pointer() is None
    written = pointer(
        formula=Formula(version="f", tasks={"ctr": Term(weight=0.1, power=3)}),
        shadow=Shadow(version=B, share=0.25),
        split=Split(version=B, share=1 / 3, salt="s"),
    )
    open_store().replace_pointer(written, 0)
    assert open_store().read_pointer() == written
    assert written.versions == (A, B)


def test_only_the_expected_pointer_is_replaced(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    first.replace_pointer(pointer(), 0)
    with pytest.raises(PointerConflictError, match="expected pointer 0, there is 1 now"):
        second.replace_pointer(pointer(model=B), 0)
    second.replace_pointer(pointer(2, B), 1)
    assert first.read_pointer() == pointer(2, B)
    with pytest.raises(ValueError, match="must follow the expected 2"):
        first.replace_pointer(pointer(4), 2)


def test_a_reader_that_is_far_behind_catches_up(open_store: OpenStore) -> None:
    reader, writer = open_store(), open_store()
    for number in range(1, 6):
        writer.replace_pointer(pointer(number), number - 1)
        if number == 1:
            assert reader.read_pointer() == pointer(1)
    assert reader.read_pointer() == pointer(5)


def test_of_processes_that_race_each_number_has_one_winner(tmp_path: Path) -> None:
    racers = [started(COUNTS_UP, tmp_path, A, name) for name in "xyz"]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    written = [json.loads(file.read_bytes()) for file in sorted(tmp_path.glob("pointers/*.json"))]
    assert [one["number"] for one in written] == list(range(1, 151))
    assert {name: sum(one["by"] == name for one in written) for name in "xyz"} == {"x": 50, "y": 50, "z": 50}
    assert not list(tmp_path.glob("pointers/.*"))


class _LosesAnswers(MemoryFileSystem):
    """Writes, and then says that it could not."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        super().pipe_file(path, value, mode=mode, **kwargs)
        raise TimeoutError("no answer")


def test_a_creation_whose_answer_was_lost_has_succeeded(tmp_path: Path) -> None:
    store = ArtifactStore(FsspecFiles(_LosesAnswers(), f"/{tmp_path.name}/lost", "lost"))
    store.replace_pointer(pointer(), 0)
    assert store.read_pointer() == pointer()
    other = FsspecFiles(_LosesAnswers(), f"/{tmp_path.name}/lost", "lost")
    with pytest.raises(FileExistsError):
        other.create("pointers/00000001.json", b"another")


def test_a_store_put_back_to_an_earlier_state_is_noticed(tmp_path: Path) -> None:
    reader, writer = ArtifactStore.open(tmp_path), ArtifactStore.open(tmp_path)
    for number in (1, 2, 3):
        writer.replace_pointer(pointer(number), number - 1)
    assert reader.read_pointer() == pointer(3)
    for number in (2, 3):
        (tmp_path / f"pointers/0000000{number}.json").unlink()
    assert reader.read_pointer() == pointer(1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "JSON: Invalid JSON"),
        (b"{}", "number: Field required"),
        (pointer().to_json().replace(b'"format": 1', b'"format": 2'), "format: Input should be 1"),
        (pointer().to_json().replace(A.encode(), b"../secret"), "model: Value error, version '../secret'"),
        (pointer().to_json().replace(b'"by"', b'"new": 1, "by"'), "new: Extra inputs are not permitted"),
    ],
)
def test_a_pointer_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "pointers").mkdir()
    (tmp_path / "pointers/00000001.json").write_bytes(content)
    with pytest.raises(RegistryError) as caught:
        ArtifactStore.open(tmp_path).read_pointer()
    assert f"{tmp_path}: pointers/00000001.json: no pointer that this FARM reads: {problem}" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"split": {"version": B, "share": 1.0, "salt": "s"}},
        {"split": {"version": B, "share": 0.0, "salt": "s"}},
        {"split": {"version": B, "share": 0.5, "salt": ""}},
        {"shadow": {"version": B, "share": 1.5}},
        {"shadow": {"version": B, "share": float("nan")}},
        {"previous": {"number": 0, "model": A}},
        {"number": 0},
    ],
)
def test_shares_and_numbers_have_bounds(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        pointer(**fields)


def test_an_activated_version_serves_with_its_calibration(store: ArtifactStore, versions: list[str]) -> None:
    made = store.activate(versions[1], by="me")
    assert store.read_pointer() == made
    calibration = Calibration.load(store.fetch(versions[1]) / CALIBRATION, VIEW.tasks)
    assert (made.number, made.model, made.calibration, made.by) == (1, versions[1], calibration.hash, "me")
    assert made.formula is made.previous is made.split is made.shadow is None
    assert {one.version: one.marks for one in store.list()}[versions[1]] == ("active",)


def test_to_activate_the_same_again_changes_nothing(store: ArtifactStore, versions: list[str]) -> None:
    store.activate(versions[0])
    second = store.activate(versions[1])
    assert store.activate(versions[1]) == second
    assert second.previous == Earlier(number=1, model=versions[0])


def test_rollbacks_go_further_back_each_time(store: ArtifactStore, versions: list[str]) -> None:
    formula = Formula(version="f", tasks={"ctr": Term(weight=2)})
    store.activate(versions[0], formula)
    store.activate(versions[1], None)
    store.activate(versions[2])
    back = store.rollback(by="watch")
    assert (back.number, back.model, back.formula, back.by) == (4, versions[1], None, "watch")
    assert back.previous == Earlier(number=1, model=versions[0])
    back = store.rollback()
    assert (back.number, back.model, back.formula, back.previous) == (5, versions[0], formula, None)
    assert store.read_pointer() == back
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        store.rollback()


def test_of_two_rollbacks_at_once_one_happens(store: ArtifactStore, versions: list[str]) -> None:
    for version in versions:
        store.activate(version)
    store.rollback(expected_number=3)
    with pytest.raises(PointerConflictError, match="expected pointer 3, there is 4 now"):
        store.rollback(expected_number=3)
    now = store.read_pointer()
    assert now is not None
    assert now.model == versions[1]


def test_a_rollback_undoes_a_split_and_stops_a_shadow(store: ArtifactStore, versions: list[str]) -> None:
    shadow, split = Shadow(version=versions[1], share=0.1), Split(version=versions[2], share=0.5, salt="s")
    store.activate(versions[0])
    store.activate(versions[0], split=split)
    shadowed = store.activate(versions[0], split=split, shadow=shadow)
    assert shadowed.previous == Earlier(number=1, model=versions[0])  # a shadow answers nobody
    marks = {one.version: one.marks for one in store.list()}
    assert marks == {versions[0]: ("active", "previous"), versions[1]: ("shadow",), versions[2]: ("split",)}
    store.activate(versions[1])
    back = store.rollback()
    assert (back.model, back.split, back.shadow) == (versions[0], split, None)
    back = store.rollback()
    assert (back.model, back.split, back.previous) == (versions[0], None, None)


def test_a_formula_is_kept_until_another_is_given(store: ArtifactStore, versions: list[str]) -> None:
    formula = Formula(version="f", tasks={"ctr": Term(weight=2)})
    store.activate(versions[0], formula)
    assert store.activate(versions[1]).formula == formula
    assert store.activate(versions[1], None).formula is None


def test_a_formula_of_another_calibration_is_refused(store: ArtifactStore, versions: list[str]) -> None:
    bound = Formula(calibration=store.propose(versions[0]).calibration)
    assert store.activate(versions[0], bound).formula == bound
    for refused in (
        lambda: store.activate(versions[1]),
        lambda: store.activate(versions[0], split=Split(version=versions[1], share=0.5, salt="s")),
        lambda: store.activate(versions[0], shadow=Shadow(version=versions[1], share=0.5)),
    ):
        with pytest.raises(
            RegistryError, match=r"formula\.calibration: made for .*give a formula that was made for it"
        ):
            refused()
    assert store.activate(versions[2]).model == versions[2]  # its calibration is the same


def test_a_formula_of_other_tasks_is_refused(store: ArtifactStore, versions: list[str]) -> None:
    with pytest.raises(RegistryError, match=r"formula\.tasks\.joy: no task of the model"):
        store.activate(versions[0], Formula(tasks={"joy": Term()}))
    assert store.read_pointer() is None


def test_a_spoilt_version_is_neither_activated_nor_returned_to(store: ArtifactStore, versions: list[str]) -> None:
    store.activate(versions[0])
    second = store.activate(versions[1])
    for version in (versions[0], versions[2]):
        flip(store.fetch(version) / TABLES)
    for refused in (lambda: store.activate(versions[2]), store.rollback):
        with pytest.raises(ArtifactError, match=r"tables\.data: its sha256"):
            refused()
    assert store.read_pointer() == second


def test_a_remote_calibration_is_verified_before_it_serves(tmp_path: Path) -> None:
    store = opener("memory", tmp_path)()
    version = store.push(make_artifact(tmp_path).path)
    path = f"{store.name.removeprefix('memory:/')}/models/{version}/{CALIBRATION}"
    system = fsspec.filesystem("memory")
    content = system.cat_file(path)
    system.pipe_file(path, content.replace(b"0.5", b"0.6"))
    with pytest.raises(ArtifactError, match=r"calibration\.json: its sha256"):
        store.activate(version)
