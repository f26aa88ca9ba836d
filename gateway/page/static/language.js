// The page's words in English and Chinese. An element carries the key of its words, so that a
// switch of the language changes all that is on the page, and loses nothing.

import { prefer, preference } from "./preferences.js";

const LANGUAGES = { en: "English", zh: "中文" };
const tables = Object.fromEntries(Object.keys(LANGUAGES).map((code) => [code, {}]));
let current = initial();

function initial() {
  const stored = preference("language");
  if (stored in LANGUAGES) return stored;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** Adds words by language and key: {en: {send: "Send"}, zh: {send: "发送"}}. */
export function addWords(words) {
  for (const code of Object.keys(LANGUAGES)) {
    Object.assign(tables[code], words[code]);
  }
}

/** Returns the words of a key; "{name}" in them is replaced by the value of that name. */
export function t(key, values = {}) {
  const words = tables[current][key] ?? tables.en[key] ?? key;
  return words.replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}

/** Gives an element the words of a key: as its text, or as an attribute, e.g. "aria-label". */
export function say(element, key, values = {}, attribute = "text") {
  const spoken = JSON.parse(element.dataset.words ?? "{}");
  spoken[attribute] = [key, values];
  element.dataset.words = JSON.stringify(spoken);
  speak(element, attribute, key, values);
}

function speak(element, attribute, key, values) {
  if (attribute === "text") element.textContent = t(key, values);
  else element.setAttribute(attribute, t(key, values));
}

/** Returns the languages that there are, by code, as their speakers write them. */
export const languages = () => ({ ...LANGUAGES });
export const language = () => current;

/** Changes the language of the whole page. */
export function setLanguage(code) {
  current = code;
  prefer("language", code);
  document.documentElement.lang = code === "zh" ? "zh-CN" : "en";
  sayAnew(document);
  document.dispatchEvent(new CustomEvent("languagechange"));
}

/** Puts all words within an element into the language of now: it may have been off the page. */
export function sayAnew(root) {
  for (const element of root.querySelectorAll("[data-words]")) {
    for (const [attribute, [key, values]] of Object.entries(JSON.parse(element.dataset.words))) {
      speak(element, attribute, key, values);
    }
  }
}

/** Returns a number as the language writes it, with at most so many digits behind the point. */
export function number(value, digits = 0) {
  const format = { maximumFractionDigits: digits, minimumFractionDigits: digits };
  return new Intl.NumberFormat(document.documentElement.lang, format).format(value);
}

/** Returns milliseconds as people read them: "84 ms", "1.24 s". */
export function duration(milliseconds) {
  if (milliseconds < 1000) return `${number(milliseconds, milliseconds < 10 ? 1 : 0)} ms`;
  return `${number(milliseconds / 1000, milliseconds < 10000 ? 2 : 1)} s`;
}
