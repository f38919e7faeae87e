// What drifted: a step's worst samples, their media, and their answers token by token.

import { csvButton, inOrder, table } from "../table.js";
import { stepInView } from "../attempts.js";
import { checkButton } from "./checks.js";
import { empty, failure, h, panel } from "../dom.js";
import { SIGNS, count, counted, figure, shorten, version } from "../format.js";
import { changed, renew } from "../renew.js";
import { get, segment, told } from "../api.js";
import { go, link, place } from "../place.js";
import { legBars, legRows, legTokens } from "../legs.js";
import { limitsOf, ofKind } from "../limits.js";
import { mediaRow } from "../media.js";
import { stepPicker } from "./pickers.js";
import { siblingsOf, siblingsPanel } from "../siblings.js";
import { strip } from "../strip.js";
import { turnsTable } from "../turns.js";

const PROMPT = 4000; // characters shown of a prompt

export class WhatView {
  constructor(box) {
    this.told = h("div", { className: "told" });
    this.bar = h("div", { className: "bar" });
    this.found = h("div", { style: { display: "contents" } });
    box.replaceChildren(this.bar, this.found);
  }

  async load(run, signal) {
    if (!run || run.step === null) return renew(this.found, h("section", { className: "panel" }, empty("No step yet", "The worst samples of each step are kept with their tokens.", "omni-rl demo --serve")));
    const { attempt, step } = await stepInView(run, signal);
    const at = `/v1/runs/${segment(run.run)}/attempts/${attempt}/steps/${step}`;
    const [found, [check], limits] = await Promise.all([get(at, {}, signal).catch(told), get("/v1/checks", { run: run.run, attempt, step, limit: 1 }, signal), limitsOf(run.run, signal)]);
    if (found instanceof Error) {
      renew(this.bar, stepPicker(step, run.step));
      if (changed(this, found.message)) renew(this.found, failure(found));
      return;
    }
    const worst = found.verdict.worst[0];
    const chosen = place().sample ?? worst?.sample, rank = place().sample === undefined ? worst?.rank : place().rank;
    const sample = chosen === undefined ? null : await get(`${at}/samples/${chosen.split("/").map(segment).join("/")}`, rank === undefined ? {} : { rank }, signal).catch(told);
    const legs = check ? await get(`/v1/checks/${check.check}`, {}, signal) : null;
    const siblings = sample === null || sample instanceof Error ? [] : await siblingsOf(sample, found.verdict.worst, at, signal);
    renew(this.bar, stepPicker(step, run.step), h("span", { className: `sign ${found.verdict.severity}` }, SIGNS[found.verdict.severity]), h("span", { className: "quiet" }, found.verdict.reason));
    if (!changed(this, found, sample, sample?.message, legs, siblings)) return; // a new step must not stop a player
    const about = { run: run.run, attempt, step };
    const cards = sample === null ? [] : sample instanceof Error ? [failure(sample)] : [sampleCard(sample, ofKind(limits, sample.kind).logprob_abs_diff_mean.pause), ...siblingsPanel(siblings, sample, step), this.told, legsCard(legs, sample.kind, about, this.told)];
    const isChosen = (row) => row.sample === chosen && (rank === undefined || row.rank === Number(rank));
    renew(this.found, worstList(found.verdict.worst, step, isChosen), ...cards);
  }
}

/** A sample is known by the rank that posted it and its name. */
function worstList(worst, step, isChosen) {
  const columns = [
    { name: "sample", of: (row) => row.sample, show: (value) => shorten(value, 60) },
    { name: "rank", of: (row) => row.rank, right: true },
    { name: "kind", of: (row) => row.kind },
    { name: "seq_mult_prob_error", of: (row) => row.error, show: figure, right: true },
  ];
  const { order = "" } = place();
  const rows = inOrder(columns, worst, order);
  const list = worst.length
    ? table(columns, rows, { order, pick: (row) => go({ sample: row.sample, rank: row.rank, step }), chosen: isChosen, caption: "Worst samples" })
    : empty("No sample is kept of this step", "Samples of a step that nothing was wrong with go after a while. If none ever shows: set worst_samples above 0.");
  return panel(`Worst samples of step ${count(step)}${order ? "" : ", the worst first"}`, csvButton(`worst-${step}`, columns, () => rows), h("div", { className: "few" }, list));
}

function sampleCard(sample, limit) {
  const { record } = sample;
  const rows = tokens(record);
  const columns = [
    { name: "position", of: (row) => row.position, right: true }, { name: "id", of: (row) => row.id, right: true }, { name: "token", of: (row) => row.text, show: (value) => shorten(value, 80) },
    { name: "rollout logprob", of: (row) => row.rollout, show: figure, right: true }, { name: "train logprob", of: (row) => row.train, show: figure, right: true },
    { name: "d", of: (row) => row.d, show: figure, right: true }, { name: "flips", of: (row) => row.flips, right: true }, { name: "weights", of: (row) => row.version },
  ];
  const facts = [`${sample.kind} prompt, ${counted(record.prompt_tokens ?? record.prompt_ids?.length ?? 0, "token")}`, `answer ${counted(rows.length, "token")}`, `temperature ${record.temperature ?? 1}`, record.reward === undefined ? null : `reward ${figure(record.reward)}`, `scored with ${version(record.train_version)}`].filter(Boolean);
  const tape = strip(rows, limit);
  const all = h("details", {}, h("summary", {}, "Both logprobs side by side"));
  all.addEventListener("toggle", () => { if (all.open && all.children.length === 1) all.append(table(columns, rows, { caption: "Tokens with both logprobs" })); });
  return panel(`Sample ${shorten(sample.sample, 60)}`, csvButton(`tokens-${sample.step}`, columns, () => rows),
    h("p", { className: "quiet num" }, facts.join(" · ")),
    record.media?.length ? mediaRow(record.media) : null,
    record.prompt_text ? h("div", {}, h("h3", {}, "Prompt"), h("p", { className: "prompt mono", tabindex: "0", role: "region", "aria-label": "Prompt" }, shorten(record.prompt_text, PROMPT))) : null,
    turnsTable(rows, tape.jump),
    h("h3", {}, "Answer, coloured by d = train − rollout logprob, nats"), tape.whole, all);
}

/** Legs of this step's own answers are had as long as the trainer still has these; later they are of the probe. */
function legsCard(check, kind, { run, attempt, step }, told) {
  const title = `Legs, as a check of step ${count(step)} took them`;
  const ask = checkButton(`Find the cause of step ${count(step)}`, { run, attempt, step, legs: true, reference: true, localise: true }, told);
  if (check === null) return panel("Legs", ask, empty("No check has looked into this step", "A search for its cause takes the difference apart: train against prefill, prefill against decode, batch against alone, both against float32.", `omni-rl check --step ${run}/${attempt}/${step} --reference`));
  const bars = legBars(legRows(check.legs, check.evidence), `legs-${check.check}`);
  const more = h("a", { href: link({ view: "why", check: check.check }) }, `check ${check.check}`);
  if (bars === null) return panel("Legs", [ask, more], empty("The search ended before the legs", check.sentence || check.reason));
  return panel(title, [ask, more], bars, legTokens(check.answers, kind, `leg-tokens-${check.check}`));
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
