// Drift over steps, a chart a kind of prompt, the one that breaches first; below it what the trainer posted; one brush.

import { DRIFT, SHIFT, titleOf, what } from "../metrics.js";
import { attemptsOf, joined } from "../attempts.js";
import { ChartPanel } from "../chartpanel.js";
import { Panels } from "../panels.js";
import { byBreach, breachText, worst } from "../breach.js";
import { empty, h } from "../dom.js";
import { NOT_A_NUMBER, count, figure } from "../format.js";
import { get, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { limitsOf, ofKind } from "../limits.js";
import { momentsOf } from "./moments.js";
import { OVERALL, attemptPicker, kindPicker, picker, shownKinds } from "./pickers.js";
import { TrainingFigures } from "./training.js";

const MARKED_STEPS = 1500; // with more in view each step's weights would be a mark of their own
const NO_MARKS = { weights: [], moments: [] };
const OVER = [{ value: "", name: "steps" }, { value: "clock", name: "wall clock" }];
const LINES = 2000; // steps whose training figures are drawn; of more, so many evenly apart

export class TimelineView {
  constructor(box) {
    this.panels = new Panels();
    this.log = h("button", { type: "button", onclick: () => go({ log: place().log === "0" ? null : "0" }) }, "log");
    this.reset = h("button", { type: "button", onclick: () => go({ x: null }) }, "All steps");
    this.choice = h("span", { className: "bar" });
    this.note = h("span", { className: "quiet num", id: "in-view" });
    this.training = new TrainingFigures();
    box.replaceChildren(h("div", { className: "bar" }, this.log, this.reset, this.choice, this.note, h("span", { className: "grow" }), legend()), this.panels.box, this.training.box);
  }

  async load(run, signal) {
    if (!run || run.step === null) {
      this.destroy();
      this.panels.clear(h("section", { className: "panel wide" }, empty("No step yet", "This page fills as soon as a step is sealed.", "omni-rl demo --serve")));
      return;
    }
    const [first, last] = range();
    const { kind, log, attempt } = place();
    const path = `/v1/runs/${segment(run.run)}`;
    const points = Math.min(1600, Math.max(200, Math.round(this.panels.box.clientWidth)));
    const shown = kind ? [kind] : shownKinds(run);
    const attempts = await attemptsOf(run, signal);
    const parts = attempt === undefined ? attempts : [{ attempt, until: null }];
    const part = (name, one) => get(`${path}/timeline`, { kind: name, first, last: one.until === null ? last : Math.min(last ?? one.until, one.until), points, metric: DRIFT, attempt: one.attempt }, signal);
    const timeline = async (name) => joined(await Promise.all(parts.map((one) => part(name, one))));
    const [limits, ...found] = await Promise.all([limitsOf(run.run, signal), ...shown.map(timeline)]);
    const charts = chartsOf(shown, found, limits);
    this.controls(run, charts, attempts, log, first);
    this.tell(found[0]);
    const options = { log: log !== "0", range: [first, last], clock: place().over === "clock" };
    this.draw(charts, options, this.marks ?? NO_MARKS);
    performance.mark("timeline");
    if (!found[0].first.length) return this.training.show([], options);
    const lines = await this.lines(path, found[0], parts, signal);
    const few = found[0].last.at(-1) - found[0].first[0] < MARKED_STEPS;
    this.marks = { weights: few ? newWeights(lines) : [], moments: await momentsOf(run, lines, signal) };
    this.draw(charts, options, this.marks);
    this.training.show(lines, options);
  }

  /** The steps in view, some of them where they are too many. */
  async lines(path, data, parts, signal) {
    const [first, last] = [data.first[0], data.last.at(-1)];
    const of = (one) => get(`${path}/steps`, { after: first - 1, last: Math.min(one.until ?? last, last), points: LINES, attempt: one.attempt }, signal);
    return (await Promise.all(parts.map(of))).flat();
  }

  controls(run, charts, attempts, log, first) {
    const { kind, metric, attempt = "", over = "" } = place();
    const offered = shownKinds(run);
    const now = JSON.stringify([kind, metric, charts[0]?.metric, offered, attempts, attempt, over]);
    if (this.offered !== now) this.choice.replaceChildren(kindPicker(offered, kind ?? "", true), ...(kind ? [] : [picker("metric", "figure", DRIFT, charts[0]?.metric ?? DRIFT[0])]), picker("over", "over", OVER, over), ...(attempts.length > 1 ? [attemptPicker(attempts, attempt)] : []));
    this.offered = now;
    this.log.setAttribute("aria-pressed", String(log !== "0"));
    this.reset.disabled = first === null;
  }

  tell(data) {
    const broken = data.broken.reduce((sum, steps) => sum + steps, 0);
    this.note.textContent = data.first.length ? `steps ${count(data.first[0])} to ${count(data.last.at(-1))}${data.width > 1 ? `, ${count(data.width)} to a point, extremes kept` : ""}${broken ? `, in ${count(broken)} of them figures are ${NOT_A_NUMBER}` : ""}` : "no step of this kind here";
  }

  draw(charts, options, marks) {
    const panels = this.panels.show(charts.map(({ kind, metric }) => ({ key: `${kind} ${metric}`, of: kind, make: () => panelOf(kind, metric) })));
    charts.forEach(({ data, limits, breach }, index) => {
      panels[index].box.classList.toggle("wide", index === 0);
      panels[index].tell(breachText(breach), breach?.severity);
      panels[index].show(data, { ...options, limits, marks: { changes: changes(data), ...marks } });
    });
  }

  redraw() { this.panels.redraw(); this.training.redraw(); }

  destroy() {
    this.panels.clear();
    this.training.destroy();
  }
}

/** Of each kind the figure that went furthest over a limit, or the one that was asked for; of one kind alone, every figure. */
function chartsOf(shown, found, limits) {
  const all = shown.flatMap((kind, index) => DRIFT.map((metric) => {
    const limit = ofKind(limits, kind)[metric];
    return { kind, metric, data: found[index], limits: limit ?? {}, breach: worst(found[index], metric, limit) };
  })).filter(({ data }) => data.first.length);
  if (shown.length === 1) return all;
  const metric = place().metric ?? [...all].sort((a, b) => byBreach(a.breach, b.breach))[0]?.metric;
  const order = (chart) => (chart.kind === OVERALL && chart.breach?.severity !== "ok" ? shown.length : shown.indexOf(chart.kind)); // a kind says more than all of them
  return all.filter((chart) => chart.metric === metric).sort((a, b) => byBreach(a.breach, b.breach) || order(a) - order(b));
}

function panelOf(kind, metric) {
  const shift = SHIFT[metric] ?? 0;
  const pick = (first, last) => (first === last ? go({ view: "what", step: first, sample: null }) : go({ x: `${first}-${last}` }));
  const columns = [{ name: "first step", of: (row) => row.first, right: true }, { name: "last step", of: (row) => row.last, right: true },
    ...["low", "high"].map((end) => ({ name: `${metric} ${end === "low" ? "least" : "greatest"}`, of: (row) => row[end][metric], show: figure, right: true }))];
  const title = `${kind}: ${shift ? `${metric} − ${shift}` : titleOf(metric)}`;
  return new ChartPanel({ title, what: what(metric), file: `${kind}-${metric}`, lines: [{ metric, name: metric, colour: "s1" }], columns, shift, pick });
}

/** Steps that were sampled by other weights than the one before. */
const newWeights = (lines) => lines.filter((line, index) => index > 0 && line.weight_version !== lines[index - 1].weight_version).map((line) => line.step);
const changes = (data) => data.severity.map((severity, index) => ({ severity, step: data.first[index] })).filter((change, index) => index > 0 && change.severity !== data.severity[index - 1]);

function legend() {
  return h("span", { className: "keyline" }, h("span", {}, "┄ limit"), h("span", {}, "● ▲ ◆ ■ severity changed"), h("span", {}, "▴ new weights"), h("span", {}, "✓ ✗ sync"), h("span", {}, "↻ engine's update"), h("span", {}, "⚑ incident"), h("span", {}, "drag to zoom, click for the step"));
}
