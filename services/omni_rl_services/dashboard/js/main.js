// The page: who is asking, which run, which view; loads what is in view, and loads it again when something happened.

import { CompareView } from "./views/compare.js";
import { JobsView } from "./views/jobs.js";
import { SyncsView } from "./views/syncs.js";
import { TimelineView } from "./views/timeline.js";
import { WhatView } from "./views/what.js";
import { WhereView } from "./views/where.js";
import { WhyView } from "./views/why.js";
import { VIEWS, go, link, place } from "./place.js";
import { failure, h } from "./dom.js";
import { follow } from "./events.js";
import { get, post, session } from "./api.js";
import { head, lookAtHead, unknown } from "./views/head.js";
import { keyboard, login } from "./shell.js";
import { renew } from "./renew.js";

const KINDS = { timeline: TimelineView, where: WhereView, what: WhatView, why: WhyView, syncs: SyncsView, jobs: JobsView, compare: CompareView };
const REST_MS = 250; // between two loads that events ask for: a burst of steps is one load, and the first is at once
const AGAIN_MS = 15_000; // an actor's state changes without an event

const main = document.getElementById("main");
const live = document.getElementById("live");
let state = null;
let shown = { name: null, view: null };
let loading = null;

const current = () => state.runs.find((run) => run.run === place().run) ?? state.runs[0];

async function load() {
  loading?.abort();
  const { signal } = (loading = new AbortController());
  try {
    state = await get("/v1/state", {}, signal);
    const run = current();
    runPicker(run);
    const box = document.getElementById("head");
    main.classList.toggle("early", !box.children.length);
    const top = lookAtHead(run).then(({ latest, syncs }) => { if (!signal.aborted) head(box, state, run, latest, syncs); }).finally(() => main.classList.remove("early"));
    await Promise.all([top, view(run, signal)]);
    performance.mark("loaded");
  } catch (error) {
    if (error.name === "AbortError" || error.status === 401) return;
    if (error.status === 0 && shown.view) return; // the stream says that the connection is lost; what is on screen stays
    destroy();
    main.replaceChildren(failure(error));
  }
}

async function view(run, signal) {
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

function runPicker(run) {
  const select = document.getElementById("run");
  const names = state.runs.map((one) => one.run);
  if (names.join() !== [...select.options].map((option) => option.value).join()) select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  select.value = run?.run ?? "";
  document.title = `${run ? `${run.drift.severity.toUpperCase()} · ${run.run}` : "no run"} · omni-rl drift`;
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
  if ((await session()) === null) {
    login(main, async (token) => { await post("/v1/session", { token }); location.reload(); });
    return;
  }
  const soon = throttled(load);
  addEventListener("hashchange", load);
  addEventListener("stale", load);
  addEventListener("logged-out", () => location.reload(), { once: true });
  document.getElementById("run").addEventListener("change", (event) => go({ run: event.target.value, x: null, step: null, sample: null, attempt: null }));
  keyboard({ redraw: () => shown.view?.redraw?.(), run: current, load });
  follow((event) => { if (event.run === null || event.run === current()?.run || event.kind === "run") soon(); }, (status) => {
    if (live.dataset.state === status) return;
    live.dataset.state = document.body.dataset.live = status;
    live.textContent = status === "live" ? "live" : "connection lost, trying again";
    if (status === "live") load();
    else unknown();
  });
  setInterval(() => { if (!document.hidden) soon(); }, AGAIN_MS);
  await load();
}

start().catch((error) => main.replaceChildren(failure(error)));
