// Updates of weights as the agents in a run's engines saw them, beside what the trainer said.

import { count } from "../format.js";
import { csvButton, table } from "../table.js";
import { panel } from "../dom.js";
import { since } from "../since.js";

const COLUMNS = [
  { name: "update", of: (row) => row.of ?? row.number, show: (value, row) => (row.of === null ? `engine's ${row.number}` : count(value)), right: true },
  { name: "who", of: (row) => row.engine ?? "trainer" },
  { name: "when", of: (row) => row.at, show: since, right: true },
  { name: "how", of: (row) => row.how.join(", ") },
  { name: "changed", of: (row) => row.changed, show: (value, row) => (row.engine ? `${count(value)} of ${count(row.tensors)}` : "–"), right: true },
  { name: "equal", of: (row) => row.equal, show: count, right: true },
  { name: "different", of: (row) => row.different, show: count, right: true },
  { name: "not comparable", of: (row) => row.not_comparable, show: count, right: true },
  { name: "what is wrong", of: (row) => row.findings.map((one) => one.sentence).join("; ") },
];

/** Nothing for a run in whose engines there is no agent. */
export const updatesPanel = (updates) =>
  updates.length ? [panel("Weight updates, the newest first", csvButton("updates", COLUMNS, () => updates), table(COLUMNS, updates, { caption: "Weight updates" }))] : [];
