"""What the keeper makes of pointers and of faults, over a fleet whose processes are this test's."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from model.artifact.formula import Formula
from model.artifact.manifest import MANIFEST
from model.registry.errors import PointerConflictError, RegistryError
from model.registry.pointer import Pointer
from model.registry.store import ArtifactStore
from service.lifecycle import keeper as keeping
from service.lifecycle.fleet import ChangeError, Fleet
from service.lifecycle.keeper import Keeper, PublishedError
from service.lifecycle.places import Place
from service.lifecycle.pulses import Outcomes, Pulse
from service.lifecycle.settings import LifecycleSettings
from service.tasks import Cancel, LocalModel, Order, Prepare, Prepared, Switch, Switched, Told

WAIT_S = 10.0


class Process:
    """One in a place, that does what it is told but for what `refuse` says; and the thread that supervises it."""

    def __init__(self, place: Place) -> None:
        self.place, self.refuse, self.told = place, "", list[Told]()
        self.on_prepare: Callable[[], None] = lambda: None  # once
        place.link, self.link = Pipe()
        place.ready_at = 1.0

    def answer(self) -> None:
        self.told.append(told := self.link.recv())
        match told:
            case Prepare(order):
                on_prepare, self.on_prepare = self.on_prepare, lambda: None
                on_prepare()
                self.link.send(Prepared(order.number, self.refuse or None))
            case Switch(number):
                self.link.send(Switched(number, "new"))


class Supervisor:
    """Steps when it is woken."""

    def __init__(self, order: Order) -> None:
        self.places = [Place("worker", number) for number in range(2)]
        self.processes = [Process(place) for place in self.places]
        self.woken = threading.Event()
        self.fleet = Fleet(order, self.places, self.woken.set)
        self.ended = False
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while self.woken.wait() and not self.ended:
            self.woken.clear()
            self.fleet.step()
            while any(process.link.poll() for process in self.processes):
                for process in self.processes:
                    if process.link.poll():
                        process.answer()
                        self._hear(process.place)
                self.fleet.step()

    def _hear(self, place: Place) -> None:
        assert isinstance(place.link, Connection)
        while place.link.poll(0.02):
            heard = place.hear()
            assert isinstance(heard, Prepared | Switched)
            self.fleet.heard(place, heard)


@pytest.fixture
def store(artifact: Path, tmp_path: Path) -> ArtifactStore:
    opened = ArtifactStore.open(tmp_path / "models")
    opened.activate(opened.push(artifact))
    return opened


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    running = Supervisor(Order(LocalModel("old", Path("old"))))
    running.thread.start()
    yield running
    running.ended = True
    running.woken.set()
    running.thread.join()


@pytest.fixture
def keeper(store: ArtifactStore, supervisor: Supervisor) -> Iterator[Keeper]:
    settings = LifecycleSettings(models_poll_s=0.02, prepare_within_s=WAIT_S, switch_within_s=WAIT_S)
    made = Keeper(store, settings, None)
    made.first()
    made.attach(supervisor.fleet, list)
    made.start()
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def another(store: ArtifactStore, weight: float) -> None:
    """Another pointer to the one model."""
    pointer = store.read_pointer()
    assert pointer is not None
    store.activate(pointer.model, formula=Formula(version=f"w{weight}"))


def test_a_store_without_a_pointer_is_no_start(tmp_path: Path) -> None:
    keeper = Keeper(ArtifactStore.open(tmp_path), LifecycleSettings(), None)
    with pytest.raises(ValueError, match="no model is active; `farm models activate` one"):
        keeper.first()


def test_another_pointer_is_followed_in_two_steps(keeper: Keeper, store: ArtifactStore, supervisor: Supervisor) -> None:
    another(store, 2.0)
    wait_until(lambda: keeper.pointer.number == 2)
    for process in supervisor.processes:
        assert [type(told) for told in process.told] == [Prepare, Switch]
    assert supervisor.fleet.order.formula.version == "w2.0"
    assert vars(keeper.tally) == {"switched": 1, "refused": 0, "rolled_back": 0}
    assert keeper.is_watching


def test_what_one_process_refuses_none_serves(keeper: Keeper, store: ArtifactStore, supervisor: Supervisor) -> None:
    supervisor.processes[1].refuse = "no memory"
    another(store, 2.0)
    wait_until(lambda: keeper.refusal is not None)
    assert keeper.refusal is not None
    assert (keeper.refusal.pointer.number, keeper.refusal.reason) == (2, "no memory")
    wait_until(lambda: all(process.told[-1:] == [Cancel(1)] for process in supervisor.processes))
    assert (keeper.pointer.number, supervisor.fleet.order.model.version) == (1, "old")
    supervisor.processes[1].refuse = ""
    another(store, 3.0)  # another pointer is tried at once
    wait_until(lambda: keeper.pointer.number == 3)
    assert keeper.refusal is None


def test_faults_within_the_watch_window_roll_it_back(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor
) -> None:
    keeper.attach(supervisor.fleet, lambda: pulses(Outcomes(1, 300, 30), Outcomes(1, 100, 0)))  # of the first change
    another(store, 2.0)
    wait_until(lambda: keeper.tally.rolled_back == 1)
    pointer = store.read_pointer()
    assert pointer is not None
    assert (pointer.number, pointer.formula) == (3, None)
    assert pointer.by == "farm serve, by itself: 30 of 400 requests failed, at most 0.02 of them may"
    assert keeper.pointer == pointer


def pulses(*workers: Outcomes) -> list[Pulse]:
    return [Pulse(outcomes=worker) for worker in workers]


@pytest.mark.parametrize("trouble", ["process", "store"])
@pytest.mark.parametrize("watch_s", [60.0, 0.2])
def test_a_rollback_that_fails_is_tried_until_it_is_done(
    store: ArtifactStore, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, trouble: str, watch_s: float
) -> None:
    """Longer than the watch lasts, too: what must go has been seen."""
    monkeypatch.setattr(keeping, "_GO_AGAIN_S", 0.05)
    settings = LifecycleSettings(models_poll_s=0.02, prepare_within_s=WAIT_S, switch_within_s=WAIT_S, watch_s=watch_s)
    keeper = Keeper(store, settings, None)
    keeper.first()
    bad: list[Pulse] = []
    keeper.attach(supervisor.fleet, lambda: bad)
    another(store, 2.0)
    keeper.start()
    try:
        wait_until(lambda: keeper.pointer.number == 2)
        tries: list[str] = []
        propose = store.propose_rollback

        def failing(by: str, number: int) -> Pointer:
            tries.append(by)
            if trouble == "store" and len(tries) < 10:
                raise OSError("connection reset")
            if trouble == "process":
                supervisor.processes[0].refuse = "no memory" if len(tries) < 10 else ""
            return propose(by, number)

        monkeypatch.setattr(store, "propose_rollback", failing)
        bad[:] = pulses(Outcomes(supervisor.fleet.order.number, 300, 300))
        wait_until(lambda: keeper.tally.rolled_back == 1)
        assert len(tries) == 10
        assert (keeper.pointer.number, keeper.pointer.formula) == (3, None)
        wait_until(lambda: not keeper.is_watching or watch_s > 1)
        assert len(tries) == 10
    finally:
        keeper.close()


def test_what_is_activated_while_a_rollback_fails_is_followed(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what must go is no longer what serves."""
    monkeypatch.setattr(keeping, "_GO_AGAIN_S", 0.05)
    another(store, 2.0)
    wait_until(lambda: keeper.pointer.number == 2)
    tries: list[str] = []

    def failing(by: str, number: int) -> Pointer:
        tries.append(by)
        raise OSError("connection reset")

    monkeypatch.setattr(store, "propose_rollback", failing)
    keeper.attach(supervisor.fleet, lambda: pulses(Outcomes(1, 300, 300)))  # of the first change
    wait_until(lambda: len(tries) > 1)
    another(store, 3.0)
    wait_until(lambda: keeper.pointer.number == 3)
    before = len(tries)
    time.sleep(0.2)
    assert len(tries) == before
    assert keeper.tally.rolled_back == 0


