"""Deals requests over all replicas of the rollout policy; the requests of a replica that dies, or is stopped, are dealt
anew over the others."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from omni_rl.errors import EngineDeadError, QuarantinedError, ReplicaStoppedError

ASKED = 3
"""The most times that one request is sent: the replicas that died may have died of that request, and the next would
too."""
LOST = (EngineDeadError, QuarantinedError, ReplicaStoppedError)
"""The errors of a replica that answers nothing until it is replaced or woken up. Its requests do not wait for that
while other replicas live."""


class UsableReplica(Protocol):
    """A handle on one engine."""

    @property
    def usable(self) -> bool:
        """Whether the engine can be used: False once it is known to be dead."""


R = TypeVar("R", bound=UsableReplica)
B = TypeVar("B")
Ask = Callable[[R, list[int]], Sequence[B]]
"""Sends a replica the requests at the given places (indices) of a batch; returns their answers in the same order."""


def shares(places: Sequence[int], count: int, alike: Sequence[Hashable]) -> list[list[int]]:
    """Deal `places` to `count` replicas and return the places of each; each gets as many as any other, give or take
    one.

    `alike[place]` is a key of the request at that place. Requests with equal keys stay together as far as equal shares
    allow, because their media are then encoded once. Different ones go to the replicas in turn, because neighbours in a
    batch tend to cost the same.
    """
    least, over = divmod(len(places), count)
    dealt: list[list[int]] = [[] for _ in range(count)]
    groups: dict[Hashable, list[int]] = {}
    for place in places:
        groups.setdefault(alike[place], []).append(place)
    for group in groups.values():
        left = group
        while left:
            # Where the fewest are is the most room: a group that does not fit there whole is split.
            number = min(range(count), key=lambda replica: len(dealt[replica]))
            room = least + (number < over) - len(dealt[number])
            dealt[number] += left[:room]
            left = left[room:]
    return [sorted(share) for share in dealt]


@dataclass
class Deal(Generic[R, B]):
    """One batch while it is answered. `replicas` returns the present replicas; `revive` starts successors of lost ones,
    and is called when no replica is left. `ask` sends requests to a replica; `alike` has a key for each request
    (`shares`)."""

    replicas: Callable[[], Sequence[R]]
    revive: Callable[[], object]
    ask: Ask[R, B]
    alike: Sequence[Hashable]
    _answers: dict[int, B] = field(default_factory=dict)
    _running: dict[Future[Sequence[B]], tuple[R, list[int], int]] = field(default_factory=dict)
    _lost: list[R] = field(default_factory=list)

    def run(self) -> list[B]:
        """Return the answers by place; each request is sent until one replica answers it, and has one answer.

        Raises:
            EngineDeadError, QuarantinedError, ReplicaStoppedError: a request was sent `ASKED` times, and each time its
                replica was lost.
            Any other error that a replica raised, once the other replicas have ended what they had begun.
            Any error that `revive` raised, at once.
        """
        failure: BaseException | None = None
        # Its threads wait for replicas: an interrupted caller does not wait for them, and closes the replicas.
        threads = ThreadPoolExecutor(thread_name_prefix="replica", max_workers=max(1, len(self.alike)))
        try:
            self._hand_out(threads, range(len(self.alike)), 1)
            while self._running:
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                anew: list[tuple[list[int], int]] = []
                for future in done:
                    replica, places, turn = self._running.pop(future)
                    error = future.exception()
                    if error is None:
                        self._answers |= zip(places, future.result(), strict=True)
                    elif isinstance(error, LOST) and turn < ASKED:
                        self._lost.append(replica)
                        anew.append((places, turn + 1))
                    else:
                        failure = failure or error
                if failure is None:
                    for places, turn in anew:
                        self._hand_out(threads, places, turn)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure
        return [self._answers[place] for place in range(len(self.alike))]

    def _hand_out(self, threads: ThreadPoolExecutor, places: Sequence[int], turn: int) -> None:
        if not places:
            return
        living = [replica for replica in self.replicas() if replica.usable and replica not in self._lost]
        if not living:
            self.revive()
            self._lost.clear()
            living = list(self.replicas())
        for replica, share in zip(living, shares(places, len(living), self.alike), strict=True):
            if share:
                self._running[threads.submit(self.ask, replica, share)] = replica, share, turn
