// The event stream. A browser comes back by itself with the last number it saw, and misses nothing; a stream that was
// refused outright is opened again here, after the same number.

const KINDS = ["step", "training", "activity", "severity", "gate", "pursuit", "run", "hold", "cluster", "sync", "sync_started", "sync_ended", "job", "check", "incident"];
const AGAIN_MS = 1500;

/** `heard(event)` for each event; `status("live" | "lost")`. */
export function follow(heard, status) {
  let last = null;
  let source = null;

  const open = () => {
    source?.close();
    source = new EventSource(last === null ? "/v1/events" : `/v1/events?after=${last}`);
    source.onopen = () => status("live");
    source.onerror = () => {
      status("lost");
      if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS);
    };
    for (const kind of KINDS) source.addEventListener(kind, take);
  };
  const take = (message) => {
    const event = JSON.parse(message.data);
    if (last !== null && event.id <= last) return;
    last = event.id;
    heard(event);
  };
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
}
