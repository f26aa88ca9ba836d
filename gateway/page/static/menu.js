// The buttons at the top: a new conversation, the stored ones, settings, and a menu of the rest.

import { h, icon } from "./dom.js";
import { addWords, language, languages, setLanguage } from "./language.js";
import { prefer, preference } from "./preferences.js";

addWords({
  en: {
    "menu.new": "New conversation",
    "menu.history": "Conversations",
    "menu.settings": "Settings",
    "menu.more": "More",
    "menu.copy": "Copy the request",
    "menu.curl": "as curl",
    "menu.python": "as openai-python",
    "menu.json": "as JSON",
    "menu.export": "Export this conversation",
    "menu.theme": "Colours",
    "menu.auto": "As the system",
    "menu.light": "Light",
    "menu.dark": "Dark",
    "menu.language": "Language",
    "menu.copied": "Copied.",
    "menu.notCopied": "The browser did not allow to copy.",
    "menu.nothing": "There is no question yet.",
  },
  zh: {
    "menu.new": "新对话",
    "menu.history": "对话记录",
    "menu.settings": "设置",
    "menu.more": "更多",
    "menu.copy": "复制请求",
    "menu.curl": "curl 命令",
    "menu.python": "openai-python 代码",
    "menu.json": "JSON",
    "menu.export": "导出此对话",
    "menu.theme": "配色",
    "menu.auto": "跟随系统",
    "menu.light": "浅色",
    "menu.dark": "深色",
    "menu.language": "语言",
    "menu.copied": "已复制。",
    "menu.notCopied": "浏览器不允许复制。",
    "menu.nothing": "还没有提问。",
  },
});

const SHOWN_SECONDS = 5;

/** Returns the buttons; `on` has the listeners fresh, history, settings, copy(form), exported. */
export function menuButtons(on) {
  const menu = h("div", { id: "menu", class: "menu", popover: "auto", role: "group", label: "menu.more" },
    h("div", {}, h("h2", { words: "menu.copy" }),
      ["curl", "python", "json"].map((form) => item(`menu.${form}`, () => on.copy(form)))),
    h("div", {}, item("menu.export", () => on.exported())),
    choice("menu.theme", themes(), theme(), setTheme),
    choice("menu.language", Object.entries(languages()), language(), setLanguage));
  menu.addEventListener("click", (event) => event.target.closest(".menu-item") && menu.hidePopover());
  const more = button("menu.more", "more", null);
  more.setAttribute("popovertarget", "menu");
  return h("nav", { class: "strip-buttons", label: "menu.more" },
    button("menu.new", "new", on.fresh), button("menu.history", "history", on.history),
    button("menu.settings", "settings", on.settings), more, menu);
}

function button(words, drawing, click) {
  const listeners = click ? { click: () => click() } : {};
  return h("button", { class: "button-icon", type: "button", label: words, tip: words, on: listeners },
    icon(drawing));
}

const item = (words, click) =>
  h("button", { class: "menu-item", type: "button", words, on: { click } });

/** Returns a row of radio buttons; an entry is [value, its words' key or text]. */
function choice(title, entries, chosen, choose) {
  const name = title.replace(".", "-");
  const options = entries.map(([value, words]) => {
    const input = h("input", { type: "radio", name, value, checked: value === chosen,
      on: { change: () => choose(value) } });
    const text = words.startsWith("menu.") ? h("span", { words }) : h("span", {}, words);
    return h("label", { class: "menu-choice" }, input, text);
  });
  return h("div", { role: "radiogroup", label: title }, h("h2", { words: title }), options);
}

const themes = () => ["auto", "light", "dark"].map((value) => [value, `menu.${value}`]);
const theme = () => preference("theme") ?? "auto";

function setTheme(value) {
  prefer("theme", value === "auto" ? null : value);
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

/** Shows a sentence at the bottom for some seconds, and has it read out. */
export function announce(sentence) {
  const line = document.getElementById("announcer");
  line.textContent = sentence;
  line.classList.add("is-shown");
  clearTimeout(line.timer);
  line.timer = setTimeout(() => line.classList.remove("is-shown"), SHOWN_SECONDS * 1000);
}
