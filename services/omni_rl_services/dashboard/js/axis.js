// What a chart lies over: steps, or the time at which each was sealed.

import { ZONE } from "./format.js";

const WHOLE = Array.from({ length: 24 }, (_, power) => [1, 2, 5][power % 3] * 10 ** Math.floor(power / 3));
const DAY = 86400;

/** `{ at, of(step), steps(low, high) }`: the places of a timeline's buckets, the place of a step, and which buckets' steps lie between two places. */
export function axisOf(timeline, clock) {
  if (!clock) return { at: timeline.first, of: (step) => step, steps: (low, high) => [Math.max(0, Math.floor(low)), Math.ceil(high)] };
  let latest = -Infinity;
  const at = timeline.sealed.map((sealed) => (latest = Math.max(latest, sealed))); // a step may be sealed before one that has a lower number
  const of = (step) => at[timeline.last.findIndex((last) => step <= last)] ?? at.at(-1);
  return {
    at, of,
    steps(low, high) {
      const from = at.findIndex((place) => place >= low), to = at.findLastIndex((place) => place <= high);
      return from < 0 || to < from ? null : [timeline.first[from], timeline.last[to]];
    },
  };
}

/** How its ticks are chosen and named, for uPlot. */
export const ticksOf = (clock) => (clock
  ? { label: `sealed, ${ZONE}`, space: 90, values: (plot, ticks, axis, space, apart) => ticks.map((tick) => time(tick, apart)) }
  : { label: "step", space: 70, incrs: WHOLE, values: (plot, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) });

/** In the reader's time zone: the date where a tick is a day or more from the next, or begins one. Parts of a second have no name. */
function time(at, apart) {
  if (!Number.isInteger(at)) return "";
  const [date, clock] = new Date(at * 1000).toLocaleString("sv").split(" ");
  if (apart >= DAY || clock === "00:00:00") return date;
  return apart < 60 ? clock : clock.slice(0, 5);
}
