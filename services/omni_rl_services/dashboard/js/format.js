// Numbers with units and as many digits as mean something.

export const MISSING = "–";
export const NOT_A_NUMBER = "not a number";

/**
 * Three significant digits, all of them written, so that columns line up; powers of ten where there would be many zeros.
 * null is what the API has for NaN and infinity; undefined: there is no such figure.
 */
export function figure(value) {
  if (value === undefined) return MISSING;
  if (value === null || !Number.isFinite(value)) return NOT_A_NUMBER;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return minus(value.toExponential(2).replace("e+", "e"));
  if (Number.isInteger(value)) return minus(count(value));
  if (size >= 999.5) return minus(count(Number(value.toPrecision(3))));
  return minus(value.toPrecision(size >= 1 && size < 2 ? 5 : 3)); // of a ratio near 1 the first digit says nothing
}

/** A tick or a limit, which somebody chose to be round: without the zeros at its end. */
export const round = (value) => figure(value).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");

const minus = (text) => text.replaceAll("-", "−");

export const count = (value) => (value === null || value === undefined ? MISSING : value.toLocaleString("en"));

/** The word that goes with so many things; `counted` has the number too: "1 token", "2 tokens". */
export const agreeing = (value, one, many = `${one}s`) => (value === 1 ? one : many);
export const counted = (value, one, many) => `${count(value)} ${agreeing(value, one, many)}`;

export function bytes(value) {
  if (!value) return MISSING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(value) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))} ${units[power]}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return MISSING;
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${Number((value * 1e6).toPrecision(2))} µs`;
  if (value < 1) return `${Number((value * 1e3).toPrecision(3))} ms`;
  if (value < 120) return `${Number(value.toPrecision(3))} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

export const ago = (at) => (at ? `${seconds(Math.max(1, Math.round(Date.now() / 1000 - at)))} ago` : MISSING);
/** In the reader's own time zone, which is named; the order of ISO 8601 is the one that nobody misreads. */
export const clock = (at) => (at ? new Date(at * 1000).toLocaleString("sv", { timeZoneName: "shortOffset" }).replace("GMT", "UTC") : MISSING);

/** As `clock` names it. */
export const ZONE = new Date().toLocaleString("sv", { timeZoneName: "shortOffset" }).split(" ").at(-1).replace("GMT", "UTC");

/** A weight version is run/attempt/number/digest: the last two tell versions apart. */
export function version(text) {
  if (!text) return MISSING;
  const parts = text.split("/");
  return parts.length === 4 ? `${parts[2]} · ${parts[3].slice(0, 8)}` : shorten(text, 32);
}

export const shorten = (text, most) => (text.length > most ? `${text.slice(0, most)}… (${count(text.length)} characters)` : text);
export const words = (name) => name.replaceAll("_", " ");

export const SIGNS = { unjudged: "○ UNJUDGED", ok: "● OK", warn: "▲ WARN", mask: "◆ MASK", pause: "■ PAUSE" };
