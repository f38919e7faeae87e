"""A value that is computed once for an object, when it is first asked for."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801 - a decorator, as functools.cached_property
    """A property that is computed once and stored in its object.

    It is what `functools.cached_property` is from Python 3.12 on. Before, `cached_property` has one lock for a class: a
    thread that computes the value of one object for a second keeps every other thread from the values of all other
    objects, the event loop's thread among them.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        if instance is None:
            return self
        # Once the value is among the object's own attributes, Python finds it there first.
        value: T = instance.__dict__.setdefault(self._name, self._compute(instance))
        return value
