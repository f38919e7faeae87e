// Where the drift is: kind of prompt against position in the answer, MoE layer against step, module against check.

import { behind, csvButton } from "../table.js";
import { empty, failure, h, panel } from "../dom.js";
import { count, figure } from "../format.js";
import { DRIFT, titleOf, what } from "../metrics.js";
import { get, segment, told } from "../api.js";
import { stepInView } from "../attempts.js";
import { checkButton } from "./checks.js";
import { heatPng, heatmap, keyOf, sizeKey } from "../heatmap.js";
import { limitsOf, ofKind, shadeBy } from "../limits.js";
import { picker, shownKinds, stepPicker } from "./pickers.js";
import { link, place } from "../place.js";
import { changed, renew } from "../renew.js";
import { profileCsv, profileMap, profileOf, profileTable } from "../profile.js";

const FIGURES = [...DRIFT, "router_flips"];
const STEPS = 32; // columns of layer against step
const CHECKS = 100; // looked through for profiles
const PROFILES = 24; // columns of module against check

export class WhereView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const checked = get("/v1/checks", { limit: CHECKS }, signal);
    const [steps, checks, limits] = await Promise.all([this.steps(run, signal), checked, run && limitsOf(run.run, signal)]);
    if (changed(this, run?.step, run?.kinds, steps, steps?.found.message, checks)) renew(this.box, ...this.ofSteps(run, steps, limits), this.told, byModule(checks, this.told));
  }

  /** The step that is looked at, and those before it; null before the first. */
  async steps(run, signal) {
    if (!run || run.step === null) return null;
    const { attempt, step } = await stepInView(run, signal);
    const path = `/v1/runs/${segment(run.run)}`;
    const lines = await get(`${path}/steps`, { after: Math.max(-1, step - STEPS), limit: STEPS, attempt }, signal);
    const of = (one) => get(`${path}/attempts/${attempt}/steps/${one}`, {}, signal);
    const steps = await Promise.all(lines.filter((line) => line.step <= step).map((line) => of(line.step)));
    const found = steps.find((one) => one.verdict.step === step) ?? (await of(step).catch(told));
    return { step, found, steps };
  }

  ofSteps(run, looked, limits) {
    if (looked === null) return [h("section", { className: "panel" }, empty("No step yet", "Heat maps come with the first sealed step.", "omni-rl demo --serve"))];
    const { metric = FIGURES[0] } = place();
    const { step, found, steps } = looked;
    if (found instanceof Error) return [h("div", { className: "bar" }, stepPicker(step, run.step)), failure(found)];
    return [h("div", { className: "bar" }, stepPicker(found.verdict.step, run.step), picker("metric", "figure", keptOf(found), metric)), byPosition(found, metric, shownKinds(run), limits), byLayer(steps)];
  }
}

/** The figures that are kept by position. */
function keptOf(step) {
  const [bin] = Object.values(step.positions).flat();
  return bin ? FIGURES.filter((name) => name in bin.figures) : FIGURES;
}

function byPosition(step, metric, offered, limits) {
  const kinds = offered.filter((kind) => kind in step.positions);
  const bins = new Map();
  for (const list of Object.values(step.positions)) for (const bin of list) bins.set(bin.first, { first: bin.first, name: `${bin.first}–${bin.last - 1}`, title: `answer positions ${bin.first} to ${bin.last - 1}` });
  const columns = [...bins.values()].sort((a, b) => a.first - b.first);
  const of = (row, column) => {
    const bin = step.positions[row.name].find((one) => one.first === column.first);
    return bin?.figures.tokens === 0 ? undefined : bin?.figures[metric];
  };
  const rows = kinds.map((name) => ({ name }));
  const flat = rows.flatMap((row) => columns.map((column) => ({ kind: row.name, bin: column.name, value: of(row, column) })));
  const shown = [{ name: "kind", of: (row) => row.kind }, { name: "positions", of: (row) => row.bin }, { name: metric, of: (row) => row.value, show: figure, right: true }];
  const limited = kinds.some((kind) => metric in ofKind(limits, kind));
  const shade = limited ? (value, row) => shadeBy(ofKind(limits, row.name)[metric])(value) : undefined;
  const map = heatmap({ rows, columns, of, label: `${metric} by kind and position`, shade });
  const title = `Kind × position in the answer, step ${count(step.verdict.step)}: ${titleOf(metric)}`;
  return panel(h("span", { className: "explained", title: what(metric) }, title), [csvButton("positions", shown, () => flat), heatPng("positions", "Kind by position", map)],
    limited ? limitKey() : sizeKey(), map, behind(shown, () => flat, "Kind by position"));
}

const limitKey = () => keyOf([[0, "below a tenth of the first limit"], [-1, "up to it"], [2, "over warn"], [3, "over mask"], [4, "over pause"]], "limits are of each kind's own; a few tokens lie further apart than the whole kind");

function byLayer(steps) {
  const title = "Router flips, tokens: MoE layer × step";
  const known = steps.filter((one) => one.flips !== null);
  if (!known.length) return panel(title, null, empty("No router choices were posted", "With rollout_experts, train_experts and margins in the records, flips of every layer are counted here."));
  const layers = Math.max(...known.map((one) => one.flips.length));
  const rows = Array.from({ length: layers }, (_, layer) => ({ name: `layer ${layer}`, layer }));
  const columns = known.map((one) => ({ name: one.verdict.step, title: `step ${count(one.verdict.step)}`, step: one, href: link({ step: one.verdict.step }) }));
  const of = (row, column) => column.step.flips[row.layer];
  const flat = rows.flatMap((row) => columns.map((column) => ({ layer: row.layer, step: column.name, flips: of(row, column) })));
  const shown = [{ name: "MoE layer", of: (row) => row.layer }, { name: "step", of: (row) => row.step }, { name: "flips", of: (row) => row.flips, right: true }];
  const map = heatmap({ rows, columns, of, label: "Router flips by layer and step", show: count });
  return panel(title, [csvButton("flips", shown, () => flat), heatPng("flips", "Router flips", map)], sizeKey(), map, behind(shown, () => flat, "Router flips"));
}

function byModule(checks, told) {
  const title = "Profiles: module × check, difference over its noise band";
  const ask = checkButton("Compare every module now", { legs: false, localise: true }, told);
  const found = checks.filter((check) => profileOf(check).size).slice(0, PROFILES).reverse();
  if (!found.length) return panel(title, ask, empty("No profile yet", "A check that compares the outputs of every module on both sides leaves one here: with the button, or from a terminal. A search for a cause does too, if it comes that far.", "omni-rl check --localise"));
  const map = profileMap(found);
  return panel(title, [ask, profileCsv(found, "modules"), heatPng("modules", "Modules", map)], map, profileTable(found));
}
