// Drift over steps: three charts, one brush.

import { behind, csvButton } from "../table.js";
import { Chart } from "../charts.js";
import { empty, h, panel } from "../dom.js";
import { count, figure } from "../format.js";
import { get, segment } from "../api.js";
import { go, place, range } from "../place.js";
import { savePng } from "../save.js";
import { kindPicker } from "./pickers.js";

const METRICS = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error"];
const CHARTS = [
  { title: "abs d, nats", limit: "logprob_abs_diff_mean", lines: [
    { metric: "logprob_abs_diff_max", name: "max", colour: "s3" }, { metric: "logprob_abs_diff_p99", name: "p99", colour: "s2" }, { metric: "logprob_abs_diff_mean", name: "mean (limits are of the mean)", colour: "s1" }] },
  { title: "gen_kl_error, nats", limit: "gen_kl_error", lines: [{ metric: "gen_kl_error", name: "gen_kl_error", colour: "s1" }] },
  { title: "token_mult_prob_error − 1", limit: "token_mult_prob_error", shift: 1, lines: [{ metric: "token_mult_prob_error", name: "token_mult_prob_error − 1 (0 is perfect)", colour: "s1" }] },
];
const MARKED_STEPS = 1500; // with more in view each step's weights would be a mark of their own

export class TimelineView {
  constructor(box) {
    const pick = (first, last) => (first === last ? go({ view: "what", step: first, sample: null }) : go({ x: `${first}-${last}` }));
    const zoom = (first, last) => go({ x: `${first}-${last}` });
    this.charts = CHARTS.map((spec) => ({ ...spec, chart: new Chart({ ...spec, zoom, pick }) }));
    this.log = h("button", { type: "button", onclick: () => go({ log: place().log === "0" ? null : "0" }) }, "log");
    this.reset = h("button", { type: "button", onclick: () => go({ x: null }) }, "All steps");
    this.kinds = h("span");
    this.note = h("span", { className: "quiet num", id: "in-view" });
    this.panels = this.charts.map((spec) => this.panelOf(spec));
    this.body = h("div", { className: "two" }, ...this.panels);
    box.replaceChildren(h("div", { className: "bar" }, this.kinds, this.log, this.reset, this.note, h("span", { className: "grow" }), legend()), this.body);
    this.box = box;
  }

  panelOf(spec) {
    const name = spec.limit;
    const columns = [{ name: "first step", of: (row) => row.first, right: true }, { name: "last step", of: (row) => row.last, right: true },
      ...spec.lines.flatMap(({ metric }) => [{ name: `${metric} least`, of: (row) => row.low[metric], show: figure, right: true }, { name: `${metric} greatest`, of: (row) => row.high[metric], show: figure, right: true }])];
    spec.table = behind(columns, () => rowsOf(this.data), spec.title);
    const png = h("button", { type: "button", className: "small", "aria-label": `${spec.title} as PNG`, onclick: () => savePng(name, spec.chart.plot.ctx.canvas) }, "PNG");
    spec.value = h("span", { className: "num quiet" });
    spec.chart.hover = (at) => { spec.value.textContent = at === null || at === undefined || !this.data ? "" : hovered(this.data, spec, at); };
    const box = panel(spec.title, [spec.value, csvButton(name, columns, () => rowsOf(this.data)), png], spec.chart.box,
      h("div", { className: "keyline" }, ...spec.lines.map((line) => h("span", {}, h("i", { className: "swatch", style: { borderColor: `var(--${line.colour})` } }), line.name))), spec.table);
    if (spec.lines.length > 1) box.classList.add("wide");
    return box;
  }

  async load(run, signal) {
    if (!run || run.step === null) {
      this.body.replaceChildren(h("section", { className: "panel" }, empty("No step yet", "This page fills as soon as a step is sealed.", "omni-rl demo --serve")));
      return;
    }
    if (!this.body.contains(this.panels[0])) this.body.replaceChildren(...this.panels);
    const [first, last] = range();
    const { kind = "overall", log, attempt } = place();
    const path = `/v1/runs/${segment(run.run)}`;
    const points = Math.min(1600, Math.max(200, Math.round(this.body.clientWidth)));
    const [data, limits] = await Promise.all([get(`${path}/timeline`, { kind, first, last, points, metric: METRICS, attempt }, signal), this.limits?.run === run.run ? this.limits.found : get(`${path}/limits`, {}, signal)]);
    this.limits = { run: run.run, found: limits };
    this.data = data;
    this.kinds.replaceChildren(kindPicker(kind));
    this.log.setAttribute("aria-pressed", String(log !== "0"));
    this.reset.disabled = first === null;
    const span = data.last.length ? data.last.at(-1) - data.first[0] + 1 : 0;
    this.note.textContent = data.first.length ? `steps ${count(data.first[0])} to ${count(data.last.at(-1))}${data.width > 1 ? `, ${count(data.width)} to a point, extremes kept` : ""}` : "no step of this kind here";
    const marks = { changes: changes(data), syncs: [] };
    const draw = () => {
      for (const spec of this.charts) {
        const own = limits[kind] ?? limits.overall;
        spec.chart.show(data, { limits: own?.[spec.limit] ?? {}, marks, log: log !== "0", range: [first, last] });
        spec.table.refresh();
      }
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

  redraw() { for (const { chart } of this.charts) chart.redraw(); }
  destroy() { for (const { chart } of this.charts) chart.destroy(); }
}

const rowsOf = (data) => (data?.first ?? []).map((first, index) => ({
  first, last: data.last[index],
  low: Object.fromEntries(Object.entries(data.low).map(([name, values]) => [name, values[index]])),
  high: Object.fromEntries(Object.entries(data.high).map(([name, values]) => [name, values[index]])),
}));

const changes = (data) => data.severity.map((severity, index) => ({ severity, step: data.first[index] })).filter((change, index) => index > 0 && change.severity !== data.severity[index - 1]);

function hovered(data, spec, at) {
  const where = data.first[at] === data.last[at] ? `step ${count(data.first[at])}` : `steps ${count(data.first[at])}–${count(data.last[at])}`;
  return `${where}: ${spec.lines.map(({ metric, name }) => `${name.split(" ")[0]} ${figure(data.high[metric][at])}`).join(" · ")}`;
}

function legend() {
  return h("span", { className: "keyline" }, h("span", {}, "┄ limit"), h("span", {}, "│ severity changed"), h("span", {}, "▴ new weights"), h("span", {}, "drag to zoom"));
}
