// One sync: its phases one after the other, what it proved, and what went wrong.

import { behind, csvButton, table } from "../table.js";
import { clock, figure, seconds, version, words } from "../format.js";
import { h, panel } from "../dom.js";
import { pictureOf } from "../picture.js";
import { pngButton } from "../save.js";

const STALLED = new Set(["pause", "apply", "verify", "commit", "resume", "rollback"]);
/** What was served although it holds NaN or infinity. */
export const allowed = (sync) => (sync.outcome === "committed" ? sync.nonfinite.map((tensor) => `not finite, as allowed: ${tensor}`) : []);

export const OUTCOMES = { committed: "✓ committed", rolled_back: "↩ rolled back", failed: "✗ failed" };
const PHASES = [{ name: "phase", of: (row) => row.phase }, { name: "begins", of: (row) => row.begun, show: seconds, right: true }, { name: "takes", of: (row) => row.value, show: seconds, right: true }, { name: "generation", of: (row) => (row.stalled ? "waits" : "runs") }];
const AGREEMENT = [{ name: "agreement on", of: (row) => row.kind }, { name: "tokens", of: (row) => row.tokens, right: true }, { name: "mean abs d, nats", of: (row) => row.logprob_abs_diff_mean, show: figure, right: true }, { name: "max abs d, nats", of: (row) => row.logprob_abs_diff_max, show: figure, right: true }];
const MOVES = (sync) => [{ name: "at", of: (row) => row.at - sync.started, show: seconds, right: true }, { name: "phase", of: (row) => row.phase }, { name: "what", of: (row) => words(row.what) }, { name: "replica", of: (row) => row.replica }, { name: "detail", of: (row) => row.detail }];

export function waterfall(sync) {
  const facts = [OUTCOMES[sync.outcome] ?? `${sync.state}: ${sync.phase}`, `begun ${clock(sync.started)}`, sync.serving ? `serving ${version(sync.serving)}` : null, sync.stall ? `stall ${seconds(sync.stall)}` : null].filter(Boolean);
  const wrong = [sync.reason, ...sync.mismatches, ...allowed(sync), ...Object.entries({ ...sync.replaced, ...sync.out }).map(([replica, why]) => `${replica}: ${why}`)].filter(Boolean);
  const agreement = Object.entries(sync.agreement ?? {}).map(([kind, figures]) => ({ kind, ...figures }));
  const rows = phasesOf(sync);
  const bars = rows.length ? barsOf(rows) : null;
  return panel(`Sync ${sync.sync}`, bars ? [csvButton(`sync-${sync.sync}`, PHASES, () => rows), pngButton(`sync-${sync.sync}`, "Phases", () => pictureOf(bars))] : null,
    h("p", { className: "quiet num" }, facts.join(" · ")), ...wrong.map((text) => h("p", { className: "pause" }, text)),
    bars ?? h("p", { className: "quiet" }, sync.state === "running" ? "How long its phases take is told when it is over." : "It ended before its phases were measured."),
    bars ? h("div", { className: "keyline" }, key("s1", "generation runs"), key("s2", "generation waits")) : null, bars ? behind(PHASES, () => rows, "Phases") : null,
    agreement.length ? table(AGREEMENT, agreement, { caption: "Agreement by kind" }) : null,
    sync.phases.length ? h("details", {}, h("summary", {}, "What happened"), table(MOVES(sync), sync.phases, { caption: "What happened" })) : null);
}

const key = (colour, name) => h("span", {}, h("i", { className: "swatch", style: { borderColor: `var(--${colour})` } }), name);

function phasesOf(sync) {
  let end = 0;
  return Object.entries(sync.seconds).map(([phase, value]) => ({ phase, value, begun: (end += value) - value, stalled: STALLED.has(phase) }));
}

function barsOf(rows) {
  const total = rows.reduce((sum, { value }) => sum + value, 0) || 1;
  const bars = rows.flatMap(({ phase, value, begun, stalled }) => {
    const fill = h("div", { className: `fill${stalled ? " stalled" : ""}`, style: { left: `${(100 * begun) / total}%`, width: `${(100 * value) / total}%` } });
    return [h("span", {}, phase), h("div", { className: "track" }, fill), h("span", { className: "num" }, seconds(value))];
  });
  return h("div", { className: "water", role: "img", "aria-label": rows.map(({ phase, value }) => `${phase} ${seconds(value)}`).join(", ") }, ...bars);
}
