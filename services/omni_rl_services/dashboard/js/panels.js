// Panels of charts in a box, which stay as their reader has them while others come and go.

import { h } from "./dom.js";

export class Panels {
  constructor() {
    this.kept = new Map();
    this.box = h("div", { className: "two" });
  }

  /** The panels of `wanted`, `[{ key, of?, make() }]`, in that order; `make` gives a ChartPanel where there is none of this key. A table that is open stays open with another figure of the same `of`. */
  show(wanted) {
    const keys = wanted.map(({ key }) => key);
    const opened = new Set();
    for (const [key, { panel, of }] of this.kept) {
      if (keys.includes(key)) continue;
      if (panel.table.open) opened.add(of);
      this.drop(key);
    }
    for (const { key, of = key, make } of wanted) {
      if (this.kept.has(key)) continue;
      this.kept.set(key, { panel: make(), of });
      this.kept.get(key).panel.table.open = opened.has(of);
    }
    const panels = keys.map((key) => this.kept.get(key).panel);
    panels.forEach(({ box }, index) => { if (this.box.children[index] !== box) this.box.insertBefore(box, this.box.children[index]); });
    while (this.box.children.length > panels.length) this.box.lastElementChild.remove(); // what `clear` left
    return panels;
  }

  drop(key) {
    const { panel } = this.kept.get(key);
    panel.destroy();
    panel.box.remove();
    this.kept.delete(key);
  }

  redraw() { for (const { panel } of this.kept.values()) panel.redraw(); }

  /** An element in place of all panels, or nothing. */
  clear(...children) {
    for (const key of [...this.kept.keys()]) this.drop(key);
    this.box.replaceChildren(...children);
  }
}
