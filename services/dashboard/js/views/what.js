// What drifted: a step's worst samples, their media, and their answers token by token.

import { csvButton, table } from "../table.js";
import { checkButton } from "./checks.js";
import { empty, failure, h, panel } from "../dom.js";
import { count, figure, shorten, version } from "../format.js";
import { get, segment } from "../api.js";
import { go, link, place } from "../place.js";
import { legBars, legRows, legTokens } from "../legs.js";
import { mediaRow } from "../media.js";
import { stepPicker } from "./pickers.js";
import { strip } from "../strip.js";

const PROMPT = 4000; // characters shown of a prompt

export class WhatView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    if (!run || run.step === null) return this.box.replaceChildren(h("section", { className: "panel" }, empty("No step yet", "The worst samples of each step are kept with their tokens.")));
    const attempt = place().attempt ?? run.attempt;
    const step = Number(place().step ?? run.step);
    const at = `/v1/runs/${segment(run.run)}/attempts/${attempt}/steps/${step}`;
    const [found, [check]] = await Promise.all([get(at, {}, signal), get("/v1/checks", { run: run.run, attempt, step, limit: 1 }, signal)]);
    const worst = found.verdict.worst;
    const chosen = place().sample ?? worst[0]?.sample;
    const columns = [
      { name: "sample", of: (row) => row.sample, show: (value) => shorten(value, 60) },
      { name: "kind", of: (row) => row.kind },
      { name: "mean exp(abs d)", of: (row) => row.error, show: figure, right: true },
    ];
    const list = worst.length
      ? table(columns, worst, { pick: (row) => go({ sample: row.sample, step }), chosen: (row) => row.sample === chosen, caption: "Worst samples" })
      : empty("No sample is kept of this step", "Set worst_samples above 0, and post records with their ids.");
    const detail = h("div", { style: { display: "contents" } });
    this.box.replaceChildren(h("div", { className: "bar" }, stepPicker(step, run.step), h("span", { className: `sign ${found.verdict.severity}` }, found.verdict.severity.toUpperCase()), h("span", { className: "quiet" }, found.verdict.reason)),
      panel(`Worst samples of step ${count(step)}, the worst first`, csvButton(`worst-${step}`, columns, () => worst), h("div", { className: "few" }, list)), detail);
    if (chosen === undefined) return;
    try {
      const [sample, whole] = await Promise.all([get(`${at}/samples/${chosen.split("/").map(segment).join("/")}`, {}, signal), check ? get(`/v1/checks/${check.check}`, {}, signal) : null]);
      detail.replaceChildren(sampleCard(sample), this.told, legsCard(whole, sample, { run: run.run, attempt: Number(attempt), step, legs: true, reference: true, localise: true }, this.told));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      detail.replaceChildren(failure(error));
    }
  }
}

function sampleCard(sample) {
  const { record } = sample;
  const rows = tokens(record);
  const columns = [
    { name: "position", of: (row) => row.position, right: true }, { name: "id", of: (row) => row.id, right: true }, { name: "token", of: (row) => row.text, show: (value) => shorten(value, 80) },
    { name: "rollout logprob", of: (row) => row.rollout, show: figure, right: true }, { name: "train logprob", of: (row) => row.train, show: figure, right: true },
    { name: "d", of: (row) => row.d, show: figure, right: true }, { name: "flips", of: (row) => row.flips, right: true }, { name: "weights", of: (row) => row.version },
  ];
  const facts = [`${sample.kind} prompt, ${count(record.prompt_tokens ?? record.prompt_ids?.length ?? 0)} tokens`, `answer ${count(rows.length)} tokens`, `temperature ${record.temperature ?? 1}`, record.reward === undefined ? null : `reward ${figure(record.reward)}`, `scored with ${version(record.train_version)}`].filter(Boolean);
  const all = h("details", {}, h("summary", {}, "Both logprobs side by side"));
  all.addEventListener("toggle", () => { if (all.open && all.children.length === 1) all.append(table(columns, rows, { caption: "Tokens with both logprobs" })); });
  return panel(`Sample ${shorten(sample.sample, 60)}`, csvButton(`tokens-${sample.step}`, columns, () => rows),
    h("p", { className: "quiet num" }, facts.join(" · ")),
    record.media?.length ? mediaRow(record.media) : null,
    record.prompt_text ? h("div", {}, h("h3", {}, "Prompt"), h("p", { className: "prompt mono", tabindex: "0", role: "region", "aria-label": "Prompt" }, shorten(record.prompt_text, PROMPT))) : null,
    h("h3", {}, "Answer, coloured by d = train − rollout"), strip(rows), all);
}

/** Legs of this step's own answers cannot be had later: their media are not with the engine. Those of the probe can. */
function legsCard(check, sample, body, told) {
  const title = `Legs, as a check of step ${count(sample.step)} took them of the probe`;
  const ask = checkButton(`Find the cause of step ${count(sample.step)}`, body, told);
  if (check === null) return panel("Legs", ask, empty("No check has looked into this step", "A search for its cause takes the difference apart: train against prefill, prefill against decode, batch against alone, both against float32.", `omni-rl check --step ${sample.run}/${sample.attempt}/${sample.step} --reference`));
  const bars = legBars(legRows(check.legs, check.evidence), `legs-${check.check}`);
  const more = h("a", { href: link({ view: "why", check: check.check }) }, `check ${check.check}`);
  if (bars === null) return panel("Legs", [ask, more], empty("The search ended before the legs", check.sentence || check.reason));
  return panel(title, [ask, more], bars, legTokens(check.answers, sample.kind, `leg-tokens-${check.check}`));
}

/** One entry a sampled token; `flips` counts MoE layers whose experts differ at the position that predicted it. */
export function tokens(record) {
  const size = record.rollout_logprobs.length;
  const prompt = record.prompt_tokens ?? record.prompt_ids?.length ?? 0;
  const perLayer = record.experts_per_token ?? 0;
  const layers = record.moe_layers ?? 0;
  const spans = record.version_spans ?? [];
  return Array.from({ length: size }, (_, position) => {
    const rollout = record.rollout_logprobs[position];
    const train = record.train_logprobs[position];
    const span = spans.find((one) => one.start <= position && position < one.end);
    return {
      position, rollout, train, d: rollout === null || train === null ? null : train - rollout, id: record.ids?.[position] ?? null,
      text: record.token_texts?.[position] ?? (record.ids ? `⟨${record.ids[position]}⟩` : "▯"),
      version: span ? version(span.version) + (span.mixed_state ? " (state of older weights)" : "") : "",
      masked: record.loss_mask ? !record.loss_mask[position] : false,
      flips: record.rollout_experts && record.train_experts ? flips(record, Math.max(0, prompt - 1) + position, layers, perLayer) : null,
    };
  });
}

function flips(record, position, layers, perLayer) {
  let found = 0;
  for (let layer = 0; layer < layers; layer += 1) {
    const start = (position * layers + layer) * perLayer;
    const ours = record.rollout_experts.slice(start, start + perLayer).sort((a, b) => a - b);
    const theirs = record.train_experts.slice(start, start + perLayer).sort((a, b) => a - b);
    if (ours.some((expert, index) => expert !== theirs[index])) found += 1;
  }
  return found;
}
