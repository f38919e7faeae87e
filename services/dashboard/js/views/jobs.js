// Jobs on the cluster, and the trainer's own figures over the run's steps.

import { ago, figure } from "../format.js";
import { behind, csvButton, table } from "../table.js";
import { Chart } from "../charts.js";
import { call, get, may, post, segment } from "../api.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { go, place } from "../place.js";
import { savePng } from "../save.js";

const STEPS = 2000;
const LAST = 200_000; // characters of a log

export class JobsView {
  constructor(box) { this.box = box; this.charts = []; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const [figures, jobs] = await Promise.all([this.figures(run, signal), this.jobs(run, signal)]);
    this.box.replaceChildren(this.told, jobs, figures);
  }

  async jobs(run, signal) {
    let jobs;
    try {
      jobs = await get("/v1/jobs", {}, signal);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return panel("Jobs", null, error.code === "ray_unavailable" || error.status === 503 ? empty("No cluster", `${error.message}. Steps of other frameworks are judged without one.`, "omni-rl up") : failure(error));
    }
    const chosen = place().job;
    const stop = (row) => h("button", { type: "button", className: "small", disabled: !may("admin") || !["pending", "running"].includes(row.status), onclick: (event) => { event.stopPropagation(); this.stop(row.job); } }, "Stop");
    const columns = [{ name: "job", of: (row) => row.job }, { name: "kind", of: (row) => row.kind }, { name: "status", of: (row) => row.status }, { name: "run", of: (row) => row.parameters.run }, { name: "submitted", of: (row) => row.submitted, show: ago, right: true }, { name: "message", of: (row) => row.message }];
    const list = jobs.length ? table([...columns, { name: "", of: () => "", show: (_, row) => stop(row) }], jobs, { pick: (row) => go({ job: row.job }), chosen: (row) => row.job === chosen, caption: "Jobs" }) : empty("No job yet", "Submit one here, or from a terminal.", "omni-rl submit grpo --run NAME");
    const log = chosen ? await get(`/v1/jobs/${segment(chosen)}/logs`, {}, signal).catch((error) => error.message) : null;
    const start = h("button", { type: "button", className: "small", disabled: !may("admin"), title: may("admin") ? "" : "needs a token of scope admin", onclick: () => this.start() }, "Start a job");
    return panel("Jobs", [start, csvButton("jobs", columns, () => jobs)], list, log === null ? null : h("h3", {}, `Log of ${chosen}`), log === null ? null : h("pre", { className: "logs", tabindex: "0", role: "region", "aria-label": "Log" }, log.slice(-LAST)));
  }

  async stop(job) {
    if (!(await confirmed(`Stop ${job}?`, "What it has saved stays; it can be resumed as a new attempt.", "Stop"))) return;
    await this.act(() => call("DELETE", `/v1/jobs/${segment(job)}`));
  }

  start() {
    const dialog = document.getElementById("dialog");
    const field = (name, label, properties) => h("label", {}, `${label} `, h("input", { name, required: true, ...properties }));
    const kind = h("select", { name: "kind", "aria-label": "Algorithm" }, h("option", { value: "grpo" }, "GRPO"), h("option", { value: "ppo" }, "PPO"));
    const form = h("form", { onsubmit: async (event) => {
      event.preventDefault();
      const given = Object.fromEntries(new FormData(form));
      dialog.close();
      await this.act(() => post("/v1/jobs", { kind: given.kind, parameters: { run: given.run, steps: Number(given.steps), prompts: Number(given.prompts) } }, { "Idempotency-Key": crypto.randomUUID() }));
    } }, h("h2", {}, "Start a job"), h("label", {}, "algorithm ", kind), field("run", "run", { pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}" }), field("steps", "steps", { type: "number", min: 1, value: 50 }), field("prompts", "prompts a step", { type: "number", min: 1, value: 16 }),
    h("div", { className: "bar" }, h("button", { className: "main" }, "Start"), h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    dialog.replaceChildren(form);
    dialog.showModal();
  }

  async act(action) {
    this.told.replaceChildren();
    try { await action(); dispatchEvent(new Event("stale")); } catch (error) { this.told.replaceChildren(failure(error)); }
  }

  /** What trainers post with a step (reward, kl, clip_fraction …), and the effective sample size, which is ours. */
  async figures(run, signal) {
    this.destroy();
    if (!run || run.step === null) return h("section", { className: "panel" }, empty("No step yet", "Reward, KL and the like are drawn as steps are sealed."));
    const lines = await get(`/v1/runs/${segment(run.run)}/steps`, { after: Math.max(-1, run.step - STEPS), limit: STEPS, attempt: place().attempt }, signal);
    const names = [...new Set(lines.flatMap((line) => Object.keys(line.training)))].sort();
    const specs = [...names.map((name) => ({ name, of: (line) => line.training[name] ?? null })), { name: "ess", title: "effective sample size, share of tokens", of: (line) => line.figures.ess }];
    return h("div", { className: "two" }, ...specs.map((spec) => this.chart(spec, lines)));
  }

  chart({ name, title = name, of }, lines) {
    const values = lines.map(of);
    const data = { first: lines.map((line) => line.step), last: lines.map((line) => line.step), low: { [name]: values }, high: { [name]: values } };
    const chart = new Chart({ title, lines: [{ metric: name, name, colour: "s1" }], zoom: () => {}, pick: (step) => go({ view: "what", step }) });
    this.charts.push({ chart, data });
    requestAnimationFrame(() => chart.show(data, { log: false }));
    const columns = [{ name: "step", of: (line) => line.step, right: true }, { name, of, show: figure, right: true }];
    return panel(title, [csvButton(name, columns, () => lines), h("button", { type: "button", className: "small", "aria-label": `${title} as PNG`, onclick: () => savePng(name, chart.plot.ctx.canvas) }, "PNG")], chart.box, behind(columns, () => lines, title));
  }

  redraw() { for (const { chart } of this.charts) chart.redraw(); }
  destroy() { for (const { chart } of this.charts) chart.destroy(); this.charts = []; }
}
