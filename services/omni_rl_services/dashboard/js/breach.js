// How far a figure over steps went over its limit: what is worst comes first, and is what one sees unasked.

import { SEVERITIES, severityOf } from "./limits.js";
import { SIGNS, count, figure, round } from "./format.js";

const RANK = ["ok", ...SEVERITIES];

/** The worst of a timeline's metric: `{ severity, times, value, step, limit }`; times is of the first limit. null without a limit. */
export function worst(data, metric, limit) {
  if (!limit) return null;
  let found = { severity: "ok", times: 0, value: 0, step: null, limit };
  (data.high[metric] ?? []).forEach((value, index) => {
    if (value === undefined || (value === null && !data.broken[index])) return; // nothing of this kind there
    const times = value === null ? Infinity : value / limit.warn;
    if (found.step === null || times > found.times) found = { severity: severityOf(value, limit), times, value, step: data.first[index], limit };
  });
  return found;
}

/** The worse first. */
export const byBreach = (a, b) => RANK.indexOf(b?.severity ?? "ok") - RANK.indexOf(a?.severity ?? "ok") || over(b) - over(a);
const over = (breach) => (breach && breach.severity !== "ok" ? breach.times : 0);

export function breachText(breach) {
  if (!breach || breach.severity === "ok") return "";
  return `${SIGNS[breach.severity]} at step ${count(breach.step)}: ${figure(breach.value)}, limit ${round(breach.limit[breach.severity])}`;
}
