// The page: who is asking, which run, which view; loads what is in view, and loads it again when something happened.

import { CompareView } from "./views/compare.js";
import { JobsView } from "./views/jobs.js";
import { SyncsView } from "./views/syncs.js";
import { TimelineView } from "./views/timeline.js";
import { WhatView } from "./views/what.js";
import { WhereView } from "./views/where.js";
import { WhyView } from "./views/why.js";
import { VIEWS, go, link, place } from "./place.js";
import { NOT_THERE, NO_RUN, disconnected, inTitle, standing } from "./standing.js";
import { empty, failure, h } from "./dom.js";
import { follow } from "./events.js";
import { get, post, segment, session } from "./api.js";
import { head, lookAtHead, stamp } from "./views/head.js";
import { keyboard, login, logoutButton } from "./shell.js";
import { shorten } from "./format.js";
import { renew } from "./renew.js";

const KINDS = { timeline: TimelineView, where: WhereView, what: WhatView, why: WhyView, syncs: SyncsView, jobs: JobsView, compare: CompareView };
const REST_MS = 250; // between two loads that events ask for: a burst of steps is one load, and the first is at once
const AGAIN_MS = 15_000; // an actor's state changes without an event

const PATIENCE_MS = 20_000; // a coordinator that hangs answers nothing, and its stream says nothing either

const main = document.getElementById("main");
const live = document.getElementById("live");
let state = null;
let run = null;
let stands = NO_RUN;
let shown = { name: null, view: null };
let loading = null;
let hung = null;

/** The run that the address names, and no other in its place; null where there is none of that name. */
const named = (name, signal) => get(`/v1/runs/${segment(name)}`, {}, signal).catch((error) => { if (error.status === 404 || error.status === 422) return null; throw error; });

async function load() {
  loading?.abort();
  const { signal } = (loading = new AbortController());
  const { run: name } = place();
  hung ??= setTimeout(() => connection("lost"), PATIENCE_MS);
  try {
    const [known, found] = await Promise.all([get("/v1/state", {}, signal), name ? named(name, signal) : null]);
    answered();
    [state, run] = [known, name ? found : (known.runs[0] ?? null)];
    stands = run ? standing(run, state) : name ? NOT_THERE : NO_RUN;
    runPicker(name);
    const box = document.getElementById("head");
    main.classList.toggle("early", !box.children.length);
    const top = lookAtHead(run).then(({ latest, syncs }) => { if (!signal.aborted) head(box, state, run, stands, latest, syncs); }).finally(() => main.classList.remove("early"));
    await Promise.all([top, name && !run ? missing(name) : view(signal)]);
    performance.mark("loaded");
  } catch (error) {
    if (error.name === "AbortError" || error.status === 401) return;
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
  main.replaceChildren(h("section", { className: "panel", role: "alert" }, empty(`There is no run ${shorten(name, 80)}`, "A link may misspell it, or be of another coordinator. The runs that are here stand in the list above.")));
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
  await shown.view.load(run, signal, state.runs);
}

function destroy() {
  shown.view?.destroy?.();
  shown = { name: null, view: null };
}

function tabs(name) {
  renew(document.getElementById("tabs"), ...VIEWS.map((one, index) => h("a", { href: link({ view: one }), "aria-current": one === name ? "page" : null, title: `key ${index + 1}` }, one[0].toUpperCase() + one.slice(1))));
}

function runPicker(name) {
  const select = document.getElementById("run");
  const names = [...new Set([...state.runs.map((one) => one.run), run?.run])].filter(Boolean);
  if (names.join() !== [...select.options].map((option) => option.value).join()) select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  select.value = run?.run ?? "";
  document.title = inTitle(stands, run?.run ?? name);
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
  document.title = inTitle(gone, run?.run);
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
  document.getElementById("run").addEventListener("change", (event) => go({ run: event.target.value, x: null, step: null, sample: null, attempt: null }));
  keyboard({ redraw: () => shown.view?.redraw?.(), run: () => run, load });
  follow((event) => { if (event.run === null || event.run === run?.run || event.kind === "run") soon(); }, connection);
  setInterval(soon, AGAIN_MS);
  await load();
}

start().catch((error) => main.replaceChildren(failure(error)));
