// "12 s ago" that stays true: one clock for all of them on the page.

import { MISSING, ago, clock } from "./format.js";
import { h } from "./dom.js";

const TICK_MS = 1000;

/** How long ago that was, in Unix seconds; it ticks. */
export const since = (at) => (at ? h("time", { data: { at }, title: clock(at) }, ago(at)) : MISSING);

setInterval(() => {
  if (document.hidden) return;
  for (const shown of document.querySelectorAll("time[data-at]")) {
    const text = ago(shown.dataset.at);
    if (shown.textContent !== text) shown.textContent = text;
  }
}, TICK_MS);
