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

const ICONS = {
  // Paths of a 24x24 drawing, stroked.
  close: "M6 6l12 12M18 6L6 18",
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
