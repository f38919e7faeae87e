// How a run stands, in one word: never "ok" without steps that say so, and that came lately.

import { counted } from "./format.js";

/** From the one that needs a person most, as the coordinator sorts them, with a sign and what is said of it. */
const STANDINGS = {
  halted: ["■ HALTED", "stopped until a person resumes it"],
  pause: ["■ PAUSE", "the policies have parted"],
  silent: ["◌ SILENT", "no step comes any more"],
  unknown: ["? UNKNOWN", "the coordinator does not see its cluster"],
  mask: ["◆ MASK", "drifting tokens are masked or weighed"],
  warn: ["▲ WARN", "a figure is over its first limit"],
  unjudged: ["○ UNJUDGED", "its last step could not be judged"],
  waiting: ["○ NO STEPS", "nothing was judged yet"],
  ok: ["● OK", "both policies agree"],
  ended: ["□ ENDED", "it said that it is over"],
};
const DOING = { attributing: "looking for the cause", resyncing: "bringing the weights again", rechecking: "checking once more" };
const OF_LONG_AGO = ["silent", "unknown", "ended"];
const SEVERE = ["warn", "mask", "pause"];

export const NEEDS = Object.keys(STANDINGS);
export const SIGN_OF = Object.fromEntries(Object.entries(STANDINGS).map(([need, [sign]]) => [need, sign]));

/** `{ level, sign, meaning }` of a run. `gate`: the coordinator's, which a person may hold. */
export function standing({ need, drift, config }, gate) {
  const [sign, meaning] = STANDINGS[need];
  if (need === "ok" && config.gated && gate.gate === "closed") return { level: "held", sign: "▯ HELD", meaning: "generation is stopped; its last step was ok" };
  if (OF_LONG_AGO.includes(need)) return { level: need, sign, meaning: `${meaning}; its last step was ${drift.severity}` };
  if (SEVERE.includes(need) && drift.severity !== need) return { level: need, sign, meaning: "an incident of it is open" };
  return { level: need, sign, meaning: DOING[drift.pursuit] ?? meaning };
}

/** Of all runs together, by how many there are of each need: as the one that needs a person most. */
export function standingOfAll(needs) {
  const total = Object.values(needs).reduce((sum, runs) => sum + runs, 0);
  const worst = NEEDS.find((need) => needs[need]);
  if (worst === undefined) return NO_RUN;
  const [mark, ...name] = SIGN_OF[worst].split(" ");
  return { level: worst, sign: `${mark} ${needs[worst]} ${name.join(" ")}`, meaning: `of ${counted(total, "run")}` };
}

export const NO_RUN = { level: "none", sign: "○ NO RUN", meaning: "nothing was posted yet" };
export const NOT_THERE = { level: "none", sign: "○ NOT FOUND", meaning: "no run has this name" };
/** What it was when the page last heard of it stands beside it. */
export const disconnected = (before) => ({ level: "disconnected", sign: "✕ DISCONNECTED", meaning: `when last seen: ${before.sign}` });

export const inTitle = (stands, name) => [stands.sign.slice(2), name, "omni-rl drift"].filter(Boolean).join(" · ");
