// Why: what rang, what was found out, what was done; and checks, those that were made and one to ask for now.

import { alarmCard } from "./head.js";
import { checkButton, checkCard, checkList, evidence } from "./checks.js";
import { count } from "../format.js";
import { empty, failure, h, panel } from "../dom.js";
import { get, may, segment, told } from "../api.js";
import { legBars, legRows } from "../legs.js";
import { place } from "../place.js";
import { changed, renew } from "../renew.js";

const CHECKS = 50;

export class WhyView {
  constructor(box) { this.box = box; this.told = h("div", { className: "told" }); }

  async load(run, signal) {
    const checks = await get("/v1/checks", { limit: CHECKS }, signal);
    const chosen = Number(place().check ?? checks[0]?.check);
    const [alarms, card] = await Promise.all([run ? get(`/v1/runs/${segment(run.run)}/alarms`, { limit: 50 }, signal) : [], chosen ? this.card(chosen, signal) : null]);
    if (!changed(this, run?.step, checks, alarms, card)) return;
    const cards = alarms.map((alarm) => {
      const found = Object.entries(alarm.evidence).map(([check, rest]) => ({ check, ...rest }));
      return h("div", {}, alarmCard(alarm), found.length ? evidence(found) : null, legBars(legRows({}, found), `alarm-${alarm.alarm}`));
    });
    renew(this.box, this.buttons(run), this.told,
      ...(run ? [panel("Alarms, the newest first", null, ...(cards.length ? cards : [empty("Nothing has rung", "An alarm opens when a figure passes its mask or pause limit, and says its cause here.")]))] : []),
      ...(card ? [card instanceof Error ? failure(card) : checkCard(card), checkList(checks, chosen)] : [h("section", { className: "panel" }, empty("No check yet", "A check compares both policies now, leg by leg, and is kept here with what it found.", "omni-rl check"))]));
  }

  /** The check, or why it cannot be had: an old link may name one that is not kept any more. */
  card(number, signal) {
    return get(`/v1/checks/${number}`, {}, signal).catch(told);
  }

  buttons(run) {
    const step = run ? Number(place().step ?? run.step) : null;
    const whole = { run: run?.run, attempt: run?.attempt, step, legs: true, reference: true, localise: true };
    return h("div", { className: "bar" }, checkButton("Check the probe now", { legs: true }, this.told), run && run.step !== null ? checkButton(`Find the cause of step ${count(step)}`, whole, this.told) : null, h("span", { className: "quiet" }, may("sync") ? "compares both policies; changes nothing" : "needs a token of scope sync"));
  }
}
