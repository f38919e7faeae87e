// Drift over steps: three charts, one brush.

import { ChartPanel } from "../chartpanel.js";
import { empty, h } from "../dom.js";
import { NOT_A_NUMBER, count, figure } from "../format.js";
import { get, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { OVERALL, buckets, kindPicker } from "./pickers.js";

const METRICS = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error"];
const CHARTS = [
  { title: "abs d, nats", limit: "logprob_abs_diff_mean", tall: true, lines: [
    { metric: "logprob_abs_diff_max", name: "max", colour: "s3" }, { metric: "logprob_abs_diff_p99", name: "p99", colour: "s2" }, { metric: "logprob_abs_diff_mean", name: "mean (limits are of the mean)", short: "mean", colour: "s1" }] },
  { title: "gen_kl_error, nats", limit: "gen_kl_error", lines: [{ metric: "gen_kl_error", name: "gen_kl_error", colour: "s1" }] },
  { title: "token_mult_prob_error − 1", limit: "token_mult_prob_error", shift: 1, lines: [{ metric: "token_mult_prob_error", name: "token_mult_prob_error", colour: "s1" }] },
];
const MARKED_STEPS = 1500; // with more in view each step's weights would be a mark of their own

export class TimelineView {
  constructor(box) {
    const pick = (first, last) => (first === last ? go({ view: "what", step: first, sample: null }) : go({ x: `${first}-${last}` }));
    this.charts = CHARTS.map((spec) => ({ limit: spec.limit, panel: new ChartPanel({ ...spec, file: spec.limit, columns: columnsOf(spec.lines), pick }) }));
    this.log = h("button", { type: "button", onclick: () => go({ log: place().log === "0" ? null : "0" }) }, "log");
    this.reset = h("button", { type: "button", onclick: () => go({ x: null }) }, "All steps");
    this.kinds = h("span");
    this.note = h("span", { className: "quiet num", id: "in-view" });
    this.panels = this.charts.map(({ panel }) => panel.box);
    this.panels[0].classList.add("wide");
    this.body = h("div", { className: "two" }, ...this.panels);
    box.replaceChildren(h("div", { className: "bar" }, this.kinds, this.log, this.reset, this.note, h("span", { className: "grow" }), legend()), this.body);
  }

  async load(run, signal) {
    if (!run || run.step === null) {
      this.body.replaceChildren(h("section", { className: "panel wide" }, empty("No step yet", "This page fills as soon as a step is sealed.", "omni-rl demo --serve")));
      return;
    }
    if (!this.body.contains(this.panels[0])) this.body.replaceChildren(...this.panels);
    const [first, last] = range();
    const { kind = OVERALL, log, attempt } = place();
    const path = `/v1/runs/${segment(run.run)}`;
    const points = Math.min(1600, Math.max(200, Math.round(this.body.clientWidth)));
    const [data, limits] = await Promise.all([get(`${path}/timeline`, { kind, first, last, points, metric: METRICS, attempt }, signal), this.limits?.run === run.run ? this.limits.found : get(`${path}/limits`, {}, signal)]);
    this.limits = { run: run.run, found: limits };
    const offered = buckets(run);
    const picked = [kind, ...offered].join();
    if (this.picked !== picked) this.kinds.replaceChildren(kindPicker(offered, kind));
    this.picked = picked;
    this.log.setAttribute("aria-pressed", String(log !== "0"));
    this.reset.disabled = first === null;
    const span = data.last.length ? data.last.at(-1) - data.first[0] + 1 : 0;
    const broken = data.broken.reduce((sum, steps) => sum + steps, 0);
    this.note.textContent = data.first.length ? `steps ${count(data.first[0])} to ${count(data.last.at(-1))}${data.width > 1 ? `, ${count(data.width)} to a point, extremes kept` : ""}${broken ? `, in ${count(broken)} of them figures are ${NOT_A_NUMBER}` : ""}` : "no step of this kind here";
    const marks = { changes: changes(data), syncs: [] };
    const draw = () => {
      const own = limits[kind] ?? limits[OVERALL];
      for (const { limit, panel } of this.charts) panel.show(data, { limits: own?.[limit] ?? {}, marks, log: log !== "0", range: [first, last] });
    };
    draw();
    if (span > 0 && span <= MARKED_STEPS) {
      marks.syncs = await this.syncs(path, data, attempt, signal);
      draw();
    }
    performance.mark("timeline");
  }

  /** Steps that were sampled by other weights than the one before. */
  async syncs(path, data, attempt, signal) {
    const lines = await get(`${path}/steps`, { after: data.first[0] - 1, limit: MARKED_STEPS, attempt }, signal);
    return lines.filter((line, index) => index > 0 && line.weight_version !== lines[index - 1].weight_version).map((line) => line.step);
  }

  redraw() { for (const { panel } of this.charts) panel.redraw(); }
  destroy() { for (const { panel } of this.charts) panel.destroy(); }
}

const columnsOf = (lines) => [{ name: "first step", of: (row) => row.first, right: true }, { name: "last step", of: (row) => row.last, right: true },
  ...lines.flatMap(({ metric }) => [{ name: `${metric} least`, of: (row) => row.low[metric], show: figure, right: true }, { name: `${metric} greatest`, of: (row) => row.high[metric], show: figure, right: true }])];

const changes = (data) => data.severity.map((severity, index) => ({ severity, step: data.first[index] })).filter((change, index) => index > 0 && change.severity !== data.severity[index - 1]);

function legend() {
  return h("span", { className: "keyline" }, h("span", {}, "┄ limit"), h("span", {}, "● ▲ ◆ ■ severity changed"), h("span", {}, "▴ new weights"), h("span", {}, "drag to zoom, click for the step"));
}
