// A sample's pictures, sounds and videos, and whether every side saw the same tensors.

import { h } from "./dom.js";
import { count, counted } from "./format.js";

const FRAMES = 6;
const LOAD_MS = 4000;

export function mediaRow(items) {
  return h("div", { className: "media" }, ...items.map((item, index) => figureOf(item, index)));
}

function figureOf(item, index) {
  const name = `${item.modality} ${index + 1}`;
  const same = agreement(item);
  const place = item.length ? `${counted(item.length, "token")} from ${count(item.offset)}` : "place in the prompt not posted";
  const caption = h("figcaption", {}, `${name} · ${place} · `, h("span", { className: same === false ? "pause" : "" }, { true: "✓ same tensors on every side", false: "✗ tensors differ", null: "digests not posted" }[same]));
  if (!item.content) return h("figure", {}, caption);
  const address = `/v1/media/${encodeURIComponent(item.content)}`;
  const gone = (event) => event.target.replaceWith(h("p", { className: "quiet" }, `${name} is not kept (any more)`));
  if (item.modality === "image") return h("figure", {}, h("img", { src: address, alt: name, height: 128, onerror: gone }), caption);
  if (item.modality === "audio") return h("figure", {}, h("audio", { src: address, controls: true, preload: "metadata", "aria-label": name, onerror: gone }), caption);
  const strip = h("div", { className: "frames" });
  const video = h("video", { src: address, controls: true, muted: true, preload: "metadata", height: 128, "aria-label": name, onerror: gone });
  video.addEventListener("loadedmetadata", () => frames(address, strip, name), { once: true });
  return h("figure", {}, video, strip, caption);
}

/** True or false whether engine and trainer got the same tensors, those that were rendered; null where no digest was posted. */
function agreement({ tensors }) {
  const posted = (tensors ?? []).filter(({ rendered, engine, train }) => (rendered ?? engine ?? train ?? null) !== null);
  return posted.length ? posted.every(gotTheSame) : null;
}

/** A side without a digest did not get the tensor. Who renders on each side by itself has no digest of a rendered one. */
const gotTheSame = ({ rendered, engine, train }) => (engine ?? null) === (train ?? null) && (rendered ?? engine) === engine;

/** Frames evenly over a video, drawn as it seeks. */
async function frames(address, box, name) {
  const video = h("video", { src: address, muted: true, preload: "auto" });
  const heard = (what) => Promise.race([new Promise((resolve) => video.addEventListener(what, resolve, { once: true })), new Promise((resolve) => setTimeout(resolve, LOAD_MS))]);
  await heard("loadeddata");
  for (let index = 0; index < FRAMES && video.videoWidth; index += 1) {
    const seeked = heard("seeked");
    video.currentTime = (video.duration * (index + 0.5)) / FRAMES;
    await seeked;
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight, role: "img", "aria-label": `${name}, frame at ${video.currentTime.toFixed(2)} s` });
    canvas.getContext("2d").drawImage(video, 0, 0);
    box.append(canvas);
  }
}
