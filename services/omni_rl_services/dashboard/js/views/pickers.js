// What several views let the reader choose.

import { h } from "../dom.js";
import { go } from "../place.js";
import { count } from "../format.js";

export const OVERALL = "overall"; // the figures of all prompts, whatever their kind

/** What figures of these runs can be asked for: of all prompts, and of each kind that the API says a run has. */
export const shownKinds = (...runs) => [OVERALL, ...new Set(runs.flatMap((run) => run.kinds))];

export function picker(name, label, options, chosen) {
  const select = h("select", { "aria-label": label, onchange: (event) => go({ [name]: event.target.value }) },
    ...options.map((option) => h("option", { value: option.value ?? option, selected: String(option.value ?? option) === String(chosen) }, option.name ?? option)));
  return h("label", {}, h("span", { className: "quiet" }, `${label} `), select);
}

/** `apart`: offer each kind by itself, side by side. */
export const kindPicker = (offered, chosen, apart = false) => picker("kind", "prompts", [...(apart ? [{ value: "", name: "each kind" }] : []), ...offered.map((kind) => ({ value: kind, name: kind === OVERALL ? "all kinds" : kind }))], chosen);

export const attemptPicker = (attempts, chosen) => picker("attempt", "attempt", [{ value: "", name: "whole run" }, ...attempts.map(({ attempt, first, last }) => ({ value: attempt, name: `${attempt}: steps ${count(first)} to ${count(last)}` }))], chosen);

/** Which step is looked at: the one in the address, or else the latest. */
export function stepPicker(step, latest) {
  const input = h("input", { type: "number", min: 0, max: latest, value: step, "aria-label": "Step", style: { width: "8em" }, onchange: (event) => go({ step: event.target.value, sample: null }) });
  const turn = (by) => h("button", { type: "button", "aria-label": by < 0 ? "Earlier step" : "Later step", disabled: step + by < 0 || step + by > latest, onclick: () => go({ step: step + by, sample: null }) }, by < 0 ? "‹" : "›");
  const follow = h("button", { type: "button", onclick: () => go({ step: null, sample: null }) }, `latest (${count(latest)})`);
  return h("span", { className: "bar" }, h("span", { className: "quiet" }, "step"), turn(-1), input, turn(1), follow);
}
