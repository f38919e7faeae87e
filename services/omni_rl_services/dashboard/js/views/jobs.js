// Jobs on the cluster, and the trainer's own figures over the run's steps.

import { ChartPanel } from "../chartpanel.js";
import { csvButton, table } from "../table.js";
import { call, get, may, segment, told } from "../api.js";
import { changed, renew } from "../renew.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { figure } from "../format.js";
import { go, place, range } from "../place.js";
import { since } from "../since.js";
import { startDialog } from "./jobstart.js";

const STEPS = 2000;
const LAST = 200_000; // characters of a log
const FIRST = ["reward", "held_out_reward", "kl", "clipped", "clip_fraction", "ess"]; // what a reader looks for; the others follow
const TITLES = { reward: "reward, mean", held_out_reward: "reward on held-out prompts, mean", kl: "kl, nats", clipped: "clipped, share of tokens", clip_fraction: "clip_fraction, share of tokens", ess: "effective sample size, share of tokens" };

export class JobsView {
  constructor(box) {
    this.told = h("div", { className: "told" });
    this.jobs = h("div");
    this.figures = h("div", { className: "two" });
    this.charts = new Map();
    box.replaceChildren(this.told, this.jobs, this.figures);
  }

  async load(run, signal) {
    const [jobs, lines] = await Promise.all([this.loadJobs(signal), this.loadSteps(run, signal)]);
    jobs();
    this.drawFigures(lines);
  }

  /** What draws them: once all is here, so that nothing is pushed down. */
  async loadJobs(signal) {
    const found = await get("/v1/jobs", {}, signal).catch(told);
    const chosen = place().job;
    const log = chosen && Array.isArray(found) ? await get(`/v1/jobs/${segment(chosen)}/logs`, {}, signal).catch((error) => error.message) : null;
    return () => { if (changed(this, found, found.message, log)) renew(this.jobs, Array.isArray(found) ? this.list(found, chosen, log) : without(found)); };
  }

  list(jobs, chosen, log) {
    const stop = (row) => h("button", { type: "button", className: "small", disabled: !may("admin") || !["pending", "running"].includes(row.status), onclick: (event) => { event.stopPropagation(); this.stop(row.job); } }, "Stop");
    const columns = [{ name: "job", tight: true, of: (row) => row.job }, { name: "kind", of: (row) => row.kind }, { name: "status", tight: true, of: (row) => row.status }, { name: "run", tight: true, of: (row) => row.parameters.run }, { name: "submitted", of: (row) => row.submitted, show: since, right: true }, { name: "message", of: (row) => row.message }];
    const list = jobs.length ? table([...columns, { name: "", of: () => "", show: (_, row) => stop(row), right: true }], jobs, { pick: (row) => go({ job: row.job }), chosen: (row) => row.job === chosen, caption: "Jobs" }) : empty("No job yet", "Submit one here, or from a terminal.", "omni-rl submit grpo --run NAME");
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

  /** The steps in view, or the latest ones; none before the first. */
  async loadSteps(run, signal) {
    if (!run || run.step === null) return [];
    const [first] = range();
    const after = first === null ? Math.max(-1, run.step - STEPS) : first - 1;
    return get(`/v1/runs/${segment(run.run)}/steps`, { after, limit: STEPS, attempt: place().attempt }, signal);
  }

  /** What trainers post with a step (reward, kl, clipped …), and the effective sample size, which is ours. */
  drawFigures(lines) {
    if (!lines.length) {
      this.destroy();
      return this.figures.replaceChildren(h("section", { className: "panel wide" }, empty("No step here", "Reward, KL and the like are drawn as steps are sealed.", "omni-rl submit grpo --run NAME")));
    }
    const of = (name) => (line) => (name === "ess" ? line.figures.ess : line.training[name]);
    const names = [...new Set(["ess", ...lines.flatMap((line) => Object.keys(line.training))])].sort((a, b) => order(a) - order(b) || a.localeCompare(b));
    if (names.join() !== [...this.charts.keys()].join()) {
      this.destroy();
      this.charts = new Map(names.map((name) => [name, chartOf(name)]));
      renew(this.figures, ...[...this.charts.values()].map((chart) => chart.box));
    }
    const steps = lines.map((line) => line.step);
    for (const [name, chart] of this.charts) {
      const values = lines.map(of(name));
      chart.show({ first: steps, last: steps, low: { [name]: values }, high: { [name]: values } }, { log: false, range: range() });
    }
  }

  redraw() { for (const chart of this.charts.values()) chart.redraw(); }
  destroy() { for (const chart of this.charts.values()) chart.destroy(); this.charts = new Map(); }
}

const order = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);

function chartOf(name) {
  const columns = [{ name: "step", of: (row) => row.first, right: true }, { name, of: (row) => row.high[name], show: figure, right: true }];
  return new ChartPanel({ title: TITLES[name] ?? name, file: name, lines: [{ metric: name, name, colour: "s1" }], columns, pick: (step) => go({ view: "what", step, sample: null }) });
}

function without(error) {
  const down = error.code === "ray_unavailable" || error.status === 503;
  return panel("Jobs", null, down ? empty("No cluster", `${error.message}. Steps of other frameworks are judged without one.`, "omni-rl up") : failure(error));
}
