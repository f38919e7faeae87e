// In what the configurations of runs differ.

import { csvButton, table } from "../table.js";
import { h, panel } from "../dom.js";

/** Every value with its path, as text. */
function flat(value, path = "") {
  if (value === null || typeof value !== "object") return [[path, String(value)]];
  const entries = Object.entries(value);
  return entries.length ? entries.flatMap(([name, one]) => flat(one, path ? `${path}.${name}` : name)) : [[path, "none"]];
}

export function configurations(runs) {
  const all = runs.map(({ config }) => new Map(flat(config)));
  const paths = [...new Set(all.flatMap((one) => [...one.keys()]))].filter((path) => path !== "run");
  const rows = paths.map((path) => ({ path, values: all.map((one) => one.get(path) ?? "–") })).filter(({ values }) => new Set(values).size > 1);
  const columns = [{ name: "setting", of: (row) => row.path }, ...runs.map(({ run }, index) => ({ name: run, of: (row) => row.values[index] }))];
  return panel("In what their configurations differ", rows.length ? csvButton("configurations", columns, () => rows) : null, rows.length ? table(columns, rows, { caption: "Configurations" }) : h("p", { className: "quiet" }, "in nothing but their names"));
}