def test_a_process_lost_while_the_pointer_is_replaced_holds_up_nothing(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor, artifact: Path, tmp_path: Path
) -> None:
    """All prepare once more, and switch."""
    version = store.push(dated(artifact, tmp_path / "dated"))
    lose_one_at_the_pointer(store, supervisor)
    keeper.activate(version, "test")
    assert (keeper.pointer.model, keeper.pointer.number, supervisor.fleet.order.model.version) == (version, 2, version)
    assert vars(keeper.tally) == {"switched": 1, "refused": 0, "rolled_back": 0}


def test_what_is_published_and_does_not_serve_is_said_so_and_followed(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor, artifact: Path, tmp_path: Path
) -> None:
    version = store.push(dated(artifact, tmp_path / "dated"))
    lose_one_at_the_pointer(store, supervisor)
    supervisor.processes[1].on_prepare = lambda: refuse_the_next(supervisor.processes[1])
    with pytest.raises(PublishedError, match="no memory"):
        keeper.activate(version, "test")
    pointer = store.read_pointer()
    assert pointer is not None
    assert pointer.model == version
    supervisor.processes[1].refuse = ""
    wait_until(lambda: keeper.pointer == pointer)


def refuse_the_next(process: Process) -> None:
    """After this one."""
    process.on_prepare = lambda: setattr(process, "refuse", "no memory")


