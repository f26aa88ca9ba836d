// The conversations that this browser keeps: open, remove, import, and one button that clears all.

import { h, icon } from "./dom.js";
import { closeOutside, drawerHead } from "./drawer.js";
import { addWords, language, say } from "./language.js";
import * as store from "./store.js";

addWords({
  en: {
    "history.title": "Conversations",
    "history.hint": "They are kept in this browser alone.",
    "history.none": "None yet.",
    "history.remove": "Remove “{title}”",
    "history.import": "Import a file",
    "history.clear": "Remove all",
    "history.sure": "Really remove all",
    "history.untitled": "Untitled",
  },
  zh: {
    "history.title": "对话记录",
    "history.hint": "对话只保存在此浏览器中。",
    "history.none": "还没有对话。",
    "history.remove": "删除“{title}”",
    "history.import": "导入文件",
    "history.clear": "全部删除",
    "history.sure": "确认全部删除",
    "history.untitled": "无标题",
  },
});

/** Lists the stored conversations. */
export class HistoryDrawer {
  #list = h("ul", { class: "history-list" });
  #file = h("input", { type: "file", accept: "application/json,.json", hidden: true });
  #clear = h("button", { class: "button-quiet button-danger", type: "button", words: "history.clear" });

  /** `on` has the listeners open(id), removed(ids), importFile(file). */
  constructor(dialog, on) {
    this.dialog = dialog;
    this.on = on;
    say(dialog, "history.title", {}, "aria-label");
    const choose = h("button", { class: "button-quiet", type: "button", words: "history.import",
      on: { click: () => this.#file.click() } });
    dialog.append(drawerHead("history.title", dialog),
      h("div", { class: "drawer-body" }, h("p", { class: "field-hint", words: "history.hint" }), this.#list,
        h("div", { class: "box-row" }, choose, this.#clear), this.#file));
    closeOutside(dialog);
    this.#file.addEventListener("change", () => this.#import());
    this.#clear.addEventListener("click", () => this.#askOrClear());
    this.#clear.addEventListener("blur", () => say(this.#clear, "history.clear"));
  }

  async open() {
    await this.#show();
    this.dialog.showModal();
  }

  async #show() {
    const conversations = await store.list();
    const none = h("li", { class: "field-hint", words: "history.none" });
    this.#list.replaceChildren(...(conversations.length ? conversations.map((one) => this.#row(one)) : [none]));
    this.#clear.hidden = !conversations.length;
  }

  #row({ id, title, created }) {
    const date = new Intl.DateTimeFormat(language(), { dateStyle: "medium", timeStyle: "short" });
    const name = title ? h("span", { class: "history-name" }, title)
      : h("span", { class: "history-name", words: "history.untitled" });
    const open = h("button", { class: "history-open", type: "button", on: { click: () => this.#open(id) } },
      name, h("time", { class: "field-hint" }, date.format(created)));
    const remove = h("button", { class: "button-icon", type: "button", label: ["history.remove", { title }],
      on: { click: () => this.#remove(id) } }, icon("trash"));
    return h("li", { class: "history-row" }, open, remove);
  }

  #open(id) {
    this.dialog.close();
    this.on.open(id);
  }

  async #remove(id) {
    await store.remove(id);
    this.on.removed([id]);
    await this.#show();
    this.dialog.querySelector("button").focus();
  }

  #import() {
    const [file] = this.#file.files;
    this.#file.value = "";
    this.dialog.close();
    if (file) this.on.importFile(file);
  }

  async #askOrClear() {
    if (!this.#clear.dataset.words.includes("history.sure")) return say(this.#clear, "history.sure");
    const conversations = await store.list();
    await store.clear();
    say(this.#clear, "history.clear");
    this.on.removed(conversations.map(({ id }) => id));
    await this.#show();
    this.dialog.querySelector("button").focus();
  }
}
