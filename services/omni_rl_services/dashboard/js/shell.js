// What is around the views: login, keyboard, light and dark.

import { VIEWS, go, place } from "./place.js";
import { call } from "./api.js";
import { h } from "./dom.js";

const SHORTCUTS = [["h", "all runs"], ["1 – 7", "views"], ["← →", "earlier, later step"], ["l", "logarithmic or linear"], ["0", "all steps"], ["Tab, Enter", "walk through buttons, rows and headings; open"], ["← → ↑ ↓", "in an answer: from token to token"], ["t", "light or dark"], ["r", "load again"], ["?", "this list"]];

export function login(main, enter) {
  const told = h("p", { className: "pause", role: "alert" });
  const input = h("input", { type: "password", required: true, autocomplete: "current-password", "aria-label": "Token" });
  const form = h("form", { className: "panel", onsubmit: async (event) => {
    event.preventDefault();
    await enter(input.value).catch((error) => { told.textContent = error.message; input.select(); });
  } }, h("header", {}, h("h2", {}, "Log in")), h("p", {}, "This coordinator asks for a token. It becomes a cookie that no script can read, for a working day."), h("div", { className: "bar" }, input, h("button", { className: "main" }, "Log in")), told,
  h("p", { className: "quiet" }, "No token yet? Whoever runs the coordinator makes one: ", h("code", {}, "omni-rl token --name NAME --scope read")));
  document.getElementById("live").textContent = "not logged in";
  main.replaceChildren(form);
  input.focus();
}

/** For those who came with a token: whoever sits at this machine next has to bring one too. */
export const logoutButton = (name) => h("button", { type: "button", className: "small", title: `logged in as ${name}`, onclick: async () => { await call("DELETE", "/v1/session"); location.reload(); } }, "Log out");

export function keyboard({ redraw, run, load }) {
  const turn = () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    redraw();
  };
  const help = () => {
    const dialog = document.getElementById("dialog");
    dialog.replaceChildren(h("h2", {}, "Keyboard"), h("dl", {}, ...SHORTCUTS.flatMap(([keys, what]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what)])), h("button", { onclick: () => dialog.close() }, "Close"));
    dialog.showModal();
  };
  const step = (by) => {
    const latest = run()?.step;
    if (latest === null || latest === undefined) return;
    go({ step: Math.max(0, Math.min(latest, Number(place().step ?? latest) + by)), sample: null });
  };
  const keys = { h: () => { location.hash = ""; }, t: turn, r: load, "?": help, 0: () => go({ x: null }), l: () => go({ log: place().log === "0" ? null : "0" }), ArrowLeft: () => step(-1), ArrowRight: () => step(1) };
  VIEWS.forEach((view, index) => { keys[index + 1] = () => go({ view }); });
  document.getElementById("theme").addEventListener("click", turn);
  document.getElementById("keys").addEventListener("click", help);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog[open], video, audio, .strip")) return;
    keys[event.key]?.();
  });
}
