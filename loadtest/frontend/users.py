"""Locust's users: viewers, each of whom waits for the answer (closed loop), or arrivals, which do not (open loop)."""

from __future__ import annotations

import time
from typing import ClassVar

from locust import User, constant, task
from locust.exception import StopUser

from loadtest.frontend.course import Course


class FrontEndUser(User):
    """Of a course."""

    abstract = True
    wait_time = constant(0)
    course: ClassVar[Course]

    def on_start(self) -> None:
        self._front = self.course.front_end(self.host, self.environment)


class ViewerBase(FrontEndUser):
    """One person after another at one screen."""

    abstract = True

    @task
    def visit(self) -> None:
        if self._front.stopping:
            raise StopUser
        visit = self._front.crowd.visit()
        while self._front.watch(visit, self._front.rank(visit, time.perf_counter())):
            pass


class ArrivalsBase(FrontEndUser):
    """All arrivals of one process: Locust has one such user in each."""

    abstract = True

    @task
    def arrive(self) -> None:
        self.course.open_loop(self._front, self.environment).run()
        raise StopUser
