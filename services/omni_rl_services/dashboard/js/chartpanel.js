// A chart with all that belongs to it: the values under the pointer, what its lines are, its table, CSV and PNG.

import { behind, csvButton } from "./table.js";
import { Chart } from "./charts.js";
import { clock, count, figure } from "./format.js";
import { go } from "./place.js";
import { h, panel } from "./dom.js";
import { pngButton } from "./save.js";

/**
 * `what`: the figure explained, for whoever points at the title; `lines`: [{ metric, name, colour, dash? }]; `file`: the name of what is saved; `columns`: of its table, over rows
 * { first, last, low, high }; `pick(first, last)`: a click on a bucket of steps.
 */
export class ChartPanel {
  constructor({ title, what = null, file, lines, columns, shift, pick, tall = false }) {
    const zoom = (first, last) => go({ x: `${first}-${last}` });
    this.chart = new Chart({ title, lines, shift, zoom, pick, tall });
    const value = h("span", { className: "num hovered" });
    this.chart.hover = (at) => { value.textContent = at === null || at === undefined || !this.data ? "" : hovered(this.data, lines, at, this.chart); };
    const rows = () => rowsOf(this.data);
    this.table = behind(columns, rows, title);
    const names = lines.length > 1 ? lines.map((line) => h("span", {}, h("i", { className: `swatch${line.dash ? " dash" : ""}`, style: { borderColor: `var(--${line.colour})` } }), line.name)) : [];
    this.told = h("span", { className: "sign" });
    this.box = panel(h("span", { className: what ? "explained" : "", title: what }, title), [this.told, csvButton(file, columns, rows), pngButton(file, title, () => this.chart.plot.ctx.canvas)], this.chart.box, h("div", { className: "keyline" }, ...names, value), this.table);
  }

  /** What is wrong with it, beside the title. */
  tell(text, severity) {
    this.told.textContent = text;
    this.told.className = `sign ${severity ?? ""}`;
  }

  /** `options`: of `Chart.show`. */
  show(data, options) {
    this.data = data;
    this.chart.show(data, options);
    this.table.refresh();
  }

  redraw() { this.chart.redraw(); }
  destroy() { this.chart.destroy(); }
}

const rowsOf = (data) => (data?.first ?? []).map((first, index) => ({ first, last: data.last[index], low: at(data.low, index), high: at(data.high, index) }));
const at = (columns, index) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[index]]));

function hovered(data, lines, index, chart) {
  const [first, last] = [data.first[index], data.last[index]];
  const where = (first === last ? `step ${count(first)}` : `steps ${count(first)}–${count(last)}`) + (chart.clock ? `, sealed ${clock(data.sealed[index])}` : "");
  const then = chart.marks.moments.filter(({ step }) => first <= step && step <= last).map(({ sign, text }) => `${sign} ${text}`);
  return [`${where}: ${lines.map(({ metric, short, name }) => `${short ?? name} ${figure(data.high[metric]?.[index])}`).join(" · ")}`, ...then].join(" · ");
}
