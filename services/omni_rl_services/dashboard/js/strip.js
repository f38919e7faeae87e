// An answer as a strip of tokens, coloured by how far apart the two policies are at each.

import { h } from "./dom.js";
import { counted, figure, shorten } from "./format.js";

const AT_ONCE = 2000; // tokens; more come on request
const TEXT = 200; // characters of one token

const LINE = 26; // pixels
const WORST = 5; // tokens that are a button away

/** -4 to 4: blue where the trainer finds the token less likely than the rollout did, orange where more. */
export function shade(d, scale) {
  if (d === null) return 4;
  const level = Math.min(4, Math.floor((4 * Math.abs(d)) / scale + 0.3));
  return d < 0 ? -level : level;
}

/** `limit`: the pause limit of a mean of abs d, at which a token's colour is full: an answer that is well is pale. Its element, and `jump(index)`. */
export function strip(rows, limit) {
  const detail = h("p", { className: "detail mono", role: "status" });
  const box = h("div", { className: "strip", tabindex: "0", role: "application", "aria-label": "Answer tokens; arrow keys walk" });
  let shown = 0;
  let at = -1;
  const choose = (index) => {
    box.children[at]?.classList.remove("chosen");
    at = Math.max(0, Math.min(rows.length - 1, index));
    while (shown <= at) show();
    box.children[at]?.classList.add("chosen");
    detail.textContent = told(rows[at]);
  };
  const more = h("button", { type: "button", className: "small" });
  const show = () => {
    const next = rows.slice(shown, shown + AT_ONCE).map((row, offset) => token(row, limit, shown + offset));
    box.append(...next);
    shown += next.length;
    more.hidden = shown >= rows.length;
    more.textContent = `Show more: ${counted(rows.length - shown, "token")} left`;
  };
  more.addEventListener("click", show);
  show();
  const worst = worstOf(rows);
  if (rows.length) choose(worst[0]);
  const reveal = () => { const [top, height] = [box.children[at].offsetTop - box.offsetTop, box.clientHeight]; if (top < box.scrollTop || top > box.scrollTop + height - LINE) box.scrollTop = top - height / 2; };
  const jump = (index) => { choose(index); reveal(); box.focus({ preventScroll: true }); };
  if (rows.length) requestAnimationFrame(reveal); // once it is on the page
  const jumps = h("div", { className: "worst" }, h("span", { className: "quiet" }, "furthest off"), ...worst.map((index) => h("button", { type: "button", className: "small num", onclick: () => jump(index) }, `#${rows[index].position}: ${figure(rows[index].d)}`)));
  box.addEventListener("pointerover", (event) => { if (event.target.dataset.at) choose(Number(event.target.dataset.at)); });
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    choose(at + by);
    reveal();
  });
  const key = h("div", { className: "keyline" }, h("span", {}, `colour is full at ${figure(limit)} nats, the pause limit of the mean`), ...[["-4", "trainer less likely"], ["0", "equal"], ["4", "trainer more likely"]].map(([level, name]) => h("span", {}, h("span", { className: "mono", data: { heat: level } }, " a "), ` ${name}`)), h("span", {}, "underlined: router flip"), h("span", {}, "point at a token, or walk with the arrow keys"));
  return { whole: h("div", {}, key, jumps, detail, box, more), jump };
}

/** The tokens that are furthest off, the worst first; those without a number before all others. */
function worstOf(rows) {
  const off = ({ d }) => (d === null ? Infinity : Math.abs(d));
  const order = rows.map((row, index) => [off(row), index]).filter(([size]) => size > 0).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  return rows.length && !order.length ? [0] : order.slice(0, WORST).map(([, index]) => index);
}

function token(row, scale, at) {
  const classes = [row.masked ? "masked" : "", row.flips ? "flip" : ""].join(" ").trim();
  const text = row.text === "" ? `⟨${row.id}⟩` : shorten(row.text, TEXT).replaceAll("\n", "↵\n");
  return h("span", { className: classes, data: { heat: shade(row.d, scale), at } }, text);
}

function told(row) {
  const parts = [`#${row.position} ${JSON.stringify(shorten(row.text, 60))}${row.id === null ? "" : ` id ${row.id}`}`, `rollout ${figure(row.rollout)}`, `train ${figure(row.train)}`, `d ${figure(row.d)}`];
  if (row.version) parts.push(`weights ${row.version}`);
  if (row.flips !== null) parts.push(counted(row.flips, "expert flip"));
  if (row.masked) parts.push("not in the loss");
  return parts.join("  ·  ");
}
