// Pictures of what is drawn with elements: heat maps, bars, waterfalls. Grounds, outlines and texts, as they lie.

import { h } from "./dom.js";

const SCALE = 2; // pixels of the picture to one on screen

/** A canvas of an element and all that is in it, also of what is scrolled out of view. */
export function pictureOf(element) {
  const origin = element.getBoundingClientRect();
  const canvas = h("canvas", { width: Math.ceil(SCALE * Math.max(origin.width, element.scrollWidth)), height: Math.ceil(SCALE * Math.max(origin.height, element.scrollHeight)) });
  const pen = canvas.getContext("2d");
  pen.scale(SCALE, SCALE);
  pen.translate(-origin.left, -origin.top);
  draw(pen, element);
  return canvas;
}

function draw(pen, element) {
  if (element.className === "said") return;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  pen.fillStyle = style.backgroundColor; // of most it is clear, and nothing comes of it
  pen.beginPath();
  pen.roundRect(box.left, box.top, box.width, box.height, Number.parseFloat(style.borderRadius) || 0);
  pen.fill();
  if (style.outlineStyle === "solid") {
    Object.assign(pen, { strokeStyle: style.outlineColor, lineWidth: 2 });
    pen.stroke();
  }
  for (const child of element.childNodes) {
    if (child.nodeType === Node.ELEMENT_NODE) draw(pen, child);
    else if (child.nodeType === Node.TEXT_NODE && child.data.trim()) write(pen, child, style);
  }
}

function write(pen, text, style) {
  const range = document.createRange();
  range.selectNodeContents(text);
  const box = range.getBoundingClientRect();
  Object.assign(pen, { font: `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`, fillStyle: style.color, textBaseline: "middle", textAlign: "left" });
  pen.fillText(text.data, box.left, box.top + box.height / 2);
}
