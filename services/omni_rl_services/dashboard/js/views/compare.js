// Two runs over each other, step by step.

import { ChartPanel } from "../chartpanel.js";
import { empty, h } from "../dom.js";
import { figure } from "../format.js";
import { SHIFT, titleOf, what } from "../metrics.js";
import { get, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { OVERALL, buckets, kindPicker, picker } from "./pickers.js";
import { changed, renew } from "../renew.js";

const METRICS = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error", "ess"];
const POINTS = 800;
const LOGARITHMIC = (metric) => metric !== "ess"; // a share of 1

export class CompareView {
  constructor(box) { this.box = box; }

  async load(run, signal, runs) {
    const others = runs.filter((one) => one.run !== run?.run);
    if (!run || !others.length) {
      this.destroy();
      return renew(this.box, h("section", { className: "panel" }, empty("There is one run only", "With a second run in this ledger the two are drawn over each other.", "omni-rl demo --serve")));
    }
    const { kind = OVERALL, metric = METRICS[0] } = place();
    const other = others.find((one) => one.run === place().with) ?? others[0];
    const [first, last] = range();
    const load = (name) => get(`/v1/runs/${segment(name)}/timeline`, { kind, metric, first, last, points: POINTS }, signal);
    const both = await Promise.all([load(run.run), load(other.run)]);
    const offered = buckets(run, other);
    if (!changed(this, both, offered)) return;
    const log = LOGARITHMIC(metric) && place().log !== "0";
    this.destroy();
    this.panel = panelOf(metric, [run.run, other.run]);
    renew(this.box,
      h("div", { className: "bar" }, picker("with", "with", others.map((one) => one.run), other.run), kindPicker(offered, kind), picker("metric", "figure", METRICS, metric),
        h("button", { type: "button", disabled: !LOGARITHMIC(metric), "aria-pressed": String(log), onclick: () => go({ log: log ? "0" : null }) }, "log"),
        h("button", { type: "button", disabled: first === null, onclick: () => go({ x: null }) }, "All steps"), h("span", { className: "grow" }), h("span", { className: "keyline" }, "drag to zoom")),
      this.panel.box);
    this.panel.show(merged(both, metric), { log, range: [first, last] });
  }

  redraw() { this.panel?.redraw(); }
  destroy() { this.panel?.destroy(); this.panel = null; }
}

function panelOf(metric, names) {
  const lines = [{ metric: "a", name: names[0], colour: "s1" }, { metric: "b", name: names[1], colour: "s2", dash: [7, 4] }];
  const columns = [{ name: "step", of: (row) => row.first, right: true }, ...lines.map((line) => ({ name: line.name, of: (row) => row.high[line.metric], show: figure, right: true }))];
  const shift = SHIFT[metric] ?? 0;
  return new ChartPanel({ title: shift ? `${metric} − ${shift}` : titleOf(metric), what: what(metric), file: "compare", lines, columns, shift, tall: true, pick: () => {} });
}

/** Both timelines on the steps that either has; where one has none there is a gap. */
function merged([a, b], metric) {
  const first = [...new Set([...a.first, ...b.first])].sort((one, two) => one - two);
  const on = (timeline, values) => {
    const found = new Map(timeline.first.map((step, index) => [step, values[index]]));
    return first.map((step) => found.get(step));
  };
  const side = (end) => ({ a: on(a, a[end][metric] ?? []), b: on(b, b[end][metric] ?? []) });
  return { first, last: first, low: side("low"), high: side("high") };
}
