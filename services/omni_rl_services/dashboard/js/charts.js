// Lines over steps, or over time. Each bucket of steps is drawn from its least to its greatest value, so no spike is lost.

/* global uPlot */
import { h } from "./dom.js";
import { annotate, colour } from "./marks.js";
import { axisOf, ticksOf } from "./axis.js";
import { SEVERITIES } from "./limits.js";
import { round } from "./format.js";

const [HEIGHT, TALL] = [210, 270]; // as the style sheet has them
const [TOP, SIDE, GUTTER] = [16, 18, 76]; // above, beside, and beside where limits are named

/** Columns of a timeline for uPlot: [x, low, high, low, high …]. On a log scale what is 0 lies on the floor. */
export function columns(timeline, metrics, shift, log, at = timeline.first) {
  const all = metrics.flatMap((metric) => [timeline.low[metric] ?? [], timeline.high[metric] ?? []]);
  const missing = (value) => value === null || value === undefined; // null breaks a line, undefined does not
  const moved = all.map((values) => values.map((value) => (missing(value) ? value : value - shift)));
  if (!log) return [at, ...moved];
  let floor = Infinity;
  for (const values of moved) for (const value of values) if (value > 0 && value < floor) floor = value;
  if (floor === Infinity) floor = 1e-9;
  return [at, ...moved.map((values) => values.map((value) => (missing(value) ? value : Math.max(value, floor / 2))))];
}

/**
 * A chart that shares its brush and its cursor with all others.
 * `lines`: [{ metric, name, colour, dash? }]; `zoom(first, last)` is called with what was dragged over.
 */
export class Chart {
  constructor({ title, lines, shift = 0, zoom, pick, tall = false }) {
    Object.assign(this, { title, lines, shift, zoom, pick, height: tall ? TALL : HEIGHT });
    this.box = h("div", { className: `chart${tall ? " tall" : ""}`, role: "img", "aria-label": `${title} over steps; the table below has the numbers` });
    this.limits = {};
    this.marks = { weights: [], changes: [], moments: [] };
    this.observer = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth || 300, height: this.height }));
    this.observer.observe(this.box);
  }

  /** Draw a timeline; a change of scale or of columns makes the plot anew, everything else moves it. */
  show(timeline, { limits = {}, marks, log, range, clock = false }) {
    Object.assign(this, { timeline, limits, log, range, clock });
    this.marks = marks ?? this.marks;
    this.axis = axisOf(timeline, clock);
    const data = columns(timeline, this.lines.map((line) => line.metric), this.shift, log, this.axis.at);
    const made = `${log} ${clock} ${Object.keys(limits).length}`;
    if (this.plot && this.made === made) {
      this.plot.setData(data);
      return;
    }
    this.plot?.destroy();
    this.made = made;
    this.plot = new uPlot(this.options(), data, this.box);
  }

  redraw() {
    if (!this.plot) return;
    this.made = null;
    this.show(this.timeline, this);
  }

  destroy() {
    this.observer.disconnect();
    this.plot?.destroy();
  }

  options() {
    const ink = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { stroke: () => colour("line") }, font: "11px system-ui, sans-serif" };
    const series = this.lines.flatMap((line) => [
      { label: `${line.name} (least)`, stroke: () => colour(line.colour), width: 1, dash: line.dash, points: { show: false } },
      { label: line.name, stroke: () => colour(line.colour), width: 1.6, dash: line.dash, points: { show: (plot) => plot.data[0].length < 60, size: 4 } },
    ]);
    const bands = this.lines.map((line, index) => ({ series: [2 * index + 2, 2 * index + 1], fill: () => `${colour(line.colour)}44` }));
    return {
      width: this.box.clientWidth || 300,
      height: this.height,
      padding: [TOP, Object.keys(this.limits).length ? GUTTER : SIDE, null, null],
      legend: { show: false },
      cursor: { sync: { key: this.clock ? "clock" : "steps" }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: this.clock, range: (plot, low, high) => this.across(low, high) }, y: { distr: this.log ? 3 : 1, range: (plot, low, high) => this.up(low, high) } },
      axes: [
        { ...ink, ...ticksOf(this.clock), size: 28, labelSize: 14, labelGap: 0, labelFont: ink.font },
        { ...ink, ...(this.log ? { grid: { ...ink.grid, filter: decades }, ticks: { ...ink.ticks, filter: decades }, filter: decades } : {}), size: 62, values: (plot, ticks) => ticks.map((tick) => (tick === null ? "" : round(tick))) },
      ],
      series: [{ label: this.clock ? "sealed" : "step" }, ...series],
      bands,
      hooks: {
        setSelect: [(plot) => this.selected(plot)],
        draw: [(plot) => annotate(plot, this)],
        ready: [(plot) => plot.over.addEventListener("click", () => this.clicked(plot))],
        setCursor: [(plot) => this.hover?.(plot.cursor.idx)],
      },
    };
  }

  across(low, high) {
    if (this.range && this.range[0] !== null && !this.clock) return this.range;
    const room = Math.max(this.clock ? 1 : 0.2, ((high ?? 1) - (low ?? 0)) * 0.015);
    return [(low ?? 0) - room, (high ?? 1) + room];
  }

  /** The data, and the first limit above it, so that one sees how far there is to go. */
  up(low, high) {
    if (low === null || high === null) return this.log ? [1e-9, 1] : [0, 1];
    const above = SEVERITIES.map((name) => this.limits[name] - this.shift).find((limit) => limit > high);
    const near = above !== undefined && (this.log ? above < high * 300 : above < high * 4);
    const top = near ? above : high;
    if (this.log) return [low / 1.6, top * 3];
    const room = (top - Math.min(0, low)) * 0.08 || 1e-9;
    return [Math.min(0, low), top + room];
  }

  selected(plot) {
    if (plot.select.width < 4) return;
    const found = this.axis.steps(...[0, plot.select.width].map((beyond) => plot.posToVal(plot.select.left + beyond, "x")));
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.dragged = true;
    if (found) this.zoom(found[0], Math.max(found[1], found[0] + 1));
  }

  clicked(plot) {
    const dragged = this.dragged;
    this.dragged = false;
    const at = plot.cursor.idx;
    if (!dragged && at !== null && at !== undefined) this.pick(this.timeline.first[at], this.timeline.last[at]);
  }
}

/** Lines at powers of ten; where fewer than two of them are in view, at twice and five times each as well. */
function decades(plot, ticks) {
  const only = (mantissas) => ticks.map((tick) => (mantissas.includes(Number((tick / 10 ** Math.floor(Math.log10(tick) + 1e-9)).toPrecision(6))) ? tick : null));
  const powers = only([1]);
  return powers.filter((tick) => tick !== null).length > 1 ? powers : only([1, 2, 5]);
}
