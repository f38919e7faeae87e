// A run that was resumed has several attempts: what counts of each are the steps that no later one did again.

import { get, segment } from "./api.js";
import { place } from "./place.js";

/** The attempts of a run with `until`, their last step that counts (null: no later attempt began); the oldest first. */
export async function attemptsOf(run, signal) {
  if (run.attempt <= 1) return [{ attempt: run.attempt, first: 0, last: run.step, until: null }];
  const found = (await get(`/v1/runs/${segment(run.run)}/attempts`, {}, signal)).filter(({ first }) => first !== null);
  let begun = Infinity;
  return found.toReversed().map((one) => {
    const until = begun === Infinity ? null : begun - 1;
    begun = Math.min(begun, one.first);
    return { ...one, until };
  }).filter(({ first, until }) => until === null || first <= until).toReversed();
}

/** The step that is looked at, and its attempt: those that the address names, or else the latest and the one that it is of. */
export async function stepInView(run, signal) {
  const step = Number(place().step ?? run.step);
  const attempt = Number(place().attempt ?? attemptOf(await attemptsOf(run, signal), step));
  return { attempt, step };
}

const attemptOf = (attempts, step) => (attempts.findLast(({ first }) => first <= step) ?? attempts[0]).attempt;

const ENDS = ["low", "high"];

/** Timelines one after the other, as one. */
export function joined(timelines) {
  const [first, ...others] = timelines;
  if (!others.length) return first;
  const all = (name) => timelines.flatMap((one) => one[name]);
  const metrics = [...new Set(timelines.flatMap((one) => Object.keys(one.high)))];
  const values = (end) => Object.fromEntries(metrics.map((metric) => [metric, timelines.flatMap((one) => one[end][metric] ?? one.first.map(() => undefined))]));
  const [low, high] = ENDS.map(values);
  return { ...first, width: Math.max(...all("width")), first: all("first"), last: all("last"), steps: all("steps"), sealed: all("sealed"), severity: all("severity"), broken: all("broken"), low, high };
}
