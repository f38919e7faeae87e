// The first screen: every run in a line, the one that needs somebody most on top; searched, filtered, thousands of them.

import { NEEDS, SIGN_OF } from "../standing.js";
import { changed, renew } from "../renew.js";
import { count, counted, figure, round, version, words } from "../format.js";
import { csvButton, table } from "../table.js";
import { empty, h, panel } from "../dom.js";
import { getPage } from "../api.js";
import { go, link, place } from "../place.js";
import { incidentCard } from "./incident.js";
import { picker } from "./pickers.js";
import { since } from "../since.js";
import { spark } from "../spark.js";

const A_PAGE = 50;
const SORTS = [{ value: "", name: "most urgent first" }, { value: "newest", name: "newest first" }];

export class RunsView {
  constructor(box) {
    this.search = h("input", { type: "search", "aria-label": "Search runs", placeholder: "part of a name", value: place().search ?? "", oninput: () => this.typed() });
    this.filters = h("div", { className: "bar tight", role: "group", "aria-label": "Show runs that are" });
    this.sorting = h("span");
    this.of = h("div", { className: "stacked", hidden: true });
    this.list = h("div", { className: "stacked" });
    box.replaceChildren(this.of, h("div", { className: "bar" }, this.search, this.sorting, this.filters), this.list);
  }

  async load(_, signal, state) {
    const incidents = state.incidents.filter((incident) => incident.run === null);
    this.of.hidden = !incidents.length;
    if (changed(this.of, incidents)) renew(this.of, ...incidents.map((incident) => incidentCard(incident, { loud: true })));
    const { need = "", sort = "" } = place();
    if (changed(this.filters, state.needs, need)) renew(this.filters, ...filters(state.needs, need.split(",").filter(Boolean)));
    if (changed(this.sorting, sort)) this.sorting.replaceChildren(picker("sort", "sorted", SORTS, sort));
    if (this.search.value !== (place().search ?? "") && document.activeElement !== this.search) this.search.value = place().search ?? "";
    await this.ask(signal);
  }

  /** The list of now. Whoever asks later, a load or a reader who types, ends what was asked before: its answer is old. */
  async ask(...signals) {
    this.asking?.abort();
    this.asking = new AbortController();
    const { search, need, sort = "need", page = 1 } = place();
    this.draw(await getPage("/v1/runs", { search, need: need?.split(","), sort, offset: (page - 1) * A_PAGE, limit: A_PAGE }, AbortSignal.any([this.asking.signal, ...signals])));
  }

  /** Only the list is asked for again: a search is as fast as one types. */
  async typed() {
    performance.mark("typed");
    history.replaceState(null, "", link({ search: this.search.value.trim(), page: null }));
    try {
      await this.ask();
      performance.measure("search", "typed");
    } catch (error) {
      if (error.name !== "AbortError") dispatchEvent(new Event("stale")); // which says what is wrong
    }
  }

  draw({ rows, total }) {
    if (!changed(this, rows, total)) return;
    const { search, need, page = 1 } = place();
    if (!total) return renew(this.list, h("section", { className: "panel" }, search || need ? empty("No run is like that", "Take out the search or a filter.") : empty("No run yet", "A run is here as soon as one is made.", "omni-rl demo --serve")));
    const first = (page - 1) * A_PAGE;
    const turn = (by, name) => h("button", { type: "button", className: "small", disabled: first + by * A_PAGE < 0 || first + by * A_PAGE >= total, onclick: () => go({ page: Number(page) + by }) }, name);
    const pages = total > A_PAGE ? [turn(-1, "‹ before"), turn(1, "next ›")] : [];
    const heading = total > rows.length ? `Runs ${count(first + 1)} to ${count(first + rows.length)} of ${count(total)}` : counted(total, "run");
    renew(this.list, panel(heading, [...pages, csvButton("runs", COLUMNS, () => rows)], h("div", { className: "whole runs" }, table(COLUMNS, rows, { pick: (row) => go(here(row)), caption: "Runs" }))));
  }
}

const here = (row) => ({ run: row.run, view: row.incident === null ? "timeline" : "why", incident: row.incident, search: null, need: null, sort: null, page: null });

const COLUMNS = [
  { name: "state", tight: true, of: (row) => row.need, show: (need) => h("span", { className: `sign ${need}` }, SIGN_OF[need]) },
  { name: "run", of: (row) => row.run, show: (name, row) => h("a", { href: link(here(row)) }, name) },
  { name: "kind", of: (row) => row.figure?.kind },
  { name: "over its limit", tight: true, of: (row) => row.figure && `${row.figure.metric} ${figure(row.figure.value)} over ${round(row.figure.limit)}`, show: (_, row) => (row.figure ? h("span", { title: row.figure.metric }, h("strong", {}, figure(row.figure.value)), ` over ${round(row.figure.limit)}`) : "–") },
  { name: "cause", of: (row) => row.cause, show: (cause) => (cause ? words(cause) : "–") },
  { name: "last good step", tight: true, of: (row) => row.good?.step, show: (step, row) => (row.good ? h("span", {}, count(step), h("span", { className: "quiet" }, row.good.weights ? ` on ${version(row.good.weights)}` : "")) : "none") },
  { name: "last step", tight: true, of: (row) => row.step, show: (step, row) => (step === null ? "none" : h("span", {}, `${count(step)}, `, since(row.sealed))) },
  { name: "in hand of", of: (row) => row.acknowledged?.by, show: (by, row) => by ?? (row.incident === null ? "" : h("span", { className: "sign pause" }, "nobody")) },
  { name: "reward, drift", of: (row) => row.recent.drift.at(-1), show: (_, { recent }) => h("span", { className: "sparks" }, spark(recent.reward, `reward of the last ${counted(recent.reward.length, "step")}`, "s1"), spark(recent.drift, `drift of the last ${counted(recent.drift.length, "step")}`, "s2")) },
];

function filters(needs, chosen) {
  return NEEDS.filter((need) => needs[need]).map((need) => {
    const pressed = chosen.includes(need);
    const others = pressed ? chosen.filter((one) => one !== need) : [...chosen, need];
    return h("button", { type: "button", className: "small", "aria-pressed": String(pressed), onclick: () => go({ need: others.join(","), page: null }) }, h("span", { className: `sign ${need}` }, SIGN_OF[need]), ` ${count(needs[need])}`);
  });
}
