// A table of plain cells, with its CSV; and the one that stands behind a chart.

import { h } from "./dom.js";
import { saveCsv } from "./save.js";
import { count, figure } from "./format.js";
import { go, place } from "./place.js";

const MOST = 500;

/** `columns`: [{ name, of(row), show?(value, row), right?, tight? }], tight: never broken into lines; `pick(row)` makes rows buttons, `chosen(row)` marks one; `order` of `inOrder` makes headings sort. */
export function table(columns, rows, { pick, chosen, caption, order } = {}) {
  const heading = columns.map((column) => headingOf(column, order));
  const body = rows.slice(0, MOST).map((row) => {
    const cells = columns.map((column) => {
      const value = column.of(row);
      const shown = column.show ? column.show(value, row) : (value ?? "–");
      return h("td", { className: column.right ? "right" : column.tight ? "tight" : "" }, shown instanceof Node ? shown : String(shown));
    });
    const act = pick && (() => pick(row));
    const keyed = pick && ((event) => { if (event.key === "Enter") act(); });
    return h("tr", { className: pick ? "pick-row" : "", tabindex: pick ? "0" : null, onclick: act, onkeydown: keyed, data: chosen?.(row) ? { chosen: "" } : {} }, ...cells);
  });
  const label = caption ?? "Table";
  return h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, ...heading)), h("tbody", {}, ...body)),
    rows.length > MOST ? h("p", { className: "quiet" }, `The first ${MOST} of ${count(rows.length)} rows; the CSV has all.`) : null);
}

/** Rows by the column that the address names, from the greatest down if it says so; a figure that is not a number is over all others. */
export function inOrder(columns, rows, order) {
  const [, down, name] = /^(-?)(.*)$/.exec(order);
  const column = columns.find((one) => one.name === name);
  if (!column) return rows;
  const of = (row) => column.of(row) ?? Infinity;
  const by = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a === b ? 0 : a - b);
  return rows.toSorted((a, b) => (down ? by(of(b), of(a)) : by(of(a), of(b))));
}

function headingOf({ name, right }, order) {
  const className = right ? "right" : "";
  if (order === undefined) return h("th", { scope: "col", className }, name);
  const [up, down] = [order === name, order === `-${name}`];
  const falls = right ? !down : up; // of numbers the greatest are looked for
  const act = () => go({ order: falls ? `-${name}` : name });
  return h("th", { scope: "col", className, "aria-sort": up ? "ascending" : down ? "descending" : null }, h("button", { type: "button", onclick: act }, name, up ? " ▴" : down ? " ▾" : ""));
}

/** A file lies among others' files: each of its rows says of which run it is. Null where the columns say so, or there are several. */
function ofRun(columns) {
  const { run, view } = place();
  return run && view !== "compare" && !columns.some((column) => column.name === "run") ? run : null;
}

export function csvButton(name, columns, rows) {
  const cell = (column, value) => (column.show === figure && value === null ? "nan" : value); // as spreadsheets' and statistics' readers know it
  const act = () => {
    const run = ofRun(columns);
    const [headings, before] = run ? [["run"], [run]] : [[], []];
    saveCsv(run ? `${run}-${name}` : name, [...headings, ...columns.map((column) => column.name)], rows().map((row) => [...before, ...columns.map((column) => cell(column, column.of(row)))]));
  };
  return h("button", { type: "button", className: "small", onclick: act, "aria-label": `${name} as CSV` }, "CSV");
}

/** Filled when it is opened: most readers look at the chart alone. */
export function behind(columns, rows, name) {
  const details = h("details", {}, h("summary", {}, "Table"));
  const fill = () => {
    details.querySelector(".scroll")?.remove();
    if (details.open) details.append(table(columns, rows(), { caption: `${name}, as a table` }));
  };
  details.addEventListener("toggle", fill);
  details.refresh = fill;
  return details;
}
