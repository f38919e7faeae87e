// Runs over each other, step by step, against one that is pinned; and in what their configurations differ.

import { ChartPanel } from "../chartpanel.js";
import { DRIFT, SHIFT, titleOf, what } from "../metrics.js";
import { changed, renew } from "../renew.js";
import { configurations } from "./configurations.js";
import { empty, h } from "../dom.js";
import { figure } from "../format.js";
import { get, namedRun, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { OVERALL, kindPicker, picker, shownKinds } from "./pickers.js";

const METRICS = [...DRIFT, "ess", "reward"];
const PLAIN = ["ess", "reward"]; // never on a logarithmic scale
const POINTS = 800;
const LINES = 2000; // steps whose reward is drawn; of more, so many evenly apart
const COLOURS = ["s1", "s2", "s3", "s4", "s5", "s6"];

export class CompareView {
  constructor(box) { this.box = box; }

  /** The run that is looked at is pinned; `with` names the others. */
  async load(run, signal, state) {
    const nearest = state.runs.filter((one) => one.run !== run?.run);
    if (!run || !nearest.length) {
      this.destroy();
      return renew(this.box, h("section", { className: "panel" }, empty("There is one run only", "With a second run in this ledger the two are drawn over each other.", "omni-rl demo --serve")));
    }
    const names = (place().with ?? nearest[0].run).split(",").filter((name) => name !== run.run).slice(0, COLOURS.length - 1);
    const others = (await Promise.all(names.map((name) => namedRun(name, signal)))).filter(Boolean);
    const runs = [run, ...others];
    const { kind = OVERALL, metric = METRICS[0] } = place();
    const found = await Promise.all(runs.map((one) => timelineOf(one, kind, metric, signal)));
    if (!changed(this, found, runs.map((one) => [one.run, one.kinds]), nearest.map((one) => one.run))) return;
    const log = !PLAIN.includes(metric) && place().log !== "0";
    this.destroy();
    this.panel = panelOf(metric, runs);
    renew(this.box,
      h("div", { className: "bar" }, adder(others, nearest), ...others.map((one, index) => chip(one.run, others, COLOURS[index + 1])), kindPicker(shownKinds(...runs), kind), picker("metric", "figure", METRICS, metric),
        h("button", { type: "button", disabled: PLAIN.includes(metric), "aria-pressed": String(log), onclick: () => go({ log: log ? "0" : null }) }, "log"),
        h("button", { type: "button", disabled: range()[0] === null, onclick: () => go({ x: null }) }, "All steps"), h("span", { className: "grow" }), h("span", { className: "keyline" }, `${run.run} is pinned; drag to zoom`)),
      this.panel.box, configurations(runs));
    this.panel.show(merged(found, metric), { log, range: range() });
  }

  redraw() { this.panel?.redraw(); }
  destroy() { this.panel?.destroy(); this.panel = null; }
}

async function timelineOf({ run }, kind, metric, signal) {
  const [first, last] = range();
  const path = `/v1/runs/${segment(run)}`;
  if (metric !== "reward") return get(`${path}/timeline`, { kind, metric, first, last, points: POINTS }, signal).catch(noSuchKind);
  const lines = await get(`${path}/steps`, { after: (first ?? 0) - 1, last, points: LINES }, signal);
  const reward = lines.map((line) => line.training.reward);
  const steps = lines.map((line) => line.step);
  return { first: steps, low: { reward }, high: { reward } };
}

/** A run that has no prompts of a kind has no line; the others have. */
const noSuchKind = (error) => { if (error.status !== 404) throw error; return { first: [], low: {}, high: {} }; };

const names = (runs) => runs.map((one) => one.run);

function adder(others, nearest) {
  const input = h("input", { type: "search", list: "run-names", "aria-label": "Add a run", placeholder: "add a run", disabled: others.length === COLOURS.length - 1, onchange: () => { if (input.value.trim()) go({ with: [...new Set([...names(others), input.value.trim()])].join(",") }); } });
  return h("label", {}, input, h("datalist", { id: "run-names" }, ...nearest.map((one) => h("option", { value: one.run }))));
}

const chip = (name, others, colour) => h("span", { className: "chip" }, h("i", { className: "swatch", style: { borderColor: `var(--${colour})` } }), name, " ",
  h("button", { type: "button", className: "small plain", "aria-label": `Take ${name} out`, disabled: others.length === 1, onclick: () => go({ with: names(others).filter((other) => other !== name).join(",") }) }, "✕"),
  h("button", { type: "button", className: "small", "aria-label": `Pin ${name}`, onclick: () => go({ run: name, with: [place().run, ...names(others).filter((other) => other !== name)].filter(Boolean).join(",") }) }, "pin"));

function panelOf(metric, runs) {
  const lines = runs.map(({ run }, index) => ({ metric: `run ${index}`, name: index ? run : `${run} (pinned)`, short: run, colour: COLOURS[index], dash: index ? [7, 4] : undefined }));
  const columns = [{ name: "step", of: (row) => row.first, right: true }, ...lines.map((line) => ({ name: line.short, of: (row) => row.high[line.metric], show: figure, right: true }))];
  const shift = SHIFT[metric] ?? 0;
  return new ChartPanel({ title: shift ? `${metric} − ${shift}` : titleOf(metric), what: what(metric), file: "compare", lines, columns, shift, tall: true, pick: () => {} });
}

/** All timelines on the steps that any has; where one has none there is a gap. */
function merged(timelines, metric) {
  const first = [...new Set(timelines.flatMap((one) => one.first))].sort((one, two) => one - two);
  const on = (timeline, values) => {
    const found = new Map(timeline.first.map((step, index) => [step, values[index]]));
    return first.map((step) => found.get(step));
  };
  const side = (end) => Object.fromEntries(timelines.map((one, index) => [`run ${index}`, on(one, one[end][metric] ?? [])]));
  return { first, last: first, low: side("low"), high: side("high") };
}