def lose_one_at_the_pointer(store: ArtifactStore, supervisor: Supervisor) -> None:
    """A process ends when all have prepared and none has switched, and is there again at once."""
    replace_pointer, fleet, place = store.replace_pointer, supervisor.fleet, supervisor.places[0]

    def replacing(pointer: Pointer, expected: int) -> None:
        replace_pointer(pointer, expected)
        fleet._do(lambda: fleet.ended(place, "a process (worker) ended with -9"), ("failed",), WAIT_S)

    store.replace_pointer = replacing  # type: ignore[method-assign]


def test_what_nothing_was_before_cannot_be_rolled_back(keeper: Keeper) -> None:
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        keeper.rollback("test")
    assert keeper.pointer.number == 1


def test_a_rollback_that_is_refused_leaves_the_pointer(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor
) -> None:
    another(store, 2.0)
    wait_until(lambda: keeper.pointer.number == 2)
    supervisor.processes[1].refuse = "no memory"
    with pytest.raises(ChangeError, match="no memory"):
        keeper.rollback("test")
    pointer = store.read_pointer()
    assert pointer is not None
    assert pointer.number == 2
    supervisor.processes[1].refuse = ""
    keeper.rollback("test")
    assert keeper.pointer.number == 3


def test_an_activation_that_another_instance_precedes_is_undone(
    keeper: Keeper, store: ArtifactStore, supervisor: Supervisor, artifact: Path, tmp_path: Path
) -> None:
    """And what the other has activated is followed."""
    version = store.push(dated(artifact, tmp_path / "dated"))
    supervisor.processes[0].on_prepare = lambda: another(store, 9.0)
    with pytest.raises(PointerConflictError):
        keeper.activate(version, "test")
    wait_until(lambda: keeper.pointer.number == 2)
    assert supervisor.fleet.order.formula.version == "w9.0"
    told = [Prepare, Cancel, Prepare, Switch]
    assert [[type(one) for one in process.told] for process in supervisor.processes] == [told, told]


def dated(artifact: Path, target: Path) -> Path:
    """The same model, made on another day: another version."""
    shutil.copytree(artifact, target)
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps({**manifest, "created": "2026-01-01T00:00:00Z"}))
    return target


def test_nothing_is_changed_while_the_service_stops(supervisor: Supervisor) -> None:
    supervisor.fleet.close()
    with pytest.raises(ChangeError, match="being stopped"):
        supervisor.fleet.prepare(Order(LocalModel("new", Path("new"))), WAIT_S)
