// What a run's figures are judged by, and how far a value is on its way to being stopped.

import { get, segment } from "./api.js";

export const SEVERITIES = ["warn", "mask", "pause"];
const kept = new Map(); // a run's limits never change

/** By kind and metric. */
export async function limitsOf(run, signal) {
  if (!kept.has(run)) kept.set(run, await get(`/v1/runs/${segment(run)}/limits`, {}, signal));
  return kept.get(run);
}

/** Of one kind: its own, or else those of all prompts. */
export const ofKind = (limits, kind) => limits[kind] ?? limits.overall ?? {};

/** "ok" or the severity that a value asks for; null, which is no number, is over every limit. */
export const severityOf = (value, limit) => SEVERITIES.findLast((name) => value === null || value > limit[name]) ?? "ok";

/** A cell's shade for a value: pale below a tenth of the first limit, blue up to it, orange over one. */
export const shadeBy = (limit) => (value) => ({ ok: value > limit.warn / 10 ? -1 : 0, warn: 2, mask: 3, pause: 4 })[severityOf(value, limit)];
