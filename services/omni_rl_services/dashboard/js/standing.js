// How a run stands, in one word: never "ok" without steps that say so, and that came lately.

import { SIGNS } from "./format.js";

const MEANINGS = { ok: "both policies agree", unjudged: "its last step could not be judged", warn: "a figure is over its first limit", mask: "drifting tokens are masked or weighed", pause: "the policies have parted" };
const DOING = { attributing: "looking for the cause", resyncing: "bringing the weights again", rechecking: "checking once more" };
const BAD = ["mask", "pause"]; // an alarm stays one, also where no step comes any more

/**
 * `{ level, sign, meaning }`. `state`: the coordinator's, which says whether it sees the cluster that samples for the run.
 * The level is a severity, or one of halted, silent, unknown, held, waiting and ended.
 */
export function standing(run, state) {
  const { drift, activity } = run;
  const last = `its last step was ${drift.severity}`;
  if (drift.gate === "halted") return { level: "halted", sign: "■ HALTED", meaning: "stopped until a person resumes it" };
  if (BAD.includes(drift.severity)) return judged(drift);
  if (activity === "silent") return { level: "silent", sign: "◌ SILENT", meaning: `no step comes any more; ${last}` };
  if (activity === "ended") return { level: "ended", sign: "□ ENDED", meaning: last };
  const { cluster, gate } = state;
  if (run.config.gated && cluster.expected && !cluster.connected) return { level: "unknown", sign: "? UNKNOWN", meaning: "the coordinator does not see its cluster" };
  if (activity === "waiting") return { level: "waiting", sign: "○ NO STEPS", meaning: "nothing was judged yet" };
  if (run.config.gated && gate.gate === "closed") return { level: "held", sign: "▯ HELD", meaning: `generation is stopped; ${last}` };
  return judged(drift);
}

const judged = (drift) => ({ level: drift.severity, sign: SIGNS[drift.severity], meaning: DOING[drift.pursuit] ?? MEANINGS[drift.severity] });

export const NO_RUN = { level: "none", sign: "○ NO RUN", meaning: "nothing was posted yet" };
export const NOT_THERE = { level: "none", sign: "○ NOT FOUND", meaning: "no run has this name" };
/** What it was when the page last heard of it stands beside it. */
export const disconnected = (before) => ({ level: "disconnected", sign: "✕ DISCONNECTED", meaning: `when last seen: ${before.sign}` });

export const inTitle = (stands, name) => [stands.sign.slice(2), name, "omni-rl drift"].filter(Boolean).join(" · ");
