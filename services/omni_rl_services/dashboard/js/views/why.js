// Why: incidents with what was found out, done and said; and checks, those that were made and one to ask for now.

import { againstPanel, bothSteps } from "./against.js";
import { checkButton, checkCard, checkList, evidence } from "./checks.js";
import { count } from "../format.js";
import { stepInView } from "../attempts.js";
import { empty, failure, h, panel } from "../dom.js";
import { get, may, told } from "../api.js";
import { incidentCard } from "./incident.js";
import { legBars, legRows } from "../legs.js";
import { place } from "../place.js";
import { changed, renew } from "../renew.js";

const [CHECKS, INCIDENTS] = [50, 50];

export class WhyView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const [checks, listed, viewed] = await Promise.all([get("/v1/checks", { limit: CHECKS }, signal), get("/v1/incidents", { run: run?.run, limit: INCIDENTS }, signal), run && run.step !== null ? stepInView(run, signal) : null]);
    const check = Number(place().check ?? checks[0]?.check);
    const incident = await this.incident(listed, signal);
    const [both, card] = await Promise.all([incident && !(incident instanceof Error) ? bothSteps(incident, signal).catch(told) : null, check ? get(`/v1/checks/${check}`, {}, signal).catch(told) : null]);
    if (!changed(this, run?.run, viewed, run?.drift, checks, listed, incident, both, card)) return;
    const others = listed.filter((one) => one.incident !== incident?.incident);
    renew(this.box, this.buttons(run, viewed), this.told,
      ...(incident === null ? [panel("Incidents", null, empty("Nothing to look at", "An incident opens when a figure passes its mask or pause limit, when steps stop coming, or when a sync, an update or an engine fails; it says its cause here."))] : this.chosen(incident, run, both)),
      ...(others.length ? [panel("Other incidents, the newest first", null, ...others.map((one) => incidentCard(one, halting(one, run))))] : []),
      ...(card ? [card instanceof Error ? failure(card) : checkCard(card), checkList(checks, check)] : [h("section", { className: "panel" }, empty("No check yet", "A check compares both policies now, leg by leg, and is kept here with what it found.", "omni-rl check"))]));
  }

  /** The one that the address names, or else the newest of those that are not over; or why it cannot be had. */
  async incident(listed, signal) {
    const { incident } = place();
    if (incident) return listed.find((one) => one.incident === Number(incident)) ?? (await get(`/v1/incidents/${encodeURIComponent(incident)}`, {}, signal).catch(told));
    return listed.find((one) => one.ended === null) ?? listed[0] ?? null;
  }

  chosen(incident, run, both) {
    if (incident instanceof Error) return [failure(incident)];
    const found = Object.entries(incident.evidence).map(([check, rest]) => ({ check, ...rest }));
    return [
      panel(`Incident ${incident.incident}`, null, incidentCard(incident, halting(incident, run)), found.length ? evidence(found) : null, legBars(legRows({}, found), `incident-${incident.incident}`)),
      ...(both === null ? [] : [both instanceof Error ? failure(both) : againstPanel(both)]),
    ];
  }

  /** `viewed`: the step to look into; null before the first. */
  buttons(run, viewed) {
    const ofStep = viewed && checkButton(`Find the cause of step ${count(viewed.step)}`, { run: run.run, ...viewed, legs: true, reference: true, localise: true }, this.told);
    return h("div", { className: "bar" }, checkButton("Check the probe now", { legs: true }, this.told), ofStep, h("span", { className: "quiet" }, may("sync") ? "compares both policies; changes nothing" : "needs a token of scope sync"));
  }
}

const halting = (incident, run) => ({ halted: incident.kind === "drift" && run?.run === incident.run && run.drift.gate !== "open" });
