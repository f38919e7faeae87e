// Weight syncs: what was brought, how fast, what it cost generation, and what was proven.

import { ago, bytes, clock, count, seconds, version, words } from "../format.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { csvButton, table } from "../table.js";
import { get, may, post, segment } from "../api.js";
import { go, place } from "../place.js";

const STALLED = new Set(["pause", "apply", "verify", "commit", "resume", "rollback"]);
const OUTCOMES = { committed: "✓ committed", rolled_back: "↩ rolled back", failed: "✗ failed" };

export class SyncsView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const syncs = await get("/v1/syncs", { limit: 200 }, signal);
    const chosen = place().sync ?? syncs[0]?.sync;
    const columns = [
      { name: "sync", of: (row) => row.sync, show: (value) => h("code", {}, value) },
      { name: "outcome", of: (row) => row.outcome ?? row.state, show: (value) => OUTCOMES[value] ?? `… ${value}` },
      { name: "weights", of: (row) => row.version, show: version },
      { name: "begun", of: (row) => row.started, show: ago, right: true },
      { name: "stall", of: (row) => row.stall, show: seconds, right: true },
      { name: "bytes", of: (row) => row.bytes, show: bytes, right: true },
      { name: "applied at", of: rate, show: (value) => (value ? `${bytes(value)}/s` : "–"), right: true },
      { name: "of a plain copy", of: (row) => (row.copy_rate ? rate(row) / row.copy_rate : null), show: (value) => (value ? `${Math.round(100 * value)} %` : "–"), right: true },
      { name: "elements proven", of: (row) => row.elements_proven, show: (value, row) => (row.elements ? `${count(value)} of ${count(row.elements)}` : "–"), right: true },
      { name: "tensors", of: (row) => row.tensors, show: count, right: true },
      { name: "reason", of: (row) => [row.reason, ...row.mismatches].filter(Boolean).join("; ") },
    ];
    const buttons = h("div", { className: "bar" }, h("button", { type: "button", className: "main", disabled: !may("sync"), onclick: () => this.sync() }, "Sync weights"), h("span", { className: "quiet" }, may("sync") ? "from the trainer to every replica, proven byte by byte" : "needs a token of scope sync"));
    const list = syncs.length
      ? table(columns, syncs, { pick: (row) => go({ sync: row.sync }), chosen: (row) => row.sync === chosen, caption: "Syncs" })
      : empty("No sync yet", "Bring weights from the trainer with the button above, or from a program:", "omni_rl.client.Client().sync()");
    const one = chosen ? waterfall(await get(`/v1/syncs/${segment(chosen)}`, {}, signal)) : null;
    this.box.replaceChildren(buttons, this.told, ...(one ? [one] : []), panel("Syncs, the newest first", syncs.length ? csvButton("syncs", columns, () => syncs) : null, list));
  }

  async sync() {
    if (!(await confirmed("Sync weights now?", "Generation stops for the stall; every replica is verified, or all roll back.", "Sync"))) return;
    this.told.replaceChildren();
    try {
      const begun = await post("/v1/syncs", { source: "trainer" }, { "Idempotency-Key": crypto.randomUUID() });
      go({ sync: begun.sync });
      dispatchEvent(new Event("stale"));
    } catch (error) {
      this.told.replaceChildren(failure(error));
    }
  }
}

const rate = (sync) => (sync.bytes && sync.seconds.apply ? sync.bytes / sync.seconds.apply : null);

function waterfall(sync) {
  const phases = Object.entries(sync.seconds);
  const total = phases.reduce((sum, [, value]) => sum + value, 0) || 1;
  let begun = 0;
  const bars = phases.flatMap(([phase, value]) => {
    const left = begun / total;
    begun += value;
    const fill = h("div", { className: `fill${STALLED.has(phase) ? " stalled" : ""}`, style: { left: `${100 * left}%`, width: `${(100 * value) / total}%` } });
    return [h("span", {}, phase), h("div", { className: "track" }, fill), h("span", { className: "num" }, seconds(value))];
  });
  const facts = [OUTCOMES[sync.outcome] ?? `${sync.state}: ${sync.phase}`, `begun ${clock(sync.started)}`, `serving ${version(sync.serving)}`, `stall ${seconds(sync.stall)}`];
  const wrong = [sync.reason, ...sync.mismatches, ...Object.entries({ ...sync.replaced, ...sync.out }).map(([replica, why]) => `${replica}: ${why}`)].filter(Boolean);
  const agreement = Object.entries(sync.agreement ?? {}).map(([kind, figures]) => ({ kind, ...figures }));
  const steps = sync.phases.map((one) => ({ ...one, what: words(one.what) }));
  return panel(`Sync ${sync.sync}`, null, h("p", { className: "quiet num" }, facts.join(" · ")), ...wrong.map((text) => h("p", { className: "pause" }, text)),
    phases.length ? h("div", { className: "water", role: "img", "aria-label": phases.map(([phase, value]) => `${phase} ${seconds(value)}`).join(", ") }, ...bars) : h("p", { className: "quiet" }, "Phases come when it is over."),
    h("div", { className: "keyline" }, h("span", {}, h("i", { className: "swatch", style: { borderColor: "var(--s1)" } }), "while generation runs"), h("span", {}, h("i", { className: "swatch", style: { borderColor: "var(--s2)" } }), "generation waits")),
    agreement.length ? table([{ name: "agreement on", of: (row) => row.kind }, { name: "tokens", of: (row) => row.tokens, right: true }, { name: "mean abs d", of: (row) => row.logprob_abs_diff_mean, show: (value) => value?.toExponential(1) ?? "–", right: true }, { name: "max abs d", of: (row) => row.logprob_abs_diff_max, show: (value) => value?.toExponential(1) ?? "–", right: true }], agreement, { caption: "Agreement by kind" }) : null,
    steps.length ? h("details", {}, h("summary", {}, "What happened"), table([{ name: "at", of: (row) => row.at - sync.started, show: seconds, right: true }, { name: "phase", of: (row) => row.phase }, { name: "what", of: (row) => row.what }, { name: "replica", of: (row) => row.replica }, { name: "detail", of: (row) => row.detail }], steps, { caption: "What happened" })) : null);
}
