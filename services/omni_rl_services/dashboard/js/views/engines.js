// The members of a cluster as facts of the head: a few one by one, many folded by what they do, what is wrong first.

import { agreeing, version } from "../format.js";

const ONE_BY_ONE = 6; // members; more are folded
const NAMED = 3; // of a group
const WELL = ["serving", "idle"];
const GONE = ["dead", "stopped"]; // they do not answer

/** `[{ name, value, title, note, bad }]`. `elsewhere`: the weights are none of the trainer's, which may have others. */
export function memberFacts(members, elsewhere) {
  const compared = members.filter((member) => !GONE.includes(member.state) && (!elsewhere || member.role !== "trainer"));
  const unlike = new Set(compared.map((member) => member.version)).size > 1;
  if (members.length <= ONE_BY_ONE) return members.map((member) => alone(member, unlike));
  const groups = new Map();
  for (const member of members) {
    const key = JSON.stringify([member.role, member.state]);
    groups.set(key, [...(groups.get(key) ?? []), member]);
  }
  return [...groups.values()].sort((a, b) => rank(a[0]) - rank(b[0])).map((group) => (group.length === 1 ? alone(group[0], unlike) : folded(group)));
}

const rank = ({ state }) => (GONE.includes(state) ? 0 : WELL.includes(state) ? 2 : 1);
const sign = ({ state }) => ({ 0: "■ ", 1: "▲ ", 2: "" })[rank({ state })];

const alone = (member, unlike) => ({
  name: member.name, value: version(member.version), title: [member.version, member.detail].filter(Boolean).join(": "), bad: GONE.includes(member.state),
  note: unlike && !GONE.includes(member.state) ? `▲ ${member.state}, versions differ` : sign(member) + member.state,
});

function folded(group) {
  const [{ role, state }] = group;
  const versions = new Map();
  for (const { version: held } of group) versions.set(held, (versions.get(held) ?? 0) + 1);
  const counted = [...versions].sort((a, b) => b[1] - a[1]);
  const [[most]] = counted;
  const apart = counted.length > 1 ? `▲ ${counted.length} versions: ${counted.slice(0, NAMED).map(([held, members]) => `${members} ${agreeing(members, "has", "have")} ${version(held)}`).join(", ")}` : null;
  const names = group.length > NAMED && !apart ? null : listed(group.filter((member) => !apart || member.version !== most).map((member) => member.name));
  return {
    name: `${role === "rollout" ? "engines" : "trainers"} ${state}`, value: `${sign({ state })}${group.length}${apart ? "" : ` on ${version(most)}`}`, bad: GONE.includes(state),
    title: group.map((member) => [member.name, member.version, member.detail].filter(Boolean).join(" ")).join("\n"), note: [apart, apart ? `apart: ${names}` : names].filter(Boolean).join("; ") || null,
  };
}

const listed = (names) => names.slice(0, NAMED).join(", ") + (names.length > NAMED ? ` and ${names.length - NAMED} more` : "");
