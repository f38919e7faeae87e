// The state of everything, in one line of sight: how bad, since when, why, and what was done.

import { confirmed, failure, h } from "../dom.js";
import { get, may, post, segment } from "../api.js";
import { count, shorten, version } from "../format.js";
import { changed, renew } from "../renew.js";
import { incidentCard } from "./incident.js";
import { memberFacts } from "./engines.js";
import { place } from "../place.js";
import { since } from "../since.js";

const SYNCS = 20; // looked through for the last one that brought weights
const REASON = 90; // characters

const drawn = {}; // an alert that comes anew is read out anew
const told = h("div", { className: "told" }); // outlives what is drawn: a refusal is to be read though a step comes in

/** `stands`: what `standing` says of the run; null for `run` where there is none. `syncs`: the newest first. */
export function head(box, state, run, stands, { latest, syncs, incident }) {
  if (!changed(drawn, state, run, stands, latest, syncs, incident)) return;
  if (changed(told)) told.replaceChildren(); // it was said at another address
  const loud = incident !== null && place().view !== "why"; // where it stands with its evidence
  renew(box,
    h("div", { className: "state" }, badge(stands), h("dl", { className: "facts" }, ...facts(state, run, latest, syncs))),
    told,
    ...(loud ? [incidentCard(incident, { loud, halted: incident.kind === "drift" && run.drift.gate !== "open" })] : []),
  );
}

const badge = ({ level, sign, meaning }) => h("div", { className: `badge ${level}`, id: "badge", role: "status", data: { level } }, h("strong", {}, sign), h("small", {}, meaning));

/** How it stands, in the place of what was said before: the head is drawn anew with the next answer. */
export function stamp(stands) {
  document.getElementById("badge")?.replaceWith(badge(stands));
  delete drawn.drawn;
}

function facts(state, run, latest, syncs) {
  const fact = (name, value, { title, note, className } = {}) => h("div", { title, className }, h("dt", {}, name), h("dd", { className: "num", id: `fact-${name.replaceAll(" ", "-")}` }, value), note ? h("dd", { className: "note" }, note) : null);
  // Weights that were published, or came from a directory, are none of the trainer's: that it has others is no fault.
  const elsewhere = ["published", "directory"].includes(syncs.find((sync) => sync.outcome === "committed" && sync.source !== "served")?.source);
  const weights = memberFacts(state.cluster.members, elsewhere).map(({ name, value, title, note, bad }) => fact(name, value, { title, note, className: bad ? "bad" : "" }));
  return [
    ...(run ? [fact("step", run.step !== null ? count(run.step) : "none yet", { note: stepNote(run) })] : []),
    ...(weights.length ? weights : [fact("sampled by", version(latest?.weight_version), { title: latest?.weight_version, note: "weights" })].filter(() => run)),
    lastSync(syncs, fact),
    generation(state, run, fact),
    fact("cluster", clusterWord(state.cluster), { title: state.cluster.reason, note: run?.config.dtype }),
  ];
}

/** Whether the cluster answers, where the coordinator was started with one. */
function clusterWord(cluster) {
  if (!cluster.expected) return "none";
  return cluster.connected ? "connected" : "not connected";
}

function stepNote(run) {
  if (run?.activity === "silent") return h("span", {}, "▲ none since ", since(run.sealed));
  return run?.attempt > 1 ? `attempt ${run.attempt}` : null;
}

/** Since when the engines have the weights that they have: a sync that failed brought none. */
function lastSync(syncs, fact) {
  const [newest] = syncs;
  const brought = syncs.find((sync) => sync.outcome === "committed");
  const notes = { rolled_back: "▲ one since was rolled back", failed: "▲ one since failed" };
  const note = newest?.state === "running" ? "another is under way" : (notes[newest?.outcome] ?? null);
  return fact("last sync", brought ? since(brought.finished ?? brought.started) : "none yet", { note });
}

function generation(state, run, fact) {
  const stopped = state.gate.gate === "closed";
  const advised = run && !run.config.gated;
  const value = stopped ? "■ stopped" : advised ? "not gated" : "goes on";
  const reasons = state.gate.holds.map((hold) => hold.reason).join("; ");
  const note = stopped ? shorten(reasons, REASON) : advised ? "verdicts advise" : null;
  return fact("generation", h("span", { className: "bar tight" }, value, may("admin") ? gateButton(state) : null), { title: reasons, note, className: stopped ? "wide" : "" });
}

function gateButton(state) {
  const closed = state.gate.gate === "closed";
  const act = async () => {
    const text = closed ? "Whoever resumes vouches for runs whose drift had closed the gate." : "Every engine stops between two steps until somebody resumes it.";
    if (!(await confirmed(closed ? "Resume generation?" : "Pause generation?", text, closed ? "Resume" : "Pause"))) return;
    told.replaceChildren();
    try {
      await (closed ? post("/v1/resume") : post("/v1/pause", { reason: "from the dashboard" }));
      dispatchEvent(new Event("stale"));
    } catch (error) {
      told.replaceChildren(failure(error));
    }
  };
  return h("button", { type: "button", className: "small", onclick: act }, closed ? "Resume" : "Pause");
}

/** Everything that the head shows of a run. */
export async function lookAtHead(run, signal) {
  const [syncs, lines, incident] = await Promise.all([
    get("/v1/syncs", { limit: SYNCS }, signal),
    run && run.step !== null ? get(`/v1/runs/${segment(run.run)}/steps`, { after: run.step - 1, limit: 1 }, signal) : [],
    run && run.incident !== null ? get(`/v1/incidents/${run.incident}`, {}, signal) : null,
  ]);
  return { syncs, latest: lines[0] ?? null, incident };
}
