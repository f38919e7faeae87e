// A step against the last good one: what of it is other, kind by kind.

import { DRIFT, what } from "../metrics.js";
import { SIGNS, count, figure, round, version } from "../format.js";
import { csvButton, table } from "../table.js";
import { get, segment } from "../api.js";
import { h, panel } from "../dom.js";
import { limitsOf, ofKind, severityOf } from "../limits.js";

/** What is compared of an incident; null where one of both steps is not known. */
export async function bothSteps({ run, attempt, step, good }, signal) {
  if (!good || step === null) return null;
  const of = (one) => get(`/v1/runs/${segment(run)}/attempts/${one.attempt}/steps/${one.step}`, {}, signal);
  const [before, now, limits] = await Promise.all([of(good), of({ attempt, step }), limitsOf(run, signal)]);
  return { before, now, limits };
}

export function againstPanel({ before, now, limits }) {
  const [good, bad] = [before.verdict, now.verdict];
  const kinds = Object.keys(bad.figures).filter((kind) => bad.figures[kind].tokens);
  const rows = kinds.flatMap((kind) => DRIFT.filter((metric) => metric in ofKind(limits, kind)).map((metric) => {
    const limit = ofKind(limits, kind)[metric];
    const value = bad.figures[kind][metric];
    return { kind, metric, before: good.figures[kind]?.[metric], now: value, limit, severity: severityOf(value, limit) };
  }));
  const columns = [
    { name: "kind", of: (row) => row.kind }, { name: "figure", of: (row) => row.metric, show: (metric) => h("span", { className: "explained", title: what(metric) }, metric) },
    { name: `step ${count(good.step)}`, of: (row) => row.before, show: figure, right: true }, { name: `step ${count(bad.step)}`, of: (row) => row.now, show: figure, right: true },
    { name: "first limit", of: (row) => row.limit.warn, show: round, right: true }, { name: "severity", of: (row) => row.severity, show: (severity) => (severity === "ok" ? "" : h("span", { className: `sign ${severity}` }, SIGNS[severity])) },
  ];
  const facts = [weights(before, now), ...changedFigures(before.training, now.training)];
  return panel(`Step ${count(bad.step)} against step ${count(good.step)}, the last good one`, csvButton(`step-${bad.step}-against-${good.step}`, columns, () => rows),
    h("p", { className: "quiet" }, facts.join(" · ")), h("div", { className: "whole" }, table(columns, rows, { caption: "Against the last good step" })));
}

const weights = (before, now) => (before.weight_version === now.weight_version ? `both sampled by weights ${version(now.weight_version)}` : `weights ${version(before.weight_version)}, then ${version(now.weight_version)}`);
const changedFigures = (before, now) => Object.keys(now).filter((name) => name in before).map((name) => `${name} ${figure(before[name])}, then ${figure(now[name])}`);
