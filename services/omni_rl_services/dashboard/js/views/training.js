// What trainers post with a step (reward, kl, clipped …), and the effective sample size, which is ours.

import { ChartPanel } from "../chartpanel.js";
import { Panels } from "../panels.js";
import { figure } from "../format.js";
import { go, place } from "../place.js";
import { h } from "../dom.js";
import { picker } from "./pickers.js";
import { titleOf, what } from "../metrics.js";

const FIRST = ["reward", "held_out_reward", "kl", "clipped", "clip_fraction", "staleness", "ess"]; // what a reader looks for; the others follow
const SMOOTH = [{ value: "", name: "as posted" }, { value: "0.9", name: "smoothed over 10 steps" }, { value: "0.99", name: "smoothed over 100 steps" }];

export class TrainingFigures {
  constructor() {
    this.panels = new Panels();
    this.bar = h("div", { className: "bar" });
    this.box = h("section", { "aria-label": "Reward and training", className: "stacked", hidden: true }, this.bar, this.panels.box);
  }

  /** `lines`: steps in order; `range` and `clock` as for `Chart.show`. */
  show(lines, { range, clock }) {
    const of = (name) => (line) => (name === "ess" ? line.figures.ess : line.training[name]);
    const names = lines.length ? [...new Set(["ess", ...lines.flatMap((line) => Object.keys(line.training))])].sort((a, b) => order(a) - order(b) || a.localeCompare(b)) : [];
    this.box.hidden = !names.length;
    const smooth = place().smooth ?? "";
    const now = JSON.stringify([Boolean(names.length), smooth]);
    if (this.offered !== now) this.bar.replaceChildren(...(names.length ? [h("h2", {}, "Reward and training"), picker("smooth", "drawn", SMOOTH, smooth)] : []));
    this.offered = now;
    const panels = this.panels.show(names.map((name) => ({ key: name, make: () => chartOf(name) })));
    const steps = lines.map((line) => line.step);
    const sealed = lines.map((line) => line.sealed);
    names.forEach((name, index) => {
      const values = smoothed(lines.map(of(name)), Number(smooth));
      panels[index].show({ first: steps, last: steps, sealed, low: { [name]: values }, high: { [name]: values } }, { log: false, range, clock });
    });
  }

  redraw() { this.panels.redraw(); }
  destroy() { this.panels.clear(); this.bar.replaceChildren(); this.offered = null; }
}

const order = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

/** An exponential moving average, without the pull to 0 of its beginning; where there is no number there is a gap. */
function smoothed(values, decay) {
  if (!decay) return values;
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    [sum, weight] = [decay * sum + value, decay * weight + 1];
    return sum / weight;
  });
}

function chartOf(name) {
  const columns = [{ name: "step", of: (row) => row.first, right: true }, { name, of: (row) => row.high[name], show: figure, right: true }];
  return new ChartPanel({ title: titleOf(name), what: what(name), file: name, lines: [{ metric: name, name, colour: "s1" }], columns, pick: (step) => go({ view: "what", step, sample: null }) });
}
