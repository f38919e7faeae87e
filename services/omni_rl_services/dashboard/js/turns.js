// An answer of several turns: what the model sampled, and what it was given in between, a tool's output or another's turn.

import { h } from "./dom.js";
import { count, figure, shorten } from "./format.js";
import { table } from "./table.js";

const TEXT = 160; // characters of a turn
const CALL = /<tool_call>|<function[=_]|<\|python_tag\|>|\[TOOL_CALLS\]|<\|tool_calls?_(?:begin|section_begin)\|>/; // as the chat templates of Qwen, Llama, Mistral, DeepSeek and Kimi mark one

/** Runs of tokens of one side: those that are not in the loss were not sampled. `first`, `last`: positions, inclusive. */
export function turnsOf(rows) {
  const turns = [];
  for (const row of rows) {
    const turn = turns.at(-1);
    if (turn && turn.given === row.masked) turn.rows.push(row);
    else turns.push({ given: row.masked, rows: [row] });
  }
  return turns.map(({ given, rows: of }, index) => {
    const text = of.map((row) => row.text).join("");
    const known = of.filter((row) => row.d !== null);
    const off = known.length && !given ? known.reduce((sum, row) => sum + Math.abs(row.d), 0) / known.length : null;
    return { turn: index + 1, who: given ? "given" : CALL.test(text) ? "model, calls a tool" : "model", first: of[0].position, last: of.at(-1).position, off, text };
  });
}

/** Null where the answer is one turn. `jump(position)` shows a token. */
export function turnsTable(rows, jump) {
  const turns = turnsOf(rows);
  if (turns.length < 2) return null;
  const columns = [
    { name: "turn", of: (turn) => turn.turn, right: true },
    { name: "who", of: (turn) => turn.who, tight: true },
    { name: "tokens", of: (turn) => `${count(turn.first)} to ${count(turn.last)}`, tight: true },
    { name: "mean abs d", of: (turn) => turn.off, show: (value, turn) => (turn.who === "given" ? "not judged" : figure(value)), right: true },
    { name: "text", of: (turn) => turn.text, show: (text) => h("span", { className: "mono" }, shorten(text, TEXT)) },
  ];
  return h("div", {}, h("h3", {}, "Turns"), h("div", { className: "few" }, table(columns, turns, { pick: (turn) => jump(turn.first), caption: "Turns" })));
}
