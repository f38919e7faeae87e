// An incident: its story, what to do about it, who has it in hand, and what was done and said.

import { SIGNS, clock, count, words } from "../format.js";
import { confirmed, failure, h } from "../dom.js";
import { changed } from "../renew.js";
import { may, post } from "../api.js";
import { since } from "../since.js";

export const KINDS = { drift: "the policies drift apart", update: "an update of weights went wrong", sync: "a sync of weights is not proven", engine: "an engine or the trainer does not answer", silence: "no step comes any more" };
const NEEDS_SYNC = "needs a token of scope sync";

const answers = new Map(); // by incident, where its card says what was refused

const address = (parameters) => `#${new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined))}`;

/** `loud`: on top of the page, and for whoever listens too. `halted`: its run waits for a person to resume it. */
export function incidentCard(incident, { loud = false, halted = false } = {}) {
  const told = toldOf(incident.incident);
  const over = incident.ended !== null;
  return h(loud ? "div" : "article", { className: `alarm ${incident.severity}${over ? " past" : ""}`, role: loud ? "alert" : null, data: { incident: incident.incident } },
    h(loud ? "h2" : "h3", {}, `${SIGNS[incident.severity]}${incident.step === null ? "" : ` at step ${count(incident.step)}`}: ${incident.cause ? words(incident.cause) : KINDS[incident.kind]}`),
    h("p", { className: "story" }, incident.what),
    over ? null : h("p", {}, h("strong", {}, "What to do: "), incident.remedy, " ", h("span", { className: "quiet" }, "More: ", guide(incident))),
    ...incident.actions.slice(-3).map((action) => h("p", {}, h("strong", {}, "Done: "), action.what, " ", h("span", { className: "quiet" }, since(action.at)))),
    ...incident.notes.map((note) => h("p", { className: "note" }, h("strong", {}, `${note.by}: `), note.text, " ", h("span", { className: "quiet" }, since(note.at)))),
    h("p", { className: "quiet" }, `#${incident.incident} · opened `, since(incident.opened), over ? ", over " : "", over ? since(incident.ended) : "", ` · ${hand(incident)}`, ...links(incident).flatMap((one) => [" · ", one])),
    over ? null : buttons(incident, halted, told), told);
}

/** It outlives what is drawn: a refusal is to be read though the card is drawn anew. At another address it is gone. */
function toldOf(incident) {
  if (!answers.has(incident)) answers.set(incident, h("div", { className: "told" }));
  const told = answers.get(incident);
  if (changed(told)) told.replaceChildren();
  return told;
}

/** A link where the operator said where the guide is read, else its path in the project. */
const guide = ({ guide: at }) => (/^https?:\/\//.test(at) ? h("a", { href: at, rel: "noreferrer" }, at) : at);

const hand = ({ acknowledged }) => (acknowledged ? `${acknowledged.by} has it in hand since ${clock(acknowledged.at)}` : "nobody has it in hand");

function links({ incident, run, attempt, step, good }) {
  if (!run) return [];
  const to = (name, parameters) => h("a", { href: address({ run, ...parameters }) }, name);
  return [
    to("evidence", { view: "why", incident }),
    ...(step === null ? [] : [to("worst samples", { view: "what", attempt, step }), to("where", { view: "where", attempt, step })]),
    ...(good && step !== null ? [to(`compare with step ${count(good.step)}`, { view: "why", incident })] : []),
  ];
}

function buttons(incident, halted, told) {
  const path = `/v1/incidents/${incident.incident}`;
  const act = async (action) => {
    told.replaceChildren();
    try { await action(); dispatchEvent(new Event("stale")); } catch (error) { told.replaceChildren(failure(error)); }
  };
  const button = (name, action, { scope = "sync", main = false } = {}) => h("button", { type: "button", className: main ? "small main" : "small", disabled: !may(scope), title: may(scope) ? "" : `needs a token of scope ${scope}`, onclick: () => act(action) }, name);
  const ask = async (title, text, verb, action) => { if (await confirmed(title, text, verb)) await action(); };
  return h("div", { className: "bar tight" },
    incident.acknowledged ? null : button("Acknowledge", () => post(`${path}/acknowledge`), { main: true }),
    noteForm(incident.incident, path, act),
    halted ? button("Resume this run", () => ask(`Resume ${incident.run}?`, "Whoever resumes vouches for it: generation goes on, and its next step is judged afresh. This ends the incident.", "Resume", () => post("/v1/resume", { run: incident.run })), { scope: "admin" })
      : button("End", () => ask(`End incident ${incident.incident}?`, "What is still wrong at the next step opens another one.", "End", () => post(`${path}/end`))));
}

function noteForm(incident, path, act) {
  const input = h("input", { name: `note-${incident}`, required: true, maxlength: "4096", "aria-label": "Note", placeholder: "a note for the others", disabled: !may("sync"), title: may("sync") ? "" : NEEDS_SYNC });
  return h("form", { className: "bar tight", onsubmit: (event) => { event.preventDefault(); act(async () => { await post(`${path}/notes`, { text: input.value }); input.value = ""; }); } },
    input, h("button", { className: "small", disabled: !may("sync"), title: may("sync") ? "" : NEEDS_SYNC }, "Add note"));
}
