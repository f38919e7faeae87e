// The state of everything, in one line of sight: how bad, since when, why, and what was done.

import { h } from "../dom.js";
import { get, may, post } from "../api.js";
import { ago, count, version, words } from "../format.js";
import { confirmed } from "../dom.js";

const BADGES = { ok: ["● OK", "both policies agree"], warn: ["▲ WARN", "a figure is over its first limit"], mask: ["◆ MASK", "drifting tokens are masked or weighed"], pause: ["■ PAUSE", "the policies have parted"] };

export function head(box, state, run, latest, lastSync) {
  const drift = run?.drift;
  const level = drift?.severity ?? "none";
  const halted = drift?.gate === "halted";
  const [sign, meaning] = run ? BADGES[level] : ["○ NO RUN", "nothing was posted yet"];
  const badge = h("div", { className: `badge ${halted ? "pause" : level}`, id: "badge", data: { severity: level } },
    h("strong", {}, halted ? "■ HALTED" : sign), h("small", {}, doing(drift) ?? meaning));
  const alarms = state.alarms.filter((alarm) => alarm.run === run?.run);
  box.replaceChildren(
    h("div", { className: "state" }, badge, h("dl", { className: "facts" }, ...facts(state, run, latest, lastSync))),
    ...alarms.slice(0, 1).map((alarm) => alarmCard(alarm)),
  );
}

function doing(drift) {
  if (!drift || drift.pursuit === "nothing") return null;
  return { attributing: "looking for the cause", resyncing: "bringing the weights again", rechecking: "checking once more" }[drift.pursuit];
}

function facts(state, run, latest, lastSync) {
  const fact = (name, value, title) => h("div", { title }, h("dt", {}, name), h("dd", { className: "num", id: `fact-${name.replaceAll(" ", "-")}` }, value));
  const members = state.cluster.members.map((member) => fact(member.name, `${version(member.version)} · ${member.state}`, member.detail || member.version));
  const step = run && run.step !== null ? count(run.step) : "none yet";
  const unlike = new Set(state.cluster.members.map((member) => member.version)).size > 1;
  return [
    fact("step", step),
    fact("generation", gate(state, run)),
    ...(members.length ? members : [fact("sampled by", version(latest?.weight_version), latest?.weight_version)]),
    unlike ? fact("versions", "▲ they differ") : null,
    fact("last sync", lastSync ? ago(lastSync.finished ?? lastSync.started) : "none yet"),
    fact("dtype", run?.config.dtype ?? "–"),
    fact("cluster", state.cluster.connected ? `connected` : "not connected", state.cluster.reason),
    may("admin") ? h("div", {}, h("dt", {}, "gate"), h("dd", {}, gateButton(state))) : null,
  ].filter(Boolean);
}

function gate(state, run) {
  if (run && !run.config.gated && state.gate.gate === "open") return "not gated";
  return state.gate.gate === "open" ? "goes on" : `stopped: ${state.gate.holds.map((hold) => hold.reason).join("; ").slice(0, 120)}`;
}

function gateButton(state) {
  const closed = state.gate.gate === "closed";
  const act = async () => {
    const text = closed ? "Whoever resumes vouches for runs whose drift had closed the gate." : "Every engine stops between two steps until somebody resumes it.";
    if (!(await confirmed(closed ? "Resume generation?" : "Pause generation?", text, closed ? "Resume" : "Pause"))) return;
    await (closed ? post("/v1/resume") : post("/v1/pause", { reason: "from the dashboard" })).catch(() => null);
    dispatchEvent(new Event("stale"));
  };
  return h("button", { type: "button", className: "small", onclick: act }, closed ? "Resume" : "Pause");
}

export function alarmCard(alarm, past = false) {
  const cause = alarm.cause ? words(alarm.cause) : "cause not known yet";
  return h("div", { className: `alarm${past ? " past" : ""}`, role: past ? null : "alert" },
    h("h3", {}, `${alarm.severity.toUpperCase()} at step ${count(alarm.step)}: ${cause}`),
    h("p", {}, alarm.sentence),
    alarm.action ? h("p", {}, h("span", { className: "quiet" }, "Done: "), alarm.action) : null,
    h("p", { className: "quiet" }, `opened ${ago(alarm.opened)}${alarm.closed ? `, over ${ago(alarm.closed)}` : ""} · `, h("a", { href: `#run=${encodeURIComponent(alarm.run)}&view=what&step=${alarm.step}` }, "worst samples")));
}

/** Everything that the head shows of a run. */
export async function lookAtHead(run) {
  const [syncs, lines] = await Promise.all([
    get("/v1/syncs", { limit: 1 }),
    run && run.step !== null ? get(`/v1/runs/${encodeURIComponent(run.run)}/steps`, { after: run.step - 1, limit: 1 }) : [],
  ]);
  return { lastSync: syncs[0] ?? null, latest: lines[0] ?? null };
}
