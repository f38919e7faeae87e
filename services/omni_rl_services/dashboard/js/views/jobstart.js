// The dialog that starts a job; what it does not ask for has the defaults of `omni-rl submit`.

import { h } from "../dom.js";
import { once, post } from "../api.js";

/** `act(action)`: carries the submission out, and says where it failed. */
export function startDialog(act) {
  const dialog = document.getElementById("dialog");
  const field = (name, label, properties) => h("label", {}, `${label} `, h("input", { name, required: true, ...properties }));
  const kind = h("select", { name: "kind", "aria-label": "Algorithm" }, h("option", { value: "grpo" }, "GRPO"), h("option", { value: "ppo" }, "PPO"));
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(form));
    dialog.close();
    const parameters = { run: given.run, steps: Number(given.steps), prompts: Number(given.prompts) };
    await act(() => post("/v1/jobs", { kind: given.kind, parameters }, once()));
  } }, h("h2", {}, "Start a job"), h("label", {}, "algorithm ", kind), field("run", "run", { pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}" }), field("steps", "steps", { type: "number", min: 1, value: 50 }), field("prompts", "prompts a step", { type: "number", min: 1, value: 16 }),
  h("div", { className: "bar" }, h("button", { className: "main" }, "Start"), h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  dialog.replaceChildren(form);
  dialog.showModal();
}
