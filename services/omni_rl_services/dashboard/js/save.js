// Tables as CSV, charts as PNG.

import { h } from "./dom.js";

function download(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A spreadsheet takes a cell that begins with = + - @ for a formula; text gets a quote before it, numbers do not. */
export function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function saveCsv(name, headings, rows) {
  const lines = [headings, ...rows].map((row) => row.map(csvCell).join(","));
  download(`${name}.csv`, new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
}

/** A canvas on the page's own ground. */
function savePng(name, canvas) {
  const copy = h("canvas", { width: canvas.width, height: canvas.height });
  const pen = copy.getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--panel");
  pen.fillRect(0, 0, copy.width, copy.height);
  pen.drawImage(canvas, 0, 0);
  copy.toBlob((blob) => download(`${name}.png`, blob), "image/png");
}

/** `canvas()`: what is saved as NAME.png; `title` is what readers are told of. */
export const pngButton = (name, title, canvas) => h("button", { type: "button", className: "small", "aria-label": `${title} as PNG`, onclick: () => savePng(name, canvas()) }, "PNG");
