"""Reads server-sent events line by line (WHATWG HTML, "Server-sent events")."""

from omni_rl.api.events import EventAnswer


class EventReader:
    """Puts events together from the lines of a stream. `last` is the number of the last event seen, after which a lost
    stream is taken up again."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self._data: list[str] = []

    def begin(self) -> None:
        """Begin a new connection: what the last one left of an event is discarded."""
        self._data.clear()

    def feed(self, line: str) -> EventAnswer | None:
        """Return an event, where this line ends one; None elsewhere."""
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
            return None
        if line or not self._data:
            return None
        event = EventAnswer.model_validate_json("\n".join(self._data))
        self._data.clear()
        self.last = event.id
        return event
