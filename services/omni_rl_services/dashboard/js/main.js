// The page: who is asking, which run, which view; loads what is in view, and loads it again when something happened.

import { CompareView } from "./views/compare.js";
import { ALL_RUNS, VIEWS, go, link, place } from "./place.js";
import { JobsView } from "./views/jobs.js";
import { RunPicker } from "./views/runpicker.js";
import { RunsView } from "./views/runs.js";
import { SyncsView } from "./views/syncs.js";
import { TimelineView } from "./views/timeline.js";
import { WhatView } from "./views/what.js";
import { WhereView } from "./views/where.js";
import { WhyView } from "./views/why.js";
import { NOT_THERE, NO_RUN, disconnected, inTitle, standing, standingOfAll } from "./standing.js";
import { empty, failure, h } from "./dom.js";
import { follow } from "./events.js";
import { get, namedRun, post, runOfIncident, session } from "./api.js";
import { head, lookAtHead, stamp } from "./views/head.js";
import { keyboard, login, logoutButton } from "./shell.js";
import { shorten } from "./format.js";
import { renew } from "./renew.js";

const KINDS = { [ALL_RUNS]: RunsView, timeline: TimelineView, where: WhereView, what: WhatView, why: WhyView, syncs: SyncsView, jobs: JobsView, compare: CompareView };
const REST_MS = 250; // between two loads that events ask for: a burst of steps is one load, and the first is at once
const AGAIN_MS = 15_000; // an actor's state changes without an event

const WIDE = ["run", "incident"]; // kinds of events that are told of on every view
const PATIENCE_MS = 20_000; // a coordinator that hangs answers nothing, and its stream says nothing either

const main = document.getElementById("main");
const live = document.getElementById("live");
const picker = new RunPicker();
let state = null;
let run = null;
let stands = NO_RUN;
let shown = { name: null, view: null };
let loading = null;
let hung = null;

async function load() {
  loading?.abort();
  const { signal } = (loading = new AbortController());
  hung ??= setTimeout(() => connection("lost"), PATIENCE_MS);
  try {
    const everything = place().view === ALL_RUNS;
    const { run: named, incident } = place();
    const name = named ?? (incident && !everything ? await runOfIncident(incident, signal) : null);
    const one = name && !everything ? namedRun(name, signal) : null;
    const [known, found, newest] = await Promise.all([get("/v1/state", {}, signal), one, name || everything ? null : get("/v1/runs", { limit: 1 }, signal)]);
    answered();
    [state, run] = [known, everything ? null : name ? found : (newest[0] ?? null)];
    stands = everything ? standingOfAll(state.needs) : run ? standing(run, state.gate) : name ? NOT_THERE : NO_RUN;
    picker.show(run?.run);
    document.title = inTitle(stands, everything ? null : (run?.run ?? name));
    const box = document.getElementById("head");
    main.classList.toggle("early", !box.children.length);
    const top = lookAtHead(run, signal).then((more) => { if (!signal.aborted) head(box, state, run, stands, more); }).finally(() => main.classList.remove("early"));
    await Promise.all([top, name && !run && !everything ? missing(name) : view(signal)]);
    performance.mark("loaded");
  } catch (error) {
    if (signal.aborted || error.name === "AbortError" || error.status === 401) return; // a newer load tells how things are
    if (error.status === 0 && shown.view) return connection("lost"); // what is on screen stays
    destroy();
    main.replaceChildren(failure(error));
  }
}

function answered() {
  clearTimeout(hung);
  hung = null;
  if (live.dataset.state === "lost") connection("live");
}

function missing(name) {
  destroy();
  tabs(null);
  main.replaceChildren(h("section", { className: "panel", role: "alert" }, empty(`There is no run ${shorten(name, 80)}`, "A link may misspell it, or be of another coordinator."), h("p", { className: "empty" }, h("a", { href: "#" }, "All runs of this coordinator"))));
}

async function view(signal) {
  const name = place().view;
  if (shown.name !== name) {
    destroy();
    const box = h("div", { style: { display: "contents" } });
    main.replaceChildren(box);
    shown = { name, view: new KINDS[name](box) };
  }
  tabs(name);
  await shown.view.load(run, signal, state);
}

function destroy() {
  shown.view?.destroy?.();
  shown = { name: null, view: null };
}

function tabs(name) {
  const tab = (href, one, text, key) => h("a", { href, "aria-current": one === name ? "page" : null, title: `key ${key}` }, text);
  renew(document.getElementById("tabs"), tab("#", ALL_RUNS, "All runs", "h"), ...VIEWS.map((one, index) => tab(link({ view: one }), one, one[0].toUpperCase() + one.slice(1), index + 1)));
}

const soon = throttled(load);

/** What the page knows is as old as its connection: once that is lost, nothing on it is said to be so now. */
function connection(status) {
  if (live.dataset.state === status) return;
  live.dataset.state = document.body.dataset.live = status;
  live.textContent = status === "live" ? "live" : "connection lost, trying again";
  if (status === "live") return soon();
  const gone = disconnected(stands);
  stamp(gone);
  document.title = inTitle(gone, run?.run ?? null);
}

/** At once the first time, then at most every REST_MS. */
function throttled(action) {
  let last = 0;
  let timer = null;
  return () => {
    if (timer) return;
    timer = setTimeout(() => { timer = null; last = performance.now(); action(); }, Math.max(0, REST_MS - (performance.now() - last)));
  };
}

async function start() {
  const who = await session();
  if (who === null) {
    login(main, async (token) => { await post("/v1/session", { token }); location.reload(); });
    return;
  }
  if (!who.open) document.getElementById("theme").before(logoutButton(who.name));
  addEventListener("hashchange", load);
  addEventListener("stale", load);
  addEventListener("logged-out", () => location.reload(), { once: true });
  keyboard({ redraw: () => shown.view?.redraw?.(), run: () => run, load });
  follow((event) => { if (event.run === null || event.run === run?.run || place().view === ALL_RUNS || WIDE.includes(event.kind)) soon(); }, connection);
  setInterval(soon, AGAIN_MS);
  await load();
}

start().catch((error) => main.replaceChildren(failure(error)));
