// Asks for the API key where the gateway wants one. It stays in this page's memory alone.

import { h } from "./dom.js";
import { addWords, say } from "./language.js";

addWords({
  en: {
    "key.title": "This gateway asks for a key",
    "key.label": "API key",
    "key.hint": "It is kept in this page's memory until you close it, and nowhere else.",
    "key.refused": "The gateway does not take this key. Type another one.",
    "key.use": "Use it",
    "key.cancel": "Cancel",
  },
  zh: {
    "key.title": "此网关需要密钥",
    "key.label": "API 密钥",
    "key.hint": "密钥只保存在本页面的内存中，关闭页面即消失。",
    "key.refused": "网关不接受此密钥，请重新输入。",
    "key.use": "使用",
    "key.cancel": "取消",
  },
});

/** A dialog that asks for a key. */
export class KeyDialog {
  #input = h("input", { id: "key-input", type: "password", autocomplete: "off", required: true });
  #hint = h("p", { class: "field-hint", words: "key.hint" });

  constructor(dialog) {
    this.dialog = dialog;
    say(dialog, "key.title", {}, "aria-label");
    const cancel = h("button", { class: "button-quiet", type: "button", words: "key.cancel",
      on: { click: () => dialog.close() } });
    dialog.append(
      h("form", { method: "dialog" },
        h("h2", { words: "key.title" }),
        h("div", { class: "field" }, h("label", { for: "key-input", words: "key.label" }), this.#input,
          this.#hint),
        h("div", { class: "box-row" }, cancel,
          h("button", { class: "button-main", value: "use", words: "key.use" }))),
    );
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Returns the key that is typed in; empty if none is. `refused`: the last one was of no use. */
  ask(refused) {
    say(this.#hint, refused ? "key.refused" : "key.hint");
    this.#input.value = "";
    this.dialog.returnValue = "";
    this.dialog.showModal();
    return new Promise((resolve) => {
      const answer = () => {
        resolve(this.dialog.returnValue === "use" ? this.#input.value.trim() : "");
        this.#input.value = ""; // the document keeps nothing of it
      };
      this.dialog.addEventListener("close", answer, { once: true });
    });
  }
}
