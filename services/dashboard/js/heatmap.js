// A heat map of cells that carry their number: colour helps, and is not needed.

import { h } from "./dom.js";
import { figure } from "./format.js";

const CLASSES = 4;

/** 0 to 4 for a value between the least and the greatest positive one, on a log scale. */
export function heat(value, low, high) {
  if (!(value > 0)) return 0;
  if (!(high > low)) return 2;
  return 1 + Math.min(CLASSES - 1, Math.floor((CLASSES * Math.log(value / low)) / Math.log(high / low)));
}

/** `of(row, column)`: a number or null. `label` tells what it is. */
export function heatmap({ rows, columns, of, label, show = figure, pick }) {
  let low = Infinity;
  let high = -Infinity;
  for (const row of rows) {
    for (const column of columns) {
      const value = of(row, column);
      if (value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  const grid = h("div", { className: "heat", role: "table", "aria-label": label, style: { gridTemplateColumns: `max-content repeat(${columns.length}, minmax(40px, 1fr))` } });
  const across = (children) => h("div", { role: "row", style: { display: "contents" } }, ...children);
  grid.append(across([h("span", { className: "name", role: "columnheader" }, ""), ...columns.map((column) => h("span", { className: "top-name", role: "columnheader" }, String(column.name)))]));
  for (const row of rows) {
    const cells = columns.map((column) => {
      const value = of(row, column);
      const text = value === null || value === undefined ? "" : show(value);
      const tip = `${row.name}, ${column.title ?? column.name}: ${text || "nothing"}`;
      return h("span", { className: "cell", role: "cell", title: tip, data: { heat: heat(value, low, high) }, onclick: pick && (() => pick(row, column)) }, text);
    });
    grid.append(across([h("span", { className: "name", role: "rowheader" }, String(row.name)), ...cells]));
  }
  return h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, scrolls` }, grid);
}
