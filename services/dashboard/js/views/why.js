// Why: what rang, what was found out, what was done; and a check to ask for now.

import { alarmCard } from "./head.js";
import { clock, count, figure, seconds, words } from "../format.js";
import { confirmed, empty, failure, h, panel } from "../dom.js";
import { get, may, post, segment } from "../api.js";
import { place } from "../place.js";
import { table } from "../table.js";

export class WhyView {
  constructor(box) { this.box = box; this.result = h("div"); }

  async load(run, signal) {
    if (!run) return this.box.replaceChildren(h("section", { className: "panel" }, empty("No run yet", "Alarms and their causes come with a run.")));
    const alarms = await get(`/v1/runs/${segment(run.run)}/alarms`, { limit: 50 }, signal);
    const cards = alarms.map((alarm) => h("div", {}, alarmCard(alarm, true), Object.keys(alarm.evidence).length ? evidence(Object.entries(alarm.evidence).map(([check, found]) => ({ check, found }))) : null));
    this.box.replaceChildren(this.checks(run), this.result, panel("Alarms, the newest first", null, ...(cards.length ? cards : [empty("Nothing has rung", "An alarm opens when a figure passes its mask or pause limit, and says its cause here.")])));
  }

  checks(run) {
    const ask = (text, body) => h("button", { type: "button", disabled: !may("sync"), onclick: () => this.check(text, body) }, text);
    const step = run.step === null ? null : Number(place().step ?? run.step);
    const probe = { legs: true };
    const whole = { run: run.run, attempt: run.attempt, step, legs: true, reference: true, localise: true };
    return h("div", { className: "bar" }, ask("Check the probe now", probe), step === null ? null : ask(`Find the cause of step ${count(step)}`, whole), h("span", { className: "quiet" }, may("sync") ? "compares both policies; changes nothing" : "needs a token of scope sync"));
  }

  async check(text, body) {
    if (!(await confirmed(`${text}?`, "Both policies score samples again. It takes up to a minute of the cluster.", "Check"))) return;
    this.result.replaceChildren(h("section", { className: "panel", role: "status" }, "checking …"));
    try {
      this.result.replaceChildren(checkCard(await post("/v1/checks", body)));
    } catch (error) {
      this.result.replaceChildren(failure(error));
    }
  }
}

function checkCard(found) {
  const legs = { "train vs rollout": found.figures, ...found.legs };
  const rows = Object.entries(legs).flatMap(([leg, figures]) => Object.entries(figures).map(([bucket, values]) => ({ leg, bucket, ...values })));
  const number = (name) => ({ name, of: (row) => row[name], show: figure, right: true });
  return panel(`Checked ${clock(Date.now() / 1000)}: ${found.severity.toUpperCase()}`, h("span", { className: "quiet num" }, seconds(found.seconds)),
    h("p", {}, found.cause ? h("strong", {}, `${words(found.cause)}: `) : null, found.sentence || found.reason),
    table([{ name: "leg", of: (row) => words(row.leg) }, { name: "prompts", of: (row) => row.bucket }, number("tokens"), number("logprob_abs_diff_mean"), number("logprob_abs_diff_max"), number("gen_kl_error")], rows, { caption: "Legs" }),
    found.evidence.length ? evidence(found.evidence) : null);
}

/** One row a check; whatever it holds beside its name is told as names and values. */
function evidence(list) {
  const rest = ({ check, name, ...others }) => Object.entries(others).map(([key, value]) => `${words(key)}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join("; ");
  return table([{ name: "check", of: (row) => words(String(row.check ?? row.name ?? "")) }, { name: "found", of: rest }], list, { caption: "Evidence" });
}
