// Where the reader is: all of it in the address, so that a link shows somebody else the same.

export const VIEWS = ["timeline", "where", "what", "why", "syncs", "jobs", "compare"]; // of a run, or of the cluster
export const ALL_RUNS = "runs"; // the first screen

export function place() {
  const found = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const usual = found.run ? "timeline" : found.incident ? "why" : ALL_RUNS;
  return { ...found, view: [ALL_RUNS, ...VIEWS].includes(found.view) ? found.view : usual };
}

/** The address of this place with changes; null takes a part out. */
export function link(changes) {
  const parameters = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") parameters.delete(name);
    else parameters.set(name, value);
  }
  return `#${parameters}`;
}

export function go(changes, { replace = false } = {}) {
  const target = link(changes);
  if (target === location.hash) return;
  if (replace) {
    history.replaceState(null, "", target);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = target;
}

/** The steps in view, or nulls for all. */
export function range() {
  const found = /^(\d+)-(\d+)$/.exec(place().x ?? "");
  return found ? [Number(found[1]), Number(found[2])] : [null, null];
}
