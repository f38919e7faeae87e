// The other answers to a sample's prompt: what GRPO compares it with.

import { csvButton, table } from "./table.js";
import { h, panel } from "./dom.js";
import { figure, shorten } from "./format.js";
import { get, segment, told } from "./api.js";
import { go } from "./place.js";

const TEXT = 120; // characters of an answer
const MOST = 16; // answers that are asked for: a step keeps as many unless it was told otherwise

/** `PROMPT/3` and `PROMPT/3.1` are answers to one prompt, 3 the prompt's place in its batch where there is a copy's number. */
export function groupOf(sample) {
  const copy = /^(.*\/\d+)\.\d+$/.exec(sample);
  if (copy) return copy[1];
  const slash = sample.lastIndexOf("/");
  return slash < 0 ? null : sample.slice(0, slash);
}

/** The kept answers of the same group, with what each earned; none where it has no siblings. `at`: the step's address. */
export async function siblingsOf(sample, worst, at, signal) {
  const group = groupOf(sample.sample);
  if (group === null) return [];
  const kept = worst.filter((one) => groupOf(one.sample) === group).slice(0, MOST);
  if (kept.length < 2) return [];
  return Promise.all(kept.map(async (one) => {
    const found = await get(`${at}/samples/${one.sample.split("/").map(segment).join("/")}`, { rank: one.rank }, signal).catch(told);
    const { reward = null, token_texts: texts = [] } = found instanceof Error ? {} : found.record;
    return { ...one, reward, text: (texts ?? []).slice(0, TEXT).join("") };
  }));
}

export function siblingsPanel(siblings, chosen, step) {
  if (!siblings.length) return [];
  const rewards = siblings.map((one) => one.reward).filter((reward) => reward !== null);
  const mean = rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
  const columns = [
    { name: "sample", of: (row) => row.sample, show: (value) => shorten(value, 60) },
    { name: "reward", of: (row) => row.reward, show: figure, right: true },
    { name: "over the group's mean", of: (row) => (row.reward === null || mean === null ? null : row.reward - mean), show: figure, right: true },
    { name: "seq_mult_prob_error", of: (row) => row.error, show: figure, right: true },
    { name: "answer", of: (row) => row.text, show: (text) => (text ? h("span", { className: "mono" }, shorten(text, TEXT)) : "–") },
  ];
  const isChosen = (row) => row.sample === chosen.sample && row.rank === chosen.rank;
  return [panel("Answers to the same prompt that are kept", csvButton(`siblings-${step}`, columns, () => siblings),
    table(columns, siblings, { pick: (row) => go({ sample: row.sample, rank: row.rank, step }), chosen: isChosen, caption: "Answers to the same prompt" }))];
}
