"""The models that a process has loaded, by version: what serves, what served before, what is being prepared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

from service.lifecycle.quiet import quietly
from service.tasks import LocalModel, Order

ModelT = TypeVar("ModelT")


class Shelf(Generic[ModelT]):
    """For one event loop."""

    def __init__(
        self,
        open_model: Callable[[LocalModel], Awaitable[ModelT]],
        close_model: Callable[[ModelT], Awaitable[None]],
        first: Mapping[str, ModelT],
    ) -> None:
        """open_model: load, check, warm up;  first: what is loaded already."""
        self._open, self._close = open_model, close_model
        self._models = dict(first)

    def __getitem__(self, version: str) -> ModelT:
        return self._models[version]

    def versions(self) -> list[str]:
        return sorted(self._models)

    async def load(self, order: Order) -> None:
        """All that it names, or nothing more than before when one fails, with what `open_model` raises."""
        before = set(self._models)
        try:
            for version, model in order.models.items():
                if version not in self._models:
                    self._models[version] = await self._open(model)
        except Exception:
            await self.keep(before)
            raise

    async def keep(self, versions: Iterable[str]) -> None:
        """These and no others."""
        kept = set(versions)
        for version in [version for version in self._models if version not in kept]:
            left = [self._models.pop(version)]
            await self._close(left[0])
            await quietly(left.clear)  # to free what is large takes a while
