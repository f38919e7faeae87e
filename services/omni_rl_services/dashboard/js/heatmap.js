// A heat map of cells that carry their number: colour helps, and is not needed.

import { h, said } from "./dom.js";
import { NOT_A_NUMBER, figure } from "./format.js";
import { pictureOf } from "./picture.js";
import { pngButton } from "./save.js";

const CLASSES = 4;

/** 0 to -4 for a value between the least and the greatest positive one, on a log scale: blue, which says more or less and not that something is wrong. */
export function heat(value, low, high) {
  if (!(value > 0)) return 0;
  if (!(high > low)) return -2;
  return -1 - Math.min(CLASSES - 1, Math.floor((CLASSES * Math.log(value / low)) / Math.log(high / low)));
}

/** What the shades of a map mean: `entries` of `[level, name]`, `marked(level)` as in the map. */
export const keyOf = (entries, more, marked = () => false) => h("div", { className: "keyline" }, ...entries.map(([level, name]) => h("span", {}, h("span", { className: `cell-key${marked(level) ? " marked" : ""}`, data: { heat: level } }), ` ${name}`)), h("span", {}, more));

/** Of a map without limits. */
export const sizeKey = () => keyOf([[0, "none"], [-1, "the least here"], [-4, "the most here"]], "no limit is set of this: a shade says more or less, not good or bad");

/**
 * `of(row, column)`: a number, null for one that is not a number, or undefined where there is none. `label` tells what it is. A column's `href` is where its heading, and a click on
 * its cells, lead to. `shade(value, row)`: its level, if not by its place between the least and the greatest. `tip(row,
 * column)`: what is told of a cell beside its number. `mark(value)`: whether it is outlined.
 */
export function heatmap({ rows, columns, of, label, show = figure, shade, tip, mark }) {
  let low = Infinity;
  let high = -Infinity;
  for (const row of rows) {
    for (const column of columns) {
      const value = of(row, column);
      if (value > 0 && value < Infinity) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  const level = shade ?? ((value) => heat(value, low, high));
  const grid = h("div", { className: "heat", role: "table", "aria-label": label, style: { gridTemplateColumns: `max-content repeat(${columns.length}, minmax(40px, 150px))` } });
  const across = (children) => h("div", { role: "row", style: { display: "contents" } }, ...children);
  const heading = (column) => h("span", { className: "top-name", role: "columnheader", title: column.title }, column.href ? h("a", { href: column.href }, String(column.name)) : String(column.name));
  grid.append(across([h("span", { className: "name", role: "columnheader" }, said("row")), ...columns.map(heading)]));
  for (const row of rows) {
    const cells = columns.map((column) => {
      const value = of(row, column);
      const missing = value === undefined;
      const broken = value === null; // a cell has no room for the words, which its title has
      const text = missing ? "" : broken ? "nan" : show(value);
      const title = `${row.name}, ${column.title ?? column.name}: ${broken ? NOT_A_NUMBER : text || "nothing"}${tip && !missing ? `, ${tip(row, column)}` : ""}`;
      const leads = column.href && (() => { location.hash = column.href; });
      return h("span", { className: `cell${leads ? " leads" : ""}${broken || (!missing && mark?.(value)) ? " marked" : ""}`, role: "cell", title, data: { heat: missing ? 0 : broken ? CLASSES : level(value, row) }, onclick: leads }, text);
    });
    grid.append(across([h("span", { className: "name", role: "rowheader" }, String(row.name)), ...cells]));
  }
  return h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, scrolls` }, grid);
}

/** `map`: what `heatmap` made, or what it is in. */
export const heatPng = (file, title, map) => pngButton(file, title, () => pictureOf(map.querySelector(".heat")));
