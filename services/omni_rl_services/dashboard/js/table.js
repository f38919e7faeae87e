// A table of plain cells, with its CSV; and the one that stands behind a chart.

import { h } from "./dom.js";
import { saveCsv } from "./save.js";
import { count, figure } from "./format.js";
import { place } from "./place.js";

const MOST = 500;

/** `columns`: [{ name, of(row), show?(value, row), right?, tight? }], tight: never broken into lines; `pick(row)` makes rows buttons, `chosen(row)` marks one. */
export function table(columns, rows, { pick, chosen, caption } = {}) {
  const heading = columns.map((column) => h("th", { scope: "col", className: column.right ? "right" : "" }, column.name));
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
