// Views are loaded again while somebody reads them: what is the same is left alone, what is new comes in its place.

const KEPT = ".scroll, pre, .strip";
const FOCUSED = "a, button, select, input, summary, tr[tabindex], [role=region], .strip";

/** Whether a view's data or its address are others than when it was drawn. A player goes on playing if they are not. */
export function changed(view, ...data) {
  const now = JSON.stringify([location.hash, data]);
  if (view.drawn === now) return false;
  view.drawn = now;
  return true;
}

/** New content in place of the old: what was open, scrolled or typed stays as it is, and so does the focus. */
export function renew(box, ...children) {
  const opened = [...box.querySelectorAll("details")].map((details) => details.open);
  const scrolled = [...box.querySelectorAll(KEPT)].map(({ scrollLeft, scrollTop }) => [scrollLeft, scrollTop]);
  const typed = new Map([...box.querySelectorAll("input[name]")].map(({ name, value }) => [name, value]));
  const focused = [...box.querySelectorAll(FOCUSED)].indexOf(document.activeElement);
  box.replaceChildren(...children);
  box.querySelectorAll("details").forEach((details, index) => { if (opened[index]) details.open = true; });
  box.querySelectorAll(KEPT).forEach((one, index) => { if (scrolled[index]) one.scrollTo(...scrolled[index]); });
  for (const input of box.querySelectorAll("input[name]")) input.value = typed.get(input.name) ?? input.value;
  if (focused >= 0) box.querySelectorAll(FOCUSED)[focused]?.focus({ preventScroll: true });
}
