// Jobs on the cluster: started, watched and stopped.

import { csvButton, table } from "../table.js";
import { call, get, may, segment, told } from "../api.js";
import { changed, renew } from "../renew.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { go, place } from "../place.js";
import { since } from "../since.js";
import { startDialog } from "./jobstart.js";

const LAST = 200_000; // characters of a log

export class JobsView {
  constructor(box) {
    this.told = h("div", { className: "told" });
    this.jobs = h("div");
    box.replaceChildren(this.told, this.jobs);
  }

  async load(run, signal) {
    const found = await get("/v1/jobs", {}, signal).catch(told);
    const chosen = place().job;
    const log = chosen && Array.isArray(found) ? await get(`/v1/jobs/${segment(chosen)}/logs`, {}, signal).catch((error) => told(error).message) : null;
    if (changed(this, found, found.message, log)) renew(this.jobs, Array.isArray(found) ? this.list(found, chosen, log) : without(found));
  }

  list(jobs, chosen, log) {
    const stop = (row) => h("button", { type: "button", className: "small", disabled: !may("admin") || !["pending", "running"].includes(row.status), onclick: (event) => { event.stopPropagation(); this.stop(row.job); } }, "Stop");
    const columns = [{ name: "job", tight: true, of: (row) => row.job }, { name: "kind", of: (row) => row.kind }, { name: "status", tight: true, of: (row) => row.status }, { name: "run", tight: true, of: (row) => row.parameters.run }, { name: "submitted", of: (row) => row.submitted, show: since, right: true }, { name: "message", of: (row) => row.message }];
    const list = jobs.length ? table([...columns, { name: "stop", of: () => "", show: (_, row) => stop(row), right: true }], jobs, { pick: (row) => go({ job: row.job }), chosen: (row) => row.job === chosen, caption: "Jobs" }) : empty("No job yet", "Submit one here, or from a terminal.", "omni-rl submit grpo --set run=NAME");
    const start = h("button", { type: "button", className: "small", disabled: !may("admin"), title: may("admin") ? "" : "needs a token of scope admin", onclick: () => startDialog((act) => this.act(act)) }, "Start a job");
    return panel("Jobs", [start, csvButton("jobs", columns, () => jobs)], list, log === null ? null : h("h3", {}, `Log of ${chosen}`), log === null ? null : h("pre", { className: "logs", tabindex: "0", role: "region", "aria-label": "Log" }, log.slice(-LAST)));
  }

  async stop(job) {
    if (!(await confirmed(`Stop ${job}?`, "What it has saved stays; it can be resumed as a new attempt.", "Stop"))) return;
    await this.act(() => call("DELETE", `/v1/jobs/${segment(job)}`));
  }

  async act(action) {
    this.told.replaceChildren();
    try { await action(); dispatchEvent(new Event("stale")); } catch (error) { this.told.replaceChildren(failure(error)); }
  }
}

function without(error) {
  const down = error.code === "ray_unavailable" || error.status === 503;
  return panel("Jobs", null, down ? empty("No cluster", `${error.message}. Steps of other frameworks are judged without one.`, "omni-rl up") : failure(error));
}
