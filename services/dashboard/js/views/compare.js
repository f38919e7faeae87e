// Two runs over each other, step by step.

import { behind, csvButton } from "../table.js";
import { Chart } from "../charts.js";
import { empty, h, panel } from "../dom.js";
import { figure } from "../format.js";
import { get, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { kindPicker, picker } from "./pickers.js";
import { savePng } from "../save.js";

const METRICS = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error", "ess"];
const POINTS = 800;

export class CompareView {
  constructor(box) { this.box = box; }

  async load(run, signal, runs) {
    this.chart?.destroy();
    this.chart = null;
    const others = runs.filter((one) => one.run !== run?.run);
    if (!run || !others.length) return this.box.replaceChildren(h("section", { className: "panel" }, empty("There is one run only", "With a second run in this ledger the two are drawn over each other.")));
    const { kind = "overall", metric = METRICS[0], log } = place();
    const other = others.find((one) => one.run === place().with) ?? others[0];
    const [first, last] = range();
    const load = (name) => get(`/v1/runs/${segment(name)}/timeline`, { kind, metric, first, last, points: POINTS }, signal);
    const both = await Promise.all([load(run.run), load(other.run)]);
    const data = merged(both, metric);
    const names = [run.run, other.run];
    const lines = [{ metric: "a", name: names[0], colour: "s1" }, { metric: "b", name: names[1], colour: "s2" }];
    const chart = new Chart({ title: `${metric} of both runs`, lines, zoom: (from, to) => go({ x: `${from}-${to}` }), pick: () => {} });
    this.chart = chart;
    const rows = () => data.first.map((step, index) => ({ step, a: data.high.a[index], b: data.high.b[index] }));
    const columns = [{ name: "step", of: (row) => row.step, right: true }, ...["a", "b"].map((side, index) => ({ name: names[index], of: (row) => row[side], show: figure, right: true }))];
    this.box.replaceChildren(
      h("div", { className: "bar" }, picker("with", "with", others.map((one) => one.run), other.run), kindPicker(kind), picker("metric", "figure", METRICS, metric), h("button", { type: "button", "aria-pressed": String(log === "1"), onclick: () => go({ log: log === "1" ? null : "1" }) }, "log"), h("button", { type: "button", disabled: first === null, onclick: () => go({ x: null }) }, "All steps")),
      panel(metric, [csvButton("compare", columns, rows), h("button", { type: "button", className: "small", onclick: () => savePng("compare", chart.plot.ctx.canvas) }, "PNG")], h("div", { className: "sized" }, chart.box),
        h("div", { className: "keyline" }, ...lines.map((line) => h("span", {}, h("i", { className: "swatch", style: { borderColor: `var(--${line.colour})` } }), line.name))), behind(columns, rows, metric)));
    chart.show(data, { log: log === "1", range: [first, last] });
  }

  redraw() { this.chart?.redraw(); }
  destroy() { this.chart?.destroy(); }
}

/** Both timelines on the steps that either has; where one has none there is a gap. */
function merged([a, b], metric) {
  const first = [...new Set([...a.first, ...b.first])].sort((one, two) => one - two);
  const on = (timeline, values) => {
    const found = new Map(timeline.first.map((step, index) => [step, values[index]]));
    return first.map((step) => found.get(step) ?? undefined);
  };
  const side = (end) => ({ a: on(a, a[end][metric] ?? []), b: on(b, b[end][metric] ?? []) });
  return { first, last: first, low: side("low"), high: side("high") };
}
