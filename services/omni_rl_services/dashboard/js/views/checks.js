// Checks of both policies: asked for here, kept by the coordinator, and told as cards.

import { SIGNS, clock, count, counted, figure, seconds, version, words } from "../format.js";
import { confirmed, failure, h, panel } from "../dom.js";
import { csvButton, table } from "../table.js";
import { go, link, place } from "../place.js";
import { legBars, legRows, legTokens } from "../legs.js";
import { may, post } from "../api.js";
import { picker } from "./pickers.js";
import { profileCsv, profileOf, profileSummary, profileTable } from "../profile.js";

/** A button that has a check made; `told` is where it says how that goes. The address names the check afterwards. */
export function checkButton(text, body, told) {
  const ask = async () => {
    if (!(await confirmed(`${text}?`, "Both policies score samples again. It takes up to a minute of the cluster.", "Check"))) return;
    told.replaceChildren(h("section", { className: "panel", role: "status" }, "checking …"));
    try {
      const found = await post("/v1/checks", body);
      told.replaceChildren(h("section", { className: "panel", role: "status" }, h("strong", { className: `sign ${found.severity}` }, SIGNS[found.severity]), ` ${found.sentence || found.reason} · `, h("a", { href: link({ view: "why", check: found.check }) }, `check ${found.check}`)));
      go({ check: found.check });
      dispatchEvent(new Event("stale"));
    } catch (error) {
      told.replaceChildren(failure(error));
    }
  };
  return h("button", { type: "button", disabled: !may("sync"), title: may("sync") ? "" : "needs a token of scope sync", onclick: ask }, text);
}

const about = (check) => (check.step === null ? "the probe" : `step ${count(check.step)} of ${check.run}`);

export function checkList(checks, chosen) {
  const columns = [
    { name: "check", of: (row) => row.check, right: true }, { name: "of", tight: true, of: about }, { name: "at", tight: true, of: (row) => row.at, show: clock },
    { name: "severity", tight: true, of: (row) => row.severity, show: (value) => h("span", { className: `sign ${value}` }, SIGNS[value]) },
    { name: "cause", of: (row) => row.cause, show: (value) => (value ? words(value) : "–") }, { name: "found", of: (row) => row.sentence || row.reason },
  ];
  return panel("Checks, the newest first", csvButton("checks", columns, () => checks), table(columns, checks, { pick: (row) => go({ check: row.check }), chosen: (row) => row.check === chosen, caption: "Checks" }));
}

export function checkCard(found) {
  const rows = Object.entries(found.figures).map(([kind, values]) => ({ kind, ...values }));
  const number = (name) => ({ name, of: (row) => (row.tokens === 0 && name !== "tokens" ? undefined : row[name]), show: figure, right: true });
  const columns = [{ name: "train vs rollout", of: (row) => row.kind }, number("tokens"), number("logprob_abs_diff_mean"), number("logprob_abs_diff_max"), number("gen_kl_error")];
  const { answer } = place();
  const kinds = found.answers.map((one) => one.kind);
  return panel(`Check ${found.check} of ${about(found)}: ${found.severity.toUpperCase()}`, [h("span", { className: "quiet num" }, `${clock(found.at)} · ${seconds(found.seconds)} · weights ${version(found.version)}`), csvButton(`check-${found.check}`, columns, () => rows)],
    h("p", {}, found.cause ? h("strong", {}, `${words(found.cause)}: `) : null, found.sentence || found.reason),
    found.evidence.length ? evidence(found.evidence, `Evidence of check ${found.check}`) : null,
    rows.length ? table(columns, rows, { caption: "Train against rollout" }) : null,
    legBars(legRows(found.legs, found.evidence), `legs-${found.check}`),
    kinds.length > 1 ? h("div", { className: "bar" }, picker("answer", "answer", kinds, answer ?? kinds[0])) : null,
    legTokens(found.answers, answer, `leg-tokens-${found.check}`),
    profileOf(found).size ? h("div", {}, h("div", { className: "bar" }, h("h3", {}, "Modules"), h("span", { className: "quiet" }, profileSummary(found)), h("a", { href: link({ view: "where" }) }, "module × check"), h("span", { className: "grow" }), profileCsv([found], `modules-${found.check}`)), profileTable([found])) : null);
}

const RESULTS = { clear: "✓ clear", suspicious: "▲ suspicious", explains: "■ explains", not_done: "– not done" };

/** One row a check; whatever it holds beside its sentence is told as names and values, modules by their number. */
export function evidence(list, caption = "Evidence") {
  const columns = [{ name: "check", tight: true, of: (row) => words(String(row.check ?? row.name ?? "")) }, { name: "result", tight: true, of: (row) => row.result, show: (value) => RESULTS[value] ?? "–" }, { name: "found", of: (row) => row.sentence }, { name: "more", of: more }];
  return h("div", { className: "whole" }, table(columns, list, { caption })); // what explains it comes last
}

function more({ check, name, result, sentence, modules, ...others }) {
  const parts = Object.entries(others).map(([key, value]) => `${words(key)}: ${Number.isInteger(value) ? count(value) : value === null || typeof value === "number" ? figure(value) : Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : value}`);
  if (modules) parts.push(counted(Object.keys(modules).length, "module"));
  return parts.join("; ");
}
