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
  add: "M12 5v14M5 12h14",
  again: "M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  check: "M5 13l4 4L19 7",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  down: "M6 9l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  grid: "M4 4h16v16H4zM4 12h16M12 4v16",
  history: "M12 7v5l3 2M4 12a8 8 0 1 0 2.3-5.6L4 8.5M4 4v4.5h4.5",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  new: "M12 5v14M5 12h14",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  stop: "M7 7h10v10H7z",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  video: "M4 6h11v12H4zM15 10l5-3v10l-5-3",
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
