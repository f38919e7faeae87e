// What a chart has besides its lines: limits, changes of severity, and where the weights changed.

import { SEVERITIES } from "./limits.js";
import { SIGNS, round } from "./format.js";

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const APART = 13; // pixels between two names of limits

/** Drawn over `plot` when its lines are. `limits`: by name; `axis`: where a step lies; `marks`: { changes: [{ step, severity }], weights: [step], moments: [{ step, sign, colour }] }. */
export function annotate(plot, { limits, marks, shift, axis }) {
  const pen = plot.ctx;
  const { left, top, width, height } = plot.bbox;
  const x = (step) => plot.valToPos(axis.of(step), "x", true);
  const shown = SEVERITIES.map((name) => ({ name, value: limits[name] - shift })).filter(({ value }) => value <= plot.scales.y.max && value >= plot.scales.y.min).map((limit) => ({ ...limit, y: plot.valToPos(limit.value, "y", true) }));
  pen.save();
  Object.assign(pen, { lineWidth: devicePixelRatio, font: `${11 * devicePixelRatio}px system-ui, sans-serif`, textBaseline: "middle", textAlign: "left" });
  nameLimits(pen, shown, shift, left + width + 7 * devicePixelRatio);
  pen.beginPath();
  pen.rect(left, top - 14 * devicePixelRatio, width, height + 14 * devicePixelRatio);
  pen.clip();
  pen.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
  for (const { name, y } of shown) {
    pen.strokeStyle = colour(name);
    const at = crisp(pen, y);
    line(pen, left, at, left + width, at);
  }
  pen.setLineDash([]);
  pen.textAlign = "center";
  const rank = ({ severity }) => Object.keys(SIGNS).indexOf(severity);
  for (const { step, severity } of [...marks.changes].sort((a, b) => rank(a) - rank(b))) { // the worse on top
    const at = crisp(pen, x(step));
    pen.strokeStyle = pen.fillStyle = colour(severity);
    pen.globalAlpha = 0.5; // a spike shows through
    line(pen, at, top, at, top + height);
    pen.globalAlpha = 1;
    pen.fillText(SIGNS[severity][0], at, top - 7 * devicePixelRatio);
  }
  pen.fillStyle = colour("quiet");
  for (const step of marks.weights) triangle(pen, x(step), top + height);
  for (const { step, sign, colour: name, above } of stacked(marks.moments)) {
    pen.fillStyle = colour(name);
    pen.fillText(sign, x(step), top + height - (15 + 12 * above) * devicePixelRatio);
  }
  pen.restore();
}

/** Beside the plot, each at its line's height, or below the one that is there already. */
function nameLimits(pen, limits, shift, x) {
  let free = -Infinity;
  for (const { name, value, y } of [...limits].sort((a, b) => a.y - b.y)) {
    const at = Math.max(y, free);
    free = at + APART * devicePixelRatio;
    pen.fillStyle = colour(name);
    pen.fillText(`${name} ${round(value + shift)}`, x, at);
  }
}

/** Signs at one step stand above each other. */
function stacked(moments) {
  const at = new Map();
  return moments.map((moment) => {
    const above = at.get(moment.step) ?? 0;
    at.set(moment.step, above + 1);
    return { ...moment, above };
  });
}

function triangle(pen, x, bottom) {
  pen.beginPath();
  pen.moveTo(x, bottom - 7 * devicePixelRatio);
  pen.lineTo(x - 4 * devicePixelRatio, bottom);
  pen.lineTo(x + 4 * devicePixelRatio, bottom);
  pen.fill();
}

/** On whole pixels: between two of them a line is pale in both. */
const crisp = (pen, at) => Math.round(at) + (pen.lineWidth % 2) / 2;

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}
