// Elements, made in one expression.

import { say } from "./language.js";

/**
 * Returns a new element.
 *
 * `properties` are attributes, and besides: `words: "key"` or `words: ["key", values]` for its text,
 * `label` likewise for its accessible name, `tip` for its title, `placeholderWords`; `on: {click: f}`
 * for listeners; `data: {...}`. An attribute that is false, null or undefined is left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SPOKEN = { words: "text", label: "aria-label", tip: "title", placeholderWords: "placeholder" };

function set(element, name, value) {
  if (value === false || value === null || value === undefined) return;
  if (name in SPOKEN) say(element, ...[value].flat(), ...(Array.isArray(value) ? [] : [{}]), SPOKEN[name]);
  else if (name === "on") Object.entries(value).forEach(([event, f]) => element.addEventListener(event, f));
  else if (name === "data") Object.assign(element.dataset, value);
  else element.setAttribute(name, value === true ? "" : value);
}

// Paths on a 24x24 sheet, drawn with a round pen.
const ICONS = {
  close: "M6 6l12 12M18 6L6 18",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  history: "M12 7v5l3 2M4 12a8 8 0 1 0 2.3-5.6L4 8.5M4 4v4.5h4.5",
  more: "M5 12h.01M4.6 12h.8M12 12h.01M11.6 12h.8M19 12h.01M18.6 12h.8",
  new: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

/** Returns a small drawing; the control that holds it has the accessible name. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Adds drawings by name, each the path of a 24x24 drawing. */
export const addIcons = (paths) => Object.assign(ICONS, paths);
