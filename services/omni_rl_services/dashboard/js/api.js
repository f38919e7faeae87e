// The REST API. Errors are the coordinator's problem+json, as exceptions.

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `the coordinator answered ${status}`);
    this.status = status;
    this.code = body.code ?? "";
    this.title = body.title ?? "The coordinator refused";
  }
}

export async function call(method, path, { query = {}, body, signal, headers = {}, counted = false } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined) url.searchParams.append(name, one);
  }
  const sent = body === undefined ? {} : { body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
  let response;
  try {
    response = await fetch(url, { method, signal, headers, credentials: "same-origin", ...sent });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The coordinator does not answer", detail: "Is it running? This page goes on by itself when it is back." });
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    if (response.status === 401) dispatchEvent(new Event("logged-out"));
    throw new Problem(response.status, problem);
  }
  if (response.status === 204) return null;
  const content = await (response.headers.get("Content-Type")?.includes("json") ? response.json() : response.text());
  return counted ? { rows: content, total: Number(response.headers.get("Total-Count")) } : content;
}

export const get = (path, query, signal) => call("GET", path, { query, signal });
/** `{ rows, total }`: one page, and how many there are on all pages. */
export const getPage = (path, query, signal) => call("GET", path, { query, signal, counted: true });
/** A refusal as a value, for what is shown in its place; one who left is none. */
export const told = (error) => { if (error.name === "AbortError" || error.status === 0) throw error; return error; };
export const post = (path, body = {}, headers = {}) => call("POST", path, { body, headers });
export const segment = encodeURIComponent;
const absent = (error) => { if (error.status === 404 || error.status === 422) return null; throw error; };
/** The run of a name and no other in its place; null where there is none, or none can have that name. */
export const namedRun = (name, signal) => get(`/v1/runs/${segment(name)}`, {}, signal).catch(absent);
/** The name of an incident's run; null where it is of none, or where there is no such incident. */
export const runOfIncident = async (incident, signal) => (await get(`/v1/incidents/${segment(incident)}`, {}, signal).catch(absent))?.run ?? null;

/** For what must happen once, however often it is sent. `crypto.randomUUID` is not there where a page came without TLS. */
export const once = () => ({ "Idempotency-Key": Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("") });

const ORDER = ["read", "sync", "admin"];
let scope = "read";
export const may = (needed) => ORDER.indexOf(scope) >= ORDER.indexOf(needed);

/** Who is asking; null where a token is needed first. */
export async function session() {
  try {
    const found = await get("/v1/session");
    scope = found.scope;
    return found;
  } catch (error) {
    if (error.status === 401) return null;
    throw error;
  }
}
