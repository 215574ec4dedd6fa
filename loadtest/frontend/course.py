"""The course of a load in Locust: a front end in each process that sends, one verdict for all."""

from __future__ import annotations

import json
import time
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from locust.env import Environment
from locust.event import Events
from locust.exception import StopUser
from locust.runners import MasterRunner, Runner, WorkerRunner

from loadtest.frontend.front_end import FrontEnd
from loadtest.frontend.objectives import Verdict, judge
from loadtest.frontend.open_loop import OpenLoop
from loadtest.frontend.profile import arrivals, counts_of, stages_of
from loadtest.frontend.settings import LoadSettings
from loadtest.frontend.tally import CpuShare, Tally
from service.client import RankError

_FINISH, _TALLY = "farm_finish", "farm_tally"  # messages to the processes that send, and from them
_GRACE_S = 5.0  # for tallies, beyond the patience for answers
_POLL_S = 0.05


class NotRightError(RuntimeError):
    """What Locust shows of a request that was refused, failed, or was answered wrongly."""


class Course:
    """Of one Locust process."""

    _front: FrontEnd | None
    _loop: OpenLoop | None
    _heard: int  # processes whose tallies are in

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self._making = BoundedSemaphore(1)
        self._begin()

    def listen(self, events: Events) -> None:
        """To Locust."""
        events.init.add_listener(self._on_init)
        events.test_start.add_listener(self._on_start)
        events.test_stopping.add_listener(self._on_stopping)
        events.quitting.add_listener(self._on_quitting)

    def front_end(self, host: str | None, environment: Environment) -> FrontEnd:
        """That of this process, made for the first user that asks.  StopUser when there is no service."""
        with self._making:
            if self._front is None and not self.tally.problems:
                try:
                    self._front = self._make(host, environment)
                except (RankError, ValueError) as error:
                    self.tally.problems.append(str(error))
                    gevent.spawn(self._give_up, environment.runner)
        if self._front is None:
            raise StopUser
        return self._front

    def open_loop(self, front: FrontEnd, environment: Environment) -> OpenLoop:
        """This process's share of the arrivals."""
        settings, number, of = self.settings, *_place(environment)
        assert settings.rate is not None
        stages = stages_of(_shape(settings), settings.seconds)
        offsets = arrivals(stages, settings.rate, counts_of(settings.arrivals, number, of, front.rng))
        self._loop = OpenLoop(front, offsets)
        return self._loop

    def _begin(self) -> None:
        self.tally, self._cpu = Tally(), CpuShare()
        self._front, self._loop = None, None
        self._begun, self._finished, self._heard = False, False, 0

    def _make(self, host: str | None, environment: Environment) -> FrontEnd:
        if not host:
            raise ValueError("--host: must be the URL of the service, such as http://127.0.0.1:8080")

        def told(name: str, ms: float, size: int, fault: str | None) -> None:
            environment.events.request.fire(
                request_type="POST",
                name=name,
                response_time=ms,
                response_length=size,
                exception=NotRightError(fault) if fault else None,
                context={},
                start_time=time.time() - ms / 1000,
                url=host,
                response=None,
            )

        return FrontEnd(host, self.settings, self.tally, told, _place(environment)[0])

    def _give_up(self, runner: Runner) -> None:
        """Where one process sends; of several, the one that started them hears of it at the end."""
        if not isinstance(runner, WorkerRunner):
            runner.quit()

    def _on_init(self, runner: Runner, **_: Any) -> None:
        if isinstance(runner, MasterRunner):
            runner.register_message(_TALLY, self._on_tally)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(_FINISH, self._on_finish, concurrent=True)

    def _on_start(self, **_: Any) -> None:
        self._begin()
        self._begun = True

    def _on_stopping(self, environment: Environment, **_: Any) -> None:
        if isinstance(environment.runner, MasterRunner):
            self._gather(environment.runner)
        else:
            self._finish()

    def _gather(self, master: MasterRunner) -> None:
        """The tallies of all processes."""
        wanted = master.worker_count
        master.send_message(_FINISH)
        gives_up = time.monotonic() + self.settings.patience_s + _GRACE_S
        while self._heard < wanted and time.monotonic() < gives_up:
            gevent.sleep(_POLL_S)
        if self._heard < wanted:
            self.tally.problems.append(f"{wanted - self._heard} of {wanted} processes did not tell what they counted")

    def _on_tally(self, environment: Environment, msg: Any, **_: Any) -> None:
        self.tally.add(msg.data)
        self._heard += 1

    def _on_finish(self, environment: Environment, **_: Any) -> None:
        self._finish()
        assert environment.runner is not None
        environment.runner.send_message(_TALLY, vars(self.tally))

    def _finish(self) -> None:
        if self._front is None or self._finished:
            return
        self._finished = self._front.stopping = True
        if self._loop is not None:
            self._loop.end()
        self._front.wait()
        if self._loop is not None:
            self._loop.kill()
        self._front.close()
        self.tally.cpu_shares.append(self._cpu.value())

    def _on_quitting(self, environment: Environment, **_: Any) -> None:
        if isinstance(environment.runner, WorkerRunner) or not self._begun:
            return
        assert environment.runner is not None
        failed = [row["msg"] for row in environment.runner.exceptions.values()]
        self.tally.problems += [f"the load itself: {message}" for message in failed]
        verdict = judge(self.tally, self.settings)
        self._publish(verdict)
        environment.process_exit_code = 0 if verdict.met else 1

    def _publish(self, verdict: Verdict) -> None:
        print("\n".join(verdict.lines()), flush=True)
        if self.settings.report is not None:
            found = {"settings": self.settings.model_dump(mode="json"), **verdict.as_json()}
            self.settings.report.parent.mkdir(parents=True, exist_ok=True)
            self.settings.report.write_text(json.dumps(found, indent=1) + "\n")


def _place(environment: Environment) -> tuple[int, int]:
    """Number of this process, and how many send."""
    runner = environment.runner
    if not isinstance(runner, WorkerRunner):
        return 0, 1
    assert environment.parsed_options is not None
    return runner.worker_index, environment.parsed_options.expect_workers


def _shape(settings: LoadSettings) -> str:
    return settings.shape if settings.shape not in ("", "choose") else "constant"
