// From run to run by a part of its name: the coordinator looks for it, among thousands.

import { get } from "../api.js";
import { ALL_RUNS, go, place } from "../place.js";
import { h } from "../dom.js";
import { SIGN_OF } from "../standing.js";

const OFFERED = 20;
const OF_ONE_RUN = ["x", "step", "sample", "rank", "attempt", "incident", "kind"]; // parts of the address

export class RunPicker {
  constructor() {
    this.options = h("datalist", { id: "run-names" });
    this.input = document.getElementById("run");
    this.input.after(this.options);
    this.input.setAttribute("list", "run-names");
    this.input.addEventListener("input", (event) => (event.inputType === "insertReplacementText" ? this.choose() : this.look(this.input.value.trim())));
    this.input.addEventListener("focus", () => { this.input.select(); this.look(""); });
    this.input.addEventListener("blur", () => { this.input.value = this.name; });
    this.input.addEventListener("change", () => this.choose());
  }

  /** The run in the view of before; what was looked at of the other run is gone. */
  choose() {
    const name = this.input.value.trim();
    const { view } = place();
    if (name) go({ run: name, view: view === ALL_RUNS ? null : view, ...Object.fromEntries(OF_ONE_RUN.map((part) => [part, null])) });
  }

  /** What is looked at now. */
  show(name) {
    this.name = name ?? "";
    if (document.activeElement !== this.input) this.input.value = this.name;
  }

  async look(part) {
    this.looked = part; // an answer that comes after a later one's question is none
    const found = await get("/v1/runs", { search: part, sort: "need", limit: OFFERED }).catch(() => []); // the page itself says what is wrong
    if (part === this.looked) this.options.replaceChildren(...found.map((run) => h("option", { value: run.run }, SIGN_OF[run.need])));
  }
}
