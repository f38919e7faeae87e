// Where the drift is: kind of prompt against position in the answer, and MoE layer against step.

import { behind, csvButton } from "../table.js";
import { empty, h, panel } from "../dom.js";
import { count, figure } from "../format.js";
import { get, segment } from "../api.js";
import { go, place } from "../place.js";
import { heatmap } from "../heatmap.js";
import { KINDS, picker, stepPicker } from "./pickers.js";

const FIGURES = ["logprob_abs_diff_mean", "logprob_abs_diff_p99", "logprob_abs_diff_max", "gen_kl_error", "token_mult_prob_error", "router_flips"];
const STEPS = 32; // columns of layer against step

export class WhereView {
  constructor(box) { this.box = box; }

  async load(run, signal) {
    if (!run || run.step === null) return this.box.replaceChildren(h("section", { className: "panel" }, empty("No step yet", "Heat maps come with the first sealed step.")));
    const { metric = FIGURES[0], attempt = run.attempt } = place();
    const step = Number(place().step ?? run.step);
    const path = `/v1/runs/${segment(run.run)}`;
    const lines = await get(`${path}/steps`, { after: Math.max(-1, step - STEPS), limit: STEPS, attempt }, signal);
    const of = (one) => get(`${path}/attempts/${attempt}/steps/${one}`, {}, signal);
    const steps = await Promise.all(lines.filter((line) => line.step <= step).map((line) => of(line.step)));
    const found = steps.find((one) => one.verdict.step === step) ?? (await of(step));
    this.box.replaceChildren(h("div", { className: "bar" }, stepPicker(step, run.step), picker("metric", "figure", FIGURES, metric)), byPosition(found, metric), byLayer(steps));
  }
}

function byPosition(step, metric) {
  const kinds = KINDS.filter((kind) => kind in step.positions);
  const bins = new Map();
  for (const list of Object.values(step.positions)) for (const bin of list) bins.set(bin.first, { first: bin.first, name: `${bin.first}–${bin.last - 1}`, title: `answer positions ${bin.first} to ${bin.last - 1}` });
  const columns = [...bins.values()].sort((a, b) => a.first - b.first);
  const of = (row, column) => step.positions[row.name].find((bin) => bin.first === column.first)?.figures[metric] ?? null;
  const rows = kinds.map((name) => ({ name }));
  const flat = rows.flatMap((row) => columns.map((column) => ({ kind: row.name, bin: column.name, value: of(row, column) })));
  const shown = [{ name: "kind", of: (row) => row.kind }, { name: "positions", of: (row) => row.bin }, { name: metric, of: (row) => row.value, show: figure, right: true }];
  return panel(`Kind × position in the answer, step ${count(step.verdict.step)}`, csvButton("positions", shown, () => flat),
    heatmap({ rows, columns, of, label: `${metric} by kind and position` }), behind(shown, () => flat, "Kind by position"));
}

function byLayer(steps) {
  const title = "Router flips: MoE layer × step";
  const known = steps.filter((one) => one.flips !== null);
  if (!known.length) return panel(title, null, empty("No router choices were posted", "With rollout_experts, train_experts and margins in the records, flips of every layer are counted here."));
  const layers = Math.max(...known.map((one) => one.flips.length));
  const rows = Array.from({ length: layers }, (_, layer) => ({ name: `layer ${layer}`, layer }));
  const columns = known.map((one) => ({ name: one.verdict.step, step: one }));
  const of = (row, column) => column.step.flips[row.layer] ?? null;
  const flat = rows.flatMap((row) => columns.map((column) => ({ layer: row.layer, step: column.name, flips: of(row, column) })));
  const shown = [{ name: "MoE layer", of: (row) => row.layer }, { name: "step", of: (row) => row.step }, { name: "flips", of: (row) => row.flips, right: true }];
  return panel(title, csvButton("flips", shown, () => flat), heatmap({ rows, columns, of, label: "Router flips by layer and step", show: count, pick: (row, column) => go({ step: column.name }) }), behind(shown, () => flat, "Router flips"));
}
