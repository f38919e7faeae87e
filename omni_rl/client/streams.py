"""Reads server-sent events line by line (WHATWG HTML, "Server-sent events")."""

from omni_rl.api.events import EventAnswer


class EventReader:
    """Puts events together from the lines of a stream. `last` is the number after which a lost stream is taken up
    again: of the last event seen, or that after which the stream said it begins."""

    def __init__(self, last: int | None) -> None:
        self.last = last
        self._number = last
        self._data: list[str] = []

    def begin(self) -> None:
        """Begin a new connection: what the last one left of a message is discarded."""
        self._number = self.last
        self._data.clear()

    def feed(self, line: str) -> EventAnswer | None:
        """Return an event, where this line ends one; None elsewhere."""
        if line.startswith("id:"):
            self._number = int(line.removeprefix("id:"))
        elif line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        if line:
            return None
        # A message without data is no event, but its number counts.
        self.last = self._number
        if not self._data:
            return None
        event = EventAnswer.model_validate_json("\n".join(self._data))
        self._data.clear()
        return event
