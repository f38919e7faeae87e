"""The list of the methods that send one call each; both clients have them of it."""

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from omni_rl.client import calls
from omni_rl.client.call import Call, sends

P = ParamSpec("P")
T = TypeVar("T")


class Waits(Protocol):
    """A client whose methods return the coordinator's answer."""

    def _send(self, call: Call[T]) -> T: ...


class Awaits(Protocol):
    """A client whose methods are awaited for the coordinator's answer."""

    def _send(self, call: Call[T]) -> Coroutine[None, None, T]: ...


class Route(Generic[P, T]):
    """A method of either client, which sends what `make` returns and shows the parameters and description of `make`."""

    def __init__(self, make: Callable[P, Call[T]]) -> None:
        def method(client: Any, /, *arguments: P.args, **options: P.kwargs) -> Any:
            return client._send(make(*arguments, **options))

        self._method = sends(method, make)

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Any]: ...
    @overload
    def __get__(self, client: Awaits, owner: type) -> Callable[P, Coroutine[None, None, T]]: ...
    @overload
    def __get__(self, client: Waits, owner: type) -> Callable[P, T]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        return self._method if client is None else self._method.__get__(client, owner)


class Routes:
    """The methods that both clients have."""

    whoami = Route(calls.whoami)
    ready = Route(calls.ready)
    state = Route(calls.state)
    pause = Route(calls.pause)
    resume = Route(calls.resume)
    create_run = Route(calls.create_run)
    runs = Route(calls.runs)
    attempts = Route(calls.attempts)
    incidents = Route(calls.incidents)
    incident = Route(calls.incident)
    acknowledge = Route(calls.acknowledge)
    note = Route(calls.note)
    end_incident = Route(calls.end_incident)
    end_run = Route(calls.end_run)
    run = Route(calls.run)
    put_part = Route(calls.put_part)
    seal = Route(calls.seal)
    add_training = Route(calls.add_training)
    put_update = Route(calls.put_update)
    announce_update = Route(calls.announce_update)
    updates = Route(calls.updates)
    steps = Route(calls.steps)
    timeline = Route(calls.timeline)
    step = Route(calls.step)
    sample = Route(calls.sample)
    put_media = Route(calls.put_media)
    media = Route(calls.media)
    sync = Route(calls.sync)
    syncs = Route(calls.syncs)
    sync_named = Route(calls.sync_named)
    check = Route(calls.check)
    checks = Route(calls.checks)
    check_numbered = Route(calls.check_numbered)
    submit = Route(calls.submit)
    jobs = Route(calls.jobs)
    job = Route(calls.job)
    stop_job = Route(calls.stop_job)
    logs = Route(calls.logs)
    event_page = Route(calls.event_page)
