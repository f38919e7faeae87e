// What happened beside the steps: syncs, updates of engines and incidents, each at the step it comes before.

import { KINDS } from "./incident.js";
import { get, segment } from "../api.js";
import { words } from "../format.js";

const [SYNCS, UPDATES, INCIDENTS] = [200, 200, 100];
const ENDED_WELL = "committed";

/** `[{ step, sign, colour, text }]` of the steps of `lines`, which are in order. */
export async function momentsOf(run, lines, signal) {
  const [syncs, updates, incidents] = await Promise.all([
    run.config.gated ? get("/v1/syncs", { limit: SYNCS }, signal) : [],
    get(`/v1/runs/${segment(run.run)}/updates`, { limit: UPDATES }, signal),
    get("/v1/incidents", { run: run.run, limit: INCIDENTS }, signal),
  ]);
  const next = (at) => (at < (lines[0]?.sealed ?? Infinity) ? undefined : lines.find((line) => line.sealed >= at)?.step);
  const shown = new Set(lines.map((line) => line.step));
  return [
    ...syncs.filter((sync) => sync.finished).map((sync) => ({ step: next(sync.finished), ...tone(sync.outcome === ENDED_WELL, "✓", "✗"), text: `sync ${words(sync.outcome ?? sync.state)}` })),
    ...updates.filter((update) => update.engine).map((update) => ({ step: next(update.at), ...tone(!update.findings.length, "↻", "↻"), text: `update of ${update.engine}${update.findings.length ? `: ${update.findings[0].sentence}` : ""}` })),
    ...incidents.map((incident) => ({ step: incident.step === null ? next(incident.opened) : lines.find((line) => line.step >= incident.step)?.step, sign: "⚑", colour: incident.severity, text: `incident ${incident.incident}: ${incident.cause ? words(incident.cause) : KINDS[incident.kind]}` })),
  ].filter(({ step }) => shown.has(step));
}

const tone = (well, good, bad) => (well ? { sign: good, colour: "quiet" } : { sign: bad, colour: "pause" });
