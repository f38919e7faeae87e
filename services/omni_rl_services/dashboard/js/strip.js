// An answer as a strip of tokens, coloured by how far apart the two policies are at each.

import { h } from "./dom.js";
import { count, figure, shorten } from "./format.js";

const AT_ONCE = 2000; // tokens; more come on request
const TEXT = 200; // characters of one token

/** -4 to 4: blue where the trainer finds the token less likely than the rollout did, orange where more. */
export function shade(d, scale) {
  if (d === null) return 4;
  const level = Math.min(4, Math.floor((4 * Math.abs(d)) / scale + 0.3));
  return d < 0 ? -level : level;
}

export function strip(rows) {
  const sizes = rows.map((row) => Math.abs(row.d ?? 0)).sort((a, b) => a - b);
  const scale = sizes[Math.floor(0.99 * (sizes.length - 1))] || 1e-9;
  const detail = h("p", { className: "detail mono", role: "status" });
  const box = h("div", { className: "strip", tabindex: "0", role: "application", "aria-label": "Answer tokens; arrow keys walk" });
  let shown = 0;
  let at = -1;
  const choose = (index) => {
    box.children[at]?.classList.remove("chosen");
    at = Math.max(0, Math.min(shown - 1, index));
    box.children[at]?.classList.add("chosen");
    detail.textContent = told(rows[at]);
  };
  const more = h("button", { type: "button", className: "small" });
  const show = () => {
    const next = rows.slice(shown, shown + AT_ONCE).map((row, offset) => token(row, scale, shown + offset));
    box.append(...next);
    shown += next.length;
    more.hidden = shown >= rows.length;
    more.textContent = `Show more: ${count(rows.length - shown)} tokens left`;
  };
  more.addEventListener("click", show);
  show();
  if (rows.length) choose(worst(rows));
  box.addEventListener("pointerover", (event) => { if (event.target.dataset.at) choose(Number(event.target.dataset.at)); });
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    choose(at + by);
  });
  const key = h("div", { className: "keyline" }, h("span", {}, `colour is full at ${figure(scale)} nats (p99)`), ...[["-4", "trainer less likely"], ["0", "equal"], ["4", "trainer more likely"]].map(([level, name]) => h("span", {}, h("span", { className: "mono", data: { heat: level } }, " a "), ` ${name}`)), h("span", {}, "underlined: router flip"), h("span", {}, "point at a token, or walk with the arrow keys"));
  return h("div", {}, key, box, more, detail);
}

/** The token that is furthest off; one without a number before all others. */
function worst(rows) {
  const off = (row) => (row.d === null ? Infinity : Math.abs(row.d));
  return rows.reduce((found, row, at) => (off(row) > off(rows[found]) ? at : found), 0);
}

function token(row, scale, at) {
  const classes = [row.masked ? "masked" : "", row.flips ? "flip" : ""].join(" ").trim();
  const text = row.text === "" ? `⟨${row.id}⟩` : shorten(row.text, TEXT).replaceAll("\n", "↵\n");
  return h("span", { className: classes, data: { heat: shade(row.d, scale), at } }, text);
}

function told(row) {
  const parts = [`#${row.position} ${JSON.stringify(shorten(row.text, 60))}${row.id === null ? "" : ` id ${row.id}`}`, `rollout ${figure(row.rollout)}`, `train ${figure(row.train)}`, `d ${figure(row.d)}`];
  if (row.version) parts.push(`weights ${row.version}`);
  if (row.flips !== null) parts.push(`${row.flips} expert flip${row.flips === 1 ? "" : "s"}`);
  if (row.masked) parts.push("not in the loss");
  return parts.join("  ·  ");
}
