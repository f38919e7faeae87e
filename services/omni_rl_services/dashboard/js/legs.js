// The difference taken apart: trainer, prefill, decode, batch and float32 reference against each other, side by side.

import { behind, csvButton } from "./table.js";
import { figure, words } from "./format.js";
import { h, said } from "./dom.js";
import { heatPng, heatmap, sizeKey } from "./heatmap.js";
import { pictureOf } from "./picture.js";
import { pngButton } from "./save.js";

const MEAN = "logprob_abs_diff_mean";
const MAX = "logprob_abs_diff_max";
const LEGS = ["train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"];
const WORST = "worst kind"; // evidence has a leg's mean of the kind of prompt that is furthest apart
const SIDES = { train_mean: "trainer vs float32", engine_mean: "engine vs float32" };

/** Rows { kind, leg, mean, max } of a check's legs by kind; what only its evidence tells has no max. null: not a number. */
export function legRows(legs, evidence) {
  const rows = Object.entries(legs).flatMap(([leg, kinds]) => Object.entries(kinds).filter(([, found]) => found.tokens !== 0).map(([kind, found]) => ({ kind, leg: words(leg), mean: found[MEAN], max: found[MAX] })));
  const told = evidence.filter((entry) => LEGS.includes(entry.check) && !(entry.check in legs) && entry.mean !== undefined);
  rows.push(...told.map((entry) => ({ kind: WORST, leg: words(entry.check), mean: entry.mean })));
  for (const entry of evidence.filter((one) => one.check === "reference")) {
    for (const [side, name] of Object.entries(SIDES)) if (entry[side] !== undefined) rows.push({ kind: entry.modalities?.[0] ?? WORST, leg: name, mean: entry[side] });
  }
  return rows;
}

/** Bars of the means by leg and kind, with the greatest token as a mark; null where nothing was taken apart. */
export function legBars(rows, name) {
  if (!rows.length) return null;
  const legs = [...new Set(rows.map((row) => row.leg))];
  const kinds = [...new Set(rows.map((row) => row.kind))];
  const sizes = rows.flatMap((row) => [row.mean, row.max]).filter((value) => value > 0);
  const [low, high] = [Math.min(...sizes) / 10, Math.max(...sizes)];
  const place = (value) => `${value > 0 ? (100 * Math.log(value / low)) / Math.log(high / low) : 0}%`;
  const across = (children) => h("div", { role: "row", style: { display: "contents" } }, ...children);
  const grid = h("div", { className: "legs", role: "table", "aria-label": "Legs by kind of prompt", style: { gridTemplateColumns: `max-content repeat(${legs.length}, minmax(112px, 1fr))` } });
  grid.append(across([h("span", { role: "columnheader" }, said("kind")), ...legs.map((leg) => h("span", { className: "quiet", role: "columnheader" }, leg))]));
  for (const kind of kinds) grid.append(across([h("span", { className: "quiet", role: "rowheader" }, kind), ...legs.map((leg) => cell(rows.find((row) => row.kind === kind && row.leg === leg), place))]));
  const columns = [{ name: "kind", of: (row) => row.kind }, { name: "leg", of: (row) => row.leg }, { name: "mean abs d", of: (row) => row.mean, show: figure, right: true }, { name: "max abs d", of: (row) => row.max, show: figure, right: true }];
  return h("div", {}, h("div", { className: "bar" }, h("h3", {}, "Legs: mean abs d, nats"), h("span", { className: "keyline" }, h("span", {}, h("i", { className: "swatch", style: { borderColor: "var(--s1)" } }), "mean"), h("span", {}, h("i", { className: "swatch", style: { borderColor: "var(--s2)" } }), "greatest token"), h("span", {}, "logarithmic")), h("span", { className: "tools" }, csvButton(name, columns, () => rows), pngButton(name, "Legs", () => pictureOf(grid)))),
    h("div", { className: "scroll", tabindex: "0", role: "region", "aria-label": `Legs by kind of prompt, ${name}, scrolls` }, grid), behind(columns, () => rows, "Legs"));
}

function cell(row, place) {
  if (!row) return h("span", { role: "cell" }, "");
  const broken = row.mean === null;
  const text = figure(row.mean);
  const title = `${row.kind}, ${row.leg}: mean ${text}${row.max === undefined ? "" : `, greatest ${figure(row.max)}`}`;
  return h("span", { className: "leg", role: "cell", title },
    h("span", { className: "track" }, h("span", { className: "fill", style: { width: broken ? "100%" : place(row.mean) } }), row.max > 0 ? h("span", { className: "most", style: { left: place(row.max) } }) : null),
    h("span", { className: "num" }, text));
}

/** The legs of one answer to the probe, token by token; null where there is none of that kind. */
export function legTokens(answers, kind, name) {
  const answer = answers.find((one) => one.kind === kind) ?? answers[0];
  if (!answer) return null;
  const rows = Object.keys(answer.legs).map((leg) => ({ name: words(leg), d: answer.legs[leg] }));
  const columns = rows[0].d.map((_, at) => ({ name: at, at, title: `token ${at}` }));
  const of = (row, column) => (row.d[column.at] === null ? null : Math.abs(row.d[column.at]));
  const flat = columns.map(({ at }) => ({ at, ...Object.fromEntries(rows.map((row) => [row.name, row.d[at]])) }));
  const shown = [{ name: "token", of: (row) => row.at, right: true }, ...rows.map((leg) => ({ name: leg.name, of: (row) => row[leg.name], show: figure, right: true }))];
  const map = heatmap({ rows, columns, of, label: "Legs by token", show: brief, tip: (row, column) => `d ${figure(row.d[column.at])}` });
  return h("div", {}, h("div", { className: "bar" }, h("h3", {}, `The probe's ${answer.kind} answer, token by token: abs d of each leg, nats`), h("span", { className: "tools" }, csvButton(name, shown, () => flat), heatPng(name, "Legs by token", map))),
    sizeKey(), map, behind(shown, () => flat, "Legs by token"));
}

/** One digit and a power: a column a token leaves room for no more. */
const brief = (value) => (value === 0 ? "0" : value >= 0.01 ? String(Number(value.toPrecision(1))) : value.toExponential(0).replace("e-", "e−"));
