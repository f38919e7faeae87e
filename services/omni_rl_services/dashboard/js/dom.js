// Elements from plain values. Text only ever goes in as text: nothing here parses HTML.

const PROPERTIES = new Set(["value", "checked", "disabled", "controls", "hidden", "selected", "open", "className", "muted"]);

/** `h("p", { className: "quiet", onclick }, "text", child)`; null children are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** For whoever listens; nobody sees it, and no picture has it. */
export const said = (text) => h("span", { className: "said" }, text);

/** Nothing to show, and what to do about it. */
export function empty(title, hint, command) {
  return h("div", { className: "empty" }, h("strong", {}, title), h("span", {}, hint ?? ""), command ? h("div", {}, h("code", {}, command)) : null);
}

export function panel(title, tools, ...children) {
  return h("section", { className: "panel" }, h("header", {}, h("h2", {}, title), h("div", { className: "tools" }, tools)), ...children);
}

/** What went wrong, in the coordinator's own words. */
export function failure(error) {
  const again = h("button", { onclick: () => dispatchEvent(new HashChangeEvent("hashchange")) }, "Try again");
  return h("section", { className: "panel error", role: "alert" }, h("h2", {}, error.title ?? "This could not be loaded"), h("p", {}, error.message), h("p", {}, again));
}

/** Ask before something that others notice. Resolves to true or false. */
export function confirmed(title, text, verb) {
  const dialog = document.getElementById("dialog");
  return new Promise((resolve) => {
    const close = (answer) => { dialog.close(); resolve(answer); };
    dialog.replaceChildren(h("div", { className: "stack" }, h("h2", {}, title), h("p", {}, text),
      h("div", { className: "bar" }, h("button", { className: "main", onclick: () => close(true) }, verb), h("button", { onclick: () => close(false) }, "Cancel"))));
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
  });
}
