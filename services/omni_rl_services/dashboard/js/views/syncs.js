// Weight syncs: what was brought, how fast, what it cost generation, and what was proven. Of engines that are not ours:
// what each update really did.

import { bytes, count, seconds, version } from "../format.js";
import { changed, renew } from "../renew.js";
import { checkButton } from "./checks.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { csvButton, table } from "../table.js";
import { get, may, once, post, segment } from "../api.js";
import { go, place } from "../place.js";
import { OUTCOMES, allowed, waterfall } from "./waterfall.js";
import { since } from "../since.js";
import { updatesPanel } from "./updates.js";

export class SyncsView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const [syncs, updates] = await Promise.all([
      get("/v1/syncs", { limit: 200 }, signal),
      run ? get(`/v1/runs/${segment(run.run)}/updates`, { limit: 200 }, signal) : [],
    ]);
    const chosen = place().sync ?? syncs[0]?.sync;
    const columns = [
      { name: "sync", of: (row) => row.sync, show: (value) => h("code", {}, value) },
      { name: "outcome", tight: true, of: (row) => row.outcome ?? row.state, show: (value) => OUTCOMES[value] ?? `… ${value}` },
      { name: "weights", tight: true, of: (row) => row.version, show: version },
      { name: "begun", of: (row) => row.started, show: since, right: true },
      { name: "stall", of: (row) => row.stall || null, show: seconds, right: true },
      { name: "bytes", of: (row) => row.bytes, show: bytes, right: true },
      { name: "applied at", of: rate, show: (value) => (value ? `${bytes(value)}/s` : "–"), right: true },
      { name: "of a plain copy", of: (row) => (row.copy_rate ? rate(row) / row.copy_rate : null), show: (value) => (value ? `${Math.round(100 * value)} %` : "–"), right: true },
      { name: "elements proven", of: (row) => row.elements_proven, show: (value, row) => (row.elements ? `${count(value)} of ${count(row.elements)}` : "–"), right: true },
      { name: "tensors", of: (row) => row.tensors || null, show: count, right: true },
      { name: "reason", of: (row) => [row.reason, ...row.mismatches, ...allowed(row)].filter(Boolean).join("; ") },
    ];
    const buttons = h("div", { className: "bar" }, h("button", { type: "button", className: "main", disabled: !may("sync"), title: may("sync") ? "" : "needs a token of scope sync", onclick: () => this.sync() }, "Sync weights"), checkButton("Check both policies", { legs: true }, this.told),
      h("span", { className: "quiet" }, may("sync") ? "a sync brings the trainer's weights to every replica, proven byte by byte; a check changes nothing" : "both need a token of scope sync"));
    const list = syncs.length
      ? table(columns, syncs, { pick: (row) => go({ sync: row.sync }), chosen: (row) => row.sync === chosen, caption: "Syncs" })
      : empty("No sync yet", "Bring weights from the trainer with the button above, or from a program:", "omni_rl.client.Client().sync()");
    const one = chosen ? await get(`/v1/syncs/${segment(chosen)}`, {}, signal) : null;
    if (!changed(this, syncs, updates, one)) return;
    renew(this.box, buttons, this.told, ...(one ? [waterfall(one)] : []), ...updatesPanel(updates), panel("Syncs, the newest first", syncs.length ? csvButton("syncs", columns, () => syncs) : null, list));
  }

  async sync() {
    if (!(await confirmed("Sync weights now?", "Generation stops for the stall; every replica is verified, or all roll back.", "Sync"))) return;
    this.told.replaceChildren();
    try {
      const begun = await post("/v1/syncs", { source: "trainer" }, once());
      go({ sync: begun.sync });
      dispatchEvent(new Event("stale"));
    } catch (error) {
      this.told.replaceChildren(failure(error));
    }
  }
}

const rate = (sync) => (sync.bytes && sync.seconds.apply ? sync.bytes / sync.seconds.apply : null);
