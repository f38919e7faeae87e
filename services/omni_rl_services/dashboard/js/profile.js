// Profiles by module: how far the outputs of both sides lie apart, in units of what is noise there.

import { behind, csvButton } from "./table.js";
import { NOT_A_NUMBER, agreeing, clock, figure, version } from "./format.js";
import { h } from "./dom.js";
import { heatmap, keyOf } from "./heatmap.js";
import { link } from "./place.js";

/** Of one check by module: { relative, band, times }, of the sample furthest apart; null relative: not a number. */
export function profileOf(check) {
  const found = new Map();
  const samples = check.evidence.filter((entry) => entry.check === "localisation" && entry.modules).map((entry) => Object.entries(entry.modules));
  // The sample that ran the most modules gives their order: towers run on some kinds of prompt alone.
  samples.sort((a, b) => b.length - a.length);
  for (const [module, [relative, band]] of samples.flat()) {
    const times = relative === null ? Infinity : relative === 0 ? 0 : relative / band;
    if (!(found.get(module)?.times >= times)) found.set(module, { relative, band, times });
  }
  return found;
}

const show = (times) => (times === Infinity ? "∞" : figure(times)); // of a band of 0
const about = (check) => (check.step === null ? "the probe" : `step ${check.step} of ${check.run}`);

/** Grey: far inside the band. Blue: within ten times of it. Orange, outlined: outside. */
const shade = (times) => (times > 100 ? 4 : times > 10 ? 3 : times > 1 ? 2 : times > 0.1 ? -1 : 0);
const outside = (times) => times > 1;

/** Module against check, in the order of the forward and of time. `checks`: those with a profile, the oldest first. */
export function profileMap(checks) {
  const columns = checks.map((check) => ({
    check, found: profileOf(check), name: `#${check.check} ${check.step === null ? "probe" : `step ${check.step}`}`,
    title: `check ${check.check} of ${about(check)}, ${clock(check.at)}, weights ${version(check.version)}`, href: link({ view: "why", check: check.check }),
  }));
  const rows = [...new Set([...columns].sort((a, b) => b.found.size - a.found.size).flatMap((column) => [...column.found.keys()]))].map((name) => ({ name }));
  const of = (row, column) => { const found = column.found.get(row.name); return found?.relative === null ? null : found?.times; };
  const tip = (row, column) => { const { relative, band } = column.found.get(row.name); return `relative difference ${figure(relative)}, band ${figure(band)}`; };
  const key = keyOf([[0, "below a tenth of its band"], [-1, "up to its band"], [2, "over its band"], [3, "over 10 times"], [4, "over 100 times"]], "a check of policies that agree sets the bands, at four times what it found", (level) => level > 0);
  return h("div", { className: "many" }, key, heatmap({ rows, columns, of, label: "Difference over its band by module and check", show, shade, tip, mark: outside }));
}

/** How many modules of a check lie outside their bands, and which is the first in the order of the forward. */
export function profileSummary(check) {
  const found = [...profileOf(check)];
  const wrong = found.filter(([, { times }]) => outside(times));
  if (!wrong.length) return `all ${found.length} lie within their noise bands`;
  const [name, { relative, times }] = wrong[0];
  return `${wrong.length} of ${found.length} ${agreeing(wrong.length, "lies outside its noise band", "lie outside their noise bands")}; the first is ${name}, ${relative === null ? NOT_A_NUMBER : `${show(times)} times its band`}`;
}

const COLUMNS = [
  { name: "check", of: (row) => row.check, right: true }, { name: "of", of: (row) => row.about }, { name: "at", of: (row) => row.at }, { name: "module", of: (row) => row.module },
  { name: "relative difference", of: (row) => row.relative, show: figure, right: true },
  { name: "band", of: (row) => row.band, show: figure, right: true }, { name: "over its band", of: (row) => (row.times === Infinity ? null : row.times), show: (_, row) => (row.relative === null ? NOT_A_NUMBER : show(row.times)), right: true },
];

const flat = (checks) => checks.flatMap((check) => [...profileOf(check)].map(([module, found]) => ({ check: check.check, about: about(check), at: clock(check.at), module, ...found })));

export const profileCsv = (checks, name) => csvButton(name, COLUMNS, () => flat(checks));
export const profileTable = (checks) => behind(COLUMNS, () => flat(checks), "Difference by module");
